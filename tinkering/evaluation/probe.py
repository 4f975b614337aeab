"""What a module's forward does with a few examples, found out by running a copy of it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from tinkering.errors import ArgumentError
from tinkering.population.copies import attributes, first_line, independent_copy

GENERATOR = threading.RLock()
"""Held by whoever seeds PyTorch's generator, which all threads share."""


_MISTAKES = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)
"""What a forward raises where it is given what it does not take."""


@dataclass(frozen=True)
class Probe:
    """What a forward does."""

    coupled: bool
    """Whether an image's result depends on the images beside it."""
    random: bool
    """Whether it draws random numbers, as active dropout does."""
    result: tuple[int, ...] | None
    """Shape of what it makes of one image; None where results are not ``[images, ...]``."""


@torch.no_grad()
def probe(model: nn.Module, x: Tensor) -> Probe:
    """Return what a module's forward does with two images.

    Args:
        model: the module; a copy of it is run.
        x: ``[images, ...]``; numbers without a decimal point are taken for an example.

    Raises:
        ArgumentError: (a ``ValueError``) the module does not take `x`, returns no tensor, or
            changes an attribute, a buffer or a parameter of its own, so that it would return
            something else the next time.
    """
    copied, images = tried(model, x)
    together, random = _called(copied, images, x)
    before = _held(copied)
    if not isinstance(together, Tensor):
        raise ArgumentError(
            "model",
            "a module that returns a tensor",
            f"{type(model).__name__}, which returns a {type(together).__name__}",
        )
    if not together.dim():
        raise ArgumentError(
            "model", "a module that returns [batch, ...]", "one that returns a single number"
        )
    try:
        alone = [_drawing(copied, images[at : at + 1])[0] for at in (0, 1)]
    except (ValueError, RuntimeError):  # a norm that needs more than one value a channel
        alone = []
    again, _ = _called(copied, images, x)
    changed = _changed(before, _held(copied))
    if changed is not None or not _alike(together, again):
        raise ArgumentError(
            "model",
            "a forward that leaves the module as it was",
            f"{type(model).__name__}, which changes {changed or 'what it returns the next time'}",
            "Members share one module, so take what it keeps as an input and return it: "
            "output, state = model(x, state). BatchNorm and spectral_norm: call model.eval().",
        )
    if len(together) != 2:
        return Probe(True, random, None)
    apart = alone and all(map(_is_part, alone, together))
    return Probe(not apart, random, tuple(together.shape[1:]))


def _is_part(alone: Any, part: Tensor) -> bool:
    """Return whether an image's result is a part of what was made of it and another one."""
    if not isinstance(alone, Tensor) or alone.numel() != part.numel():
        return False
    # By the numbers alone: `squeeze` takes away the axis of a single image.
    return torch.allclose(alone.reshape(part.shape), part, rtol=1e-3, atol=1e-4)


def tried(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """Return what `probe` runs: a copy with other parameters, and two images."""
    return independent_copy(model, _stirring()), _example(x)


def _example(x: Tensor) -> Tensor:
    """Return two images of another kind, as far as numbers may be drawn."""
    images = x[[0, -1]]
    if images.is_floating_point():  # else numbers with a meaning, such as words
        generator = torch.Generator().manual_seed(0)
        return torch.randn(images.shape, generator=generator).to(images)
    if torch.equal(images[0], images[1]):
        images[1] = 0
    return images


def _called(model: nn.Module, images: Tensor, x: Tensor) -> tuple[Any, bool]:
    """Return the result for some images, and whether random numbers were drawn for it."""
    try:
        return _drawing(model, images)
    except _MISTAKES as error:
        advice = ""
        with suppress(*_MISTAKES):
            _drawing(model, x[None])
            advice = (
                "An axis for the batch is missing: x[:, None] where each member has an example of "
                "its own, x[None] where they share one."
            )
        raise ArgumentError(
            "x",
            f"examples that {type(model).__name__} takes, [batch, ...] for each member",
            f"{list(x.shape)} of {x.dtype} ({first_line(error)})",
            advice,
        ) from error


def _drawing(model: nn.Module, images: Tensor) -> tuple[Any, bool]:
    # The caller's generator would be left elsewhere than a kept result leaves it.
    with GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        result = model(images.clone())
        return result, not torch.equal(before, torch.get_rng_state())


def _stirring() -> Callable[[Tensor], Tensor]:
    """Return what makes other values of parameters: a head of zeros would hide what is before."""
    generator = torch.Generator().manual_seed(0)

    def stirred(value: Tensor) -> Tensor:
        inputs = max(1, value[:1].numel()) if value.dim() > 1 else 25
        noise = torch.randn(value.shape, generator=generator, device="cpu")
        return value + (noise * (0.5 / math.sqrt(inputs))).to(value)

    return stirred


def _held(model: nn.Module) -> dict[str, list[Any]]:
    """Return what a module holds, by name: copies of tensors, other values as they are."""
    held = {name: [p.detach().clone()] for name, p in model.named_parameters()}
    held |= {name: [b.clone()] for name, b in model.named_buffers()}
    for name, value in attributes(model):
        leaves = _pytree.tree_leaves(value)
        held[name] = [v.detach().clone() if isinstance(v, Tensor) else v for v in leaves]
    return held


def _changed(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> str | None:
    """Return the name of something that a module holds and did not hold before, or None."""
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if old is None or new is None or len(old) != len(new):
            return repr(name)
        if not all(map(_same, old, new)):
            return repr(name)
    return None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and _alike(one, other)
    if isinstance(one, int | float | str):
        return type(one) is type(other) and bool(one == other)
    return True  # objects of the user's own may be made anew each time, and be the same


def _alike(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal but for the order in which numbers were added."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)
