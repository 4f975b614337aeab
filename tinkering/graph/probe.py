"""What a module's forward does with a few examples, found out by running a copy of it."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from tinkering.errors import ArgumentError
from tinkering.graph.copies import attributes, first_line, independent_copy
from tinkering.graph.signature import Axes, Signature
from tinkering.graph.tree import Tree, is_same, tree_of
from tinkering.required import kind_of

LOCK = threading.RLock()
"""Held by whoever seeds PyTorch's generator or captures a module: all threads share that state.

One lock, since both happen in each other; and never while a fitness runs, which may wait for
threads that evaluate something.
"""


_EXAMPLES = 5
"""That a module is tried with: a result may depend on those that stand some places away."""
_MISTAKES = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)
"""What a forward raises where it is given what it does not take."""


@dataclass(frozen=True)
class Result:
    """What a module returns."""

    tree: Tree
    shapes: tuple[tuple[int, ...], ...] | None
    """Of one example, for each tensor; None where some are not ``[examples, ...]``."""


@dataclass(frozen=True)
class Probe:
    """What a forward does."""

    coupled: bool
    """Whether an example's result depends on the examples beside it."""
    random: bool
    """Whether it draws random numbers, as active dropout does."""
    result: Result
    signature: Signature
    """With the tensors that have an axis of examples."""


@torch.no_grad()
def probe(model: nn.Module, signature: Signature, tensors: Sequence[Tensor]) -> Probe:
    """Return what a module's forward does with some examples, together and each alone.

    Args:
        model: the module; a copy of it is run.
        signature: of the call.
        tensors: what a single member sees; other numbers are drawn, as far as the module takes
            them.

    Raises:
        ArgumentError: (a ``ValueError``) the module is compiled by ``torch.jit``, does not take
            these, or returns no tensors of real numbers; it changes an attribute, a buffer or a
            parameter of its own, so that it would return something else the next time; or it
            draws from another generator than PyTorch's.
    """
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            came = f"a ScriptModule in {name!r}" if name else "a ScriptModule"
            raise ArgumentError("model", "a module of Python", came)
    found, refusal = None, None
    for axes in _readings(tensors):
        if found is not None and not any(each.examples for each in axes):
            break
        try:
            tried = _probed(model, replace(signature, axes=axes), tensors)
        except _NotTakenError as error:
            refusal = refusal or error.said
            continue
        if found is None or not tried.coupled:
            found = tried
        if not tried.coupled:
            break
    if found is None:
        raise refusal or ArgumentError("model", "a forward that can be tried", "none")
    pairs = zip(signature.axes, found.signature.axes, strict=True)
    known = tuple(Axes(given.members, read.examples) for given, read in pairs)
    return replace(found, signature=replace(signature, axes=known))


class _NotTakenError(Exception):
    """A module does not take inputs that are read in this way."""

    def __init__(self, said: ArgumentError) -> None:
        super().__init__(said)
        self.said = said


def _readings(tensors: Sequence[Tensor]) -> Iterator[tuple[Axes, ...]]:
    """Yield the ways to read inputs: which have an axis of examples, the likeliest first.

    A tensor whose first axis is as long as that of the first one may be a mask of as many tokens.
    """
    each = range(len(tensors))
    first = next((at for at in each if tensors[at].dim()), 0)
    count = tensors[first].shape[:1]
    may = [bool(count) and value.shape[:1] == count for value in tensors]
    others = [at for at in each if may[at] and at != first]
    readings = [may, *([m and i != at for i, m in enumerate(may)] for at in others)]
    if len(others) > 1:
        readings.append([i == first and may[i] for i in each])
    for reading in (*readings, [False] * len(may)):  # the last: a batch as it is, and no other
        yield tuple(Axes(members=False, examples=flag) for flag in reading)


def _probed(model: nn.Module, signature: Signature, tensors: Sequence[Tensor]) -> Probe:
    """Return what a forward does with inputs that are read in one way."""
    copied, given = tried(model, signature, tensors)
    call = _Call(copied, signature)
    together, draws = call(given)
    tree = _require_real_tensors(model, together)
    parts = tree.tensors(together)
    count = _examples_in(signature, given)
    try:
        alone = [call(_one(signature, given, at))[0] for at in range(count)]
    except _MISTAKES:  # a norm that needs more than one value a channel
        alone = []
    # Twice, since the first may fill a cache that was filled for one example before.
    again = call(given)[0]
    before = _held(copied)
    # Another thread may draw at the time, but hardly each time.
    if all(call.draws_elsewhere(given) for _ in range(3)):
        came = f"{type(model).__name__}, which draws from Python's or NumPy's"
        raise ArgumentError("model", "a forward that draws from PyTorch's generator", came)
    changed = _changed(before, _held(copied))
    same = tree_of(again, _pytree.keystr)[1]
    if changed is not None or len(same) != len(parts) or not all(map(_alike, parts, same)):
        raise ArgumentError(
            "model",
            "a forward that leaves the module as it was",
            f"{type(model).__name__}, which changes {changed or 'what it returns the next time'}",
            "Members share one module, so take its state as an input and return it: output, state "
            "= model(x, state). BatchNorm and spectral_norm: call model.eval().",
        )
    if not all(part.dim() and len(part) == count for part in parts):
        return Probe(True, draws, Result(tree, None), signature)
    _require_same_rest(tree, alone)
    apart = bool(alone) and all(_is_part(tree, one, parts, at) for at, one in enumerate(alone))
    shapes = tuple(tuple(part.shape[1:]) for part in parts)
    return Probe(not apart, draws, Result(tree, shapes), signature)


def _require_real_tensors(model: nn.Module, result: object) -> Tree:
    """Return the tree of a result, which has to hold tensors of real numbers."""
    name = type(model).__name__
    tree, tensors = tree_of(result, lambda path: "result" + _pytree.keystr(path))
    if not tensors:
        needed, came = "a module that returns a tensor", f"{name}, which returns {kind_of(result)}"
        known = not isinstance(result, float | int | str | bool | type(None) | dict | list | tuple)
        advice = "torch.export.register_dataclass makes a class of yours known." if known else ""
        raise ArgumentError("model", needed, came, advice)
    for label, tensor in zip(tree.names(), tensors, strict=True):
        if tensor.is_complex():
            where = "" if label == "result" else f" in {label}"
            came = f"{name}, which returns {tensor.dtype}{where}"
            raise ArgumentError("model", "a module that returns real numbers", came)
    if not any(tensor.dim() for tensor in tensors):
        came = "one that returns a single number"
        raise ArgumentError("model", "a module that returns [batch, ...]", came)
    return tree


def _require_same_rest(tree: Tree, results: list[Any]) -> None:
    """Refuse a result with a value that is no tensor and depends on how many examples there are."""
    for result in results:
        leaves, spec = _pytree.tree_flatten(result)
        if spec != tree.spec:
            continue
        for at, (known, came) in enumerate(zip(tree.leaves, leaves, strict=True)):
            if at not in tree.places and not is_same(known, came):
                label = tree.labels()[at]
                needed = f"a module that returns tensors, and what is always the same, in {label}"
                came = f"{known!r} for some examples and {came!r} for one"
                raise ArgumentError("model", needed, came, "Return it as a tensor, or not at all.")


def _is_part(tree: Tree, alone: Any, parts: list[Tensor], at: int) -> bool:
    """Return whether an example's result is a part of what was made of it and others."""
    # By the numbers alone: `squeeze` takes away the axis of a single example.
    leaves, spec = _pytree.tree_flatten(alone)
    if spec != tree.spec:
        return False
    for place, part in zip(tree.places, parts, strict=True):
        one, whole = leaves[place], part[at]
        if not isinstance(one, Tensor) or one.numel() != whole.numel():
            return False
        if not alike(one.reshape(whole.shape), whole, part):
            return False
    return True


def alike(one: Tensor, other: Tensor, whole: Tensor | None = None) -> bool:
    """Return whether two results are the same but for what rounding makes of them.

    Args:
        one: a result.
        other: the same of other company.
        whole: results of that kind, whose size tells what is little; the second by default.
    """
    sizes = (other if whole is None else whole).float().nan_to_num(0, 0, 0).abs()
    little = 1e-4 * float(sizes.max()) if sizes.numel() else 0.0
    return torch.allclose(one.float(), other.float(), rtol=1e-3, atol=little, equal_nan=True)


def _examples_in(signature: Signature, tensors: Sequence[Tensor]) -> int:
    pairs = zip(tensors, signature.axes, strict=True)
    return next((len(value) for value, axes in pairs if axes.examples), 1)


def _one(signature: Signature, tensors: Sequence[Tensor], at: int) -> list[Tensor]:
    """Return the inputs of one example."""
    pairs = zip(tensors, signature.axes, strict=True)
    return [value[at : at + 1] if axes.examples else value for value, axes in pairs]


def tried(
    model: nn.Module, signature: Signature, tensors: Sequence[Tensor]
) -> tuple[nn.Module, list[Tensor]]:
    """Return what `probe` runs: a copy with other parameters, and inputs that it takes."""
    copied = independent_copy(model, _stirring())
    pairs = list(zip(tensors, signature.axes, strict=True))
    mixed = [_mixed(value) if axes.examples else value for value, axes in pairs]
    # Numbers with a meaning, such as words, are not drawn.
    may = [axes.examples and value.is_floating_point() for value, axes in pairs]
    if any(may):
        generator = torch.Generator().manual_seed(0)
        drawn = [
            torch.randn(value.shape, generator=generator).to(value) if draws else value
            for value, draws in zip(mixed, may, strict=True)
        ]
        with suppress(*_MISTAKES):
            leaves = _pytree.tree_leaves(_Call(copied, signature)(drawn)[0])
            if not any(_has_nan(leaf) for leaf in leaves):
                return copied, drawn
        copied = independent_copy(model, _stirring())
    _require_taken(_Call(copied, signature), mixed, tensors)
    return independent_copy(model, _stirring()), mixed


def _has_nan(value: object) -> bool:
    return isinstance(value, Tensor) and bool(value.isnan().any())


def _mixed(x: Tensor) -> Tensor:
    """Return examples that differ, of numbers that occur in some given ones."""
    chosen = [x[at * len(x) // _EXAMPLES] for at in range(_EXAMPLES)]
    rolled = [one.flatten().roll(at).view(one.shape) for at, one in enumerate(chosen)]
    examples = torch.stack(rolled)
    if all(torch.equal(one, chosen[0]) for one in chosen) and examples[1].numel():
        # What adds up to the same in another order is another sum for a number that is repeated.
        examples[1] = examples[1].flatten()[0]
    return examples


class _Call:
    """A module that is called with the tensors of a signature, from a generator of its own."""

    def __init__(self, model: nn.Module, signature: Signature) -> None:
        self.model, self._signature = model, signature

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Any, bool]:
        """Return what the module makes of these, and whether it draws random numbers."""
        args, kwargs = self._signature.arguments([value.clone() for value in tensors])
        # The caller's generator would be left elsewhere than a kept result leaves it.
        with LOCK, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            before = torch.get_rng_state()
            result = self.model(*args, **kwargs)
            return result, not torch.equal(before, torch.get_rng_state())

    def draws_elsewhere(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether Python's or NumPy's generator moves, and leave them as they were."""
        args, kwargs = self._signature.arguments([value.clone() for value in tensors])
        with LOCK, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
            self.model(*args, **kwargs)
            moved = random.getstate() != python
            moved = moved or str(np.random.get_state(legacy=False)) != str(numpy)  # noqa: NPY002
            if moved:
                random.setstate(python)
                np.random.set_state(numpy)  # noqa: NPY002
            return moved

    def names(self) -> list[str]:
        """Return what the tensors are called in messages."""
        return self._signature.tree.names()


def _require_taken(call: _Call, mixed: list[Tensor], tensors: Sequence[Tensor]) -> None:
    """Refuse inputs where the module takes none of their kind."""
    try:
        call(mixed)
    except _MISTAKES as error:
        advice = ""
        with suppress(*_MISTAKES):
            call([value[None] for value in tensors])
            advice = (
                "An axis for the batch is missing: x[:, None] where each member has an example of "
                "its own, x[None] where they share one."
            )
        names, name = call.names(), type(call.model).__name__
        came = ", ".join(f"{list(value.shape)} of {value.dtype}" for value in tensors)
        said = ArgumentError(
            names[0] if len(names) == 1 else ", ".join(names),
            f"examples that {name} takes, [batch, ...] for each member",
            f"{came} ({first_line(error)})",
            advice,
        )
        said.__cause__ = error
        raise _NotTakenError(said) from error


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
