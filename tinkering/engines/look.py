"""What is known of a module's forward: found out once, and kept while the module is as it was."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tinkering.graph.capture import NotCapturedError, capture
from tinkering.graph.fingerprint import fingerprint
from tinkering.graph.probe import LOCK, probe, tried
from tinkering.graph.program import Fused, Program
from tinkering.layers.centre import Values, layer


@dataclass(frozen=True)
class Seen:
    """What a module's forward does."""

    coupled: bool
    """Whether an image's result depends on the images beside it."""
    random: bool
    """Whether it draws random numbers, as active dropout does."""
    result: tuple[int, ...] | None
    """Shape of what it makes of one image, where its results are ``[images, ...]``."""
    program: Program | None
    """Its steps; None where it cannot be captured."""
    reason: str
    """Why not."""
    serves_one: bool
    """Whether the steps hold for one image alone; they were captured for two."""

    def steps(self, model: nn.Module) -> Program:
        """Return the module's steps.

        Raises:
            NotCapturedError: (an `UnsupportedLayerError`) there are none.
        """
        if self.program is None:
            raise NotCapturedError(type(model).__name__, self.reason)
        return self.program


_KEPT = 16
"""Ways in which a module was, and shapes of an image, that are remembered."""
_seen: WeakKeyDictionary[nn.Module, dict[Hashable, Seen]] = WeakKeyDictionary()


def look(model: nn.Module, x: Tensor) -> Seen:
    """Return what ``model(x)`` does, for any number of images.

    It is found out once for the module as it is (see `fingerprint`) and the shape of an image,
    by running a copy. Several threads may ask at a time.

    Args:
        model: the module.
        x: ``[images, ...]``; as in `probe`.

    Raises:
        ArgumentError: (a ``ValueError``) as `probe` does.
    """
    kind = (x.dtype, x.device, tuple(x.shape[1:]), fingerprint(model))
    with LOCK:
        kept = _seen.setdefault(model, {})
        if kind not in kept:
            while len(kept) >= _KEPT:  # one that is changed all the time must not fill the memory
                del kept[next(iter(kept))]
            kept[kind] = _found(model, x)
        return kept[kind]


def _found(model: nn.Module, x: Tensor) -> Seen:
    found = probe(model, x)
    try:
        steps = Program(capture(model, x, found))
    except NotCapturedError as error:  # kept as well: the next try would take as long
        return Seen(found.coupled, found.random, found.result, None, str(error.args[1]), False)
    coupled, random = steps.captured.coupled, steps.captured.random
    serves_one = not coupled or random or _serves_one(steps, model, x)
    return Seen(coupled, random, found.result, steps, "", serves_one)


def _computed(values: Values, step: Fused, x: Tensor, residual: Tensor | None) -> Tensor:
    return layer(step, values, torch.float32)(x, residual, False)


@torch.no_grad()
def _serves_one(steps: Program, model: nn.Module, x: Tensor) -> bool:
    """Return whether steps make of one image what the module makes of it."""
    copied, images = tried(model, x)
    values = steps.captured.values(dict(copied.named_parameters()) | dict(copied.named_buffers()))
    try:
        expected = copied(images[:1].clone())
        result = steps.run(images[:1], values, partial(_computed, values))
    except (RuntimeError, ValueError):
        return False
    return result.numel() == expected.numel() and torch.allclose(
        result.reshape(expected.shape).to(expected), expected, rtol=1e-3, atol=1e-4
    )


def program(model: nn.Module, x: Tensor) -> Program:
    """Return the steps of ``model(x)``; the arguments are those of `look`.

    Raises:
        NotCapturedError: (an `UnsupportedLayerError`) the forward cannot be captured.
        ArgumentError: (a ``ValueError``) as `probe` does.
    """
    return look(model, x).steps(model)
