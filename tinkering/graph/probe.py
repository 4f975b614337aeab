"""What a module's forward does with a few examples, found out by running a copy of it."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from tinkering.errors import ArgumentError
from tinkering.graph.copies import attributes, first_line, independent_copy
from tinkering.required import kind_of

LOCK = threading.RLock()
"""Held by whoever seeds PyTorch's generator or captures a module: all threads share that state.

One lock, since both happen in each other; and never while a fitness runs, which may wait for
threads that evaluate something.
"""


_IMAGES = 5
"""That a module is tried with: a result may depend on those that stand some places away."""
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
    """Return what a module's forward does with some images, together and each alone.

    Args:
        model: the module; a copy of it is run.
        x: ``[images, ...]``; other numbers are drawn, as far as the module takes them.

    Raises:
        ArgumentError: (a ``ValueError``) the module is compiled by ``torch.jit``, does not take
            `x`, or returns no tensor of real numbers; it changes an attribute, a buffer or a
            parameter of its own, so that it would return something else the next time; or it
            draws from another generator than PyTorch's.
    """
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            came = f"a ScriptModule in {name!r}" if name else "a ScriptModule"
            raise ArgumentError("model", "a module of Python", came)
    copied, images = tried(model, x)
    together, draws = _drawing(copied, images)
    _require_real_tensor(model, together)
    try:
        alone = [_drawing(copied, images[at : at + 1])[0] for at in range(len(images))]
    except (ValueError, RuntimeError):  # a norm that needs more than one value a channel
        alone = []
    # Twice, since the first may fill a cache that was filled for one image before.
    again = _drawing(copied, images)[0]
    before = _held(copied)
    # Another thread may draw at the time, but hardly each time.
    if all(_draws_elsewhere(copied, images) for _ in range(3)):
        came = f"{type(model).__name__}, which draws from Python's or NumPy's"
        raise ArgumentError("model", "a forward that draws from PyTorch's generator", came)
    changed = _changed(before, _held(copied))
    if changed is not None or not _alike(together, again):
        raise ArgumentError(
            "model",
            "a forward that leaves the module as it was",
            f"{type(model).__name__}, which changes {changed or 'what it returns the next time'}",
            "Members share one module, so take its state as a part of x, and return it as a part "
            "of the result. BatchNorm and spectral_norm: call model.eval().",
        )
    if len(together) != len(images):
        return Probe(True, draws, None)
    apart = alone and all(map(_is_part, alone, together))
    return Probe(not apart, draws, tuple(together.shape[1:]))


def _require_real_tensor(model: nn.Module, result: object) -> None:
    name = type(model).__name__
    if not isinstance(result, Tensor):
        needed, came = "a module that returns a tensor", f"{name}, which returns {kind_of(result)}"
    elif result.is_complex():
        needed, came = "a module that returns real numbers", f"{name}, which returns {result.dtype}"
    elif not result.dim():
        needed, came = "a module that returns [batch, ...]", "one that returns a single number"
    else:
        return
    raise ArgumentError("model", needed, came)


def _is_part(alone: Any, part: Tensor) -> bool:
    """Return whether an image's result is a part of what was made of it and others."""
    if not isinstance(alone, Tensor) or alone.numel() != part.numel():
        return False
    # By the numbers alone: `squeeze` takes away the axis of a single image.
    alone = alone.reshape(part.shape)
    return torch.allclose(alone, part, rtol=1e-3, atol=1e-4, equal_nan=True)


def tried(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """Return what `probe` runs: a copy with other parameters, and images that it takes.

    Raises:
        ArgumentError: (a ``ValueError``) it takes neither numbers that are drawn nor `x`.
    """
    copied = independent_copy(model, _stirring())
    mixed = _mixed(x)
    if x.is_floating_point():  # else numbers with a meaning, such as words
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(mixed.shape, generator=generator).to(mixed)
        with suppress(*_MISTAKES):
            result, _ = _drawing(copied, drawn)
            if not (isinstance(result, Tensor) and bool(result.isnan().any())):
                return copied, drawn
        copied = independent_copy(model, _stirring())
    _called(copied, mixed, x)
    return independent_copy(model, _stirring()), mixed


def _mixed(x: Tensor) -> Tensor:
    """Return images that differ, of numbers that occur in some given ones."""
    chosen = [x[at * len(x) // _IMAGES] for at in range(_IMAGES)]
    rolled = [image.flatten().roll(at).view(image.shape) for at, image in enumerate(chosen)]
    images = torch.stack(rolled)
    if all(torch.equal(image, chosen[0]) for image in chosen) and images[1].numel():
        # What adds up to the same in another order is another sum for a number that is repeated.
        images[1] = images[1].flatten()[0]
    return images


def _called(model: nn.Module, images: Tensor, x: Tensor) -> None:
    """Refuse `x` where the module takes no images of its kind."""
    try:
        _drawing(model, images)
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
    """Return what a module makes of images, and whether it draws random numbers for that."""
    # The caller's generator would be left elsewhere than a kept result leaves it.
    with LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        result = model(images.clone())
        return result, not torch.equal(before, torch.get_rng_state())


def _draws_elsewhere(model: nn.Module, images: Tensor) -> bool:
    """Return whether Python's or NumPy's generator moves meanwhile, and leave them as they were."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    _drawing(model, images)
    moved = random.getstate() != python
    moved = moved or str(np.random.get_state(legacy=False)) != str(numpy)  # noqa: NPY002
    if moved:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
    return moved


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
    if one.layout != torch.strided:
        one, other = one.to_dense(), other.to_dense()
    return torch.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)
