"""Rating: a fitness function is called on some members at a time, and has to rate each alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from tinkering.engines.thread_pool import map_beside
from tinkering.errors import ArgumentError
from tinkering.graph.tree import Tree
from tinkering.required import kind_of, require_tensor

Fitness = Callable[[Any, Any], Tensor]
"""``(outputs, targets) -> [members]``: trees whose tensors are ``[members, batch, ...]``, such as
logits ``[members, batch, classes]`` and labels ``[members, batch]``.

It is called on some members at a time, in their order and on one thread, so that nobody holds
all outputs: a member's fitness is a function of its own outputs and targets. What ranks or
normalises over members belongs behind it, to what `evaluate` returns; strategies do so by
themselves. The tensors it is given are its own to write to.
"""

_COMPARED = 16
"""Members, at most, whose fitness is computed again in other company."""
_SHOWN = 16
"""Members, at least, that are looked at where they come one by one."""
_REPEATS = 8
"""Times that a fitness has to give the same, before it is held not to be random."""
_independent: WeakSet[Fitness] = WeakSet()
"""Functions that rated members, which did differ, alike in other company."""


@dataclass(frozen=True)
class Targets:
    """What members are compared with, as a tree."""

    tree: Tree
    tensors: tuple[Tensor, ...]
    """``[batch, ...]``, or ``[members, batch, ...]`` where each member has its own."""
    own: tuple[bool, ...]
    """Of each tensor, whether each member has its own."""

    def of(self, members: slice) -> Any:
        """Return copies of some members', ``[members, batch, ...]``, which a fitness may change."""
        count = members.stop - members.start
        pairs = zip(self.tensors, self.own, strict=True)
        return self.tree.filled(
            [
                (value[members] if own else value.expand(count, *value.shape)).clone()
                for value, own in pairs
            ]
        )

    def of_examples(self, examples: slice, members: int, readings: int) -> Targets:
        """Return the targets of members that see one example each, some members an example.

        Args:
            examples: which.
            members: of each example.
            readings: how often a member's outputs are read.
        """
        tensors = [
            value[examples].repeat_interleave(members, 0).unsqueeze(1) for value in self.tensors
        ]
        read = [value.expand(-1, readings, *value.shape[2:]) for value in tensors]
        return Targets(self.tree, tuple(read), (True,) * len(read))


@dataclass(frozen=True)
class Rater:
    """A fitness function, with what it needs beside the outputs of members."""

    fitness: Fitness
    outputs: Callable[[Sequence[Tensor]], Any]
    """Makes the tree that the module returns of its tensors."""
    targets: Targets

    def __call__(self, members: slice, tensors: Sequence[Tensor]) -> Tensor:
        """Return the fitness of some members, which must be one scalar per member.

        Integers and booleans become float32.

        Args:
            members: which.
            tensors: of their outputs; the fitness may write to them.

        Raises:
            ArgumentError: (a ``ValueError``) it is anything else. A mean over the whole
                population would give every member the same fitness, and nothing would evolve.
        """
        if isinstance(self.fitness, nn.Module) or not callable(self.fitness):
            raise ArgumentError(
                "fitness",
                "a function of outputs and targets that returns one scalar per member",
                kind_of(self.fitness),
                "A loss of PyTorch averages over members; negative_cross_entropy does not.",
            )
        count = members.stop - members.start
        result = self.fitness(self.outputs(tensors), self.targets.of(members))
        needed = f"a tensor of shape [members] = [{count}], one scalar per member"
        require_tensor("fitness", result, needed)
        if result.shape != (count,):
            raise ArgumentError(
                "fitness",
                needed,
                f"a tensor of shape {list(result.shape)}",
                "Average over the examples of a member (dimension 1), not over the members.",
            )
        if result.is_complex():
            raise ArgumentError("fitness", "real numbers", result.dtype)
        return result if result.is_floating_point() else result.float()


Portions = Iterable[tuple[slice, list[Tensor]]]
"""Members, and the tensors of their outputs, ``[members, batch, ...]`` each, in order."""


def rated(rater: Rater, portions: Portions) -> Tensor:
    """Return the fitness of all members, ``[members]``, from some members' outputs at a time.

    Raises:
        ArgumentError: (a ``ValueError``) as the rater does; or the fitness of a member depends on
            who is beside it. A function is asked for that once, by calling it again.
    """
    shown: list[list[Tensor]] | None = None if _is_known(rater.fitness) else []
    rates = map_beside(partial(_rate, rater), _noted(portions, shown))
    result = torch.cat(list(rates))
    if shown and len(result) > 1:
        first = [torch.cat(each) for each in zip(*shown, strict=True)]
        require_independent(rater, first, result[: len(first[0])])
    return result


def _noted(portions: Portions, shown: list[list[Tensor]] | None) -> Portions:
    """Yield the portions, and keep the first members', where they are asked for."""
    for members, tensors in portions:
        if shown is not None and members.start < _SHOWN:
            shown.append([value.clone() for value in tensors])  # a fitness may write to its own
        yield members, tensors


def _rate(rater: Rater, portion: tuple[slice, list[Tensor]]) -> Tensor:
    return rater(*portion)


def require_independent(rater: Rater, tensors: list[Tensor], result: Tensor) -> None:
    """Refuse a fitness whose value for a member depends on the members beside it.

    Args:
        rater: of a member.
        tensors: of the outputs of the first members, at least two.
        result: what the fitness made of them, together or some at a time.

    Raises:
        ArgumentError: (a ``ValueError``) it does.
    """
    count = len(tensors[0])
    few = min(_COMPARED, (count + 1) // 2)

    again = partial(_again, rater, tensors)
    # Of the first, of the last (a maximum, say, is in one part alone), and of both together.
    parts = [slice(0, few), slice(count - few, count), slice(0, min(count, 2 * few))]
    spread = _spread(result)
    if all(_alike(again(part), result[part], spread) for part in parts):
        if spread and any(map(_spread, tensors)):  # members that are all alike say nothing
            _remember(rater.fitness)
        return
    first = again(parts[0])
    if not all(_alike(again(parts[0]), first, spread) for _ in range(_REPEATS)):
        return  # random: nothing can be said
    raise ArgumentError(
        "fitness",
        "a function that rates each member by itself, as it is called on some at a time",
        "one that gives a member another fitness beside other members",
        "To rank or normalise over members, do so with what evaluate returns.",
    )


def _again(rater: Rater, tensors: list[Tensor], part: slice) -> Tensor:
    return rater(part, [value[part].clone() for value in tensors])


def _is_known(fitness: Fitness) -> bool:
    try:
        return fitness in _independent
    except TypeError:  # an object without a hash, or to which no weak reference is possible
        return False


def _remember(fitness: Fitness) -> None:
    with suppress(TypeError):
        _independent.add(fitness)


def _spread(values: Tensor) -> float:
    """Return how far apart the finite ones of some values are."""
    finite = values[torch.isfinite(values)].double()
    return float(finite.max() - finite.min()) if len(finite) else 0.0


def _alike(one: Tensor, other: Tensor, spread: float) -> bool:
    """Return whether two ratings are the same, but for what adds up to nothing beside `spread`."""
    one, other = one.double(), other.double()
    return torch.allclose(one, other, rtol=1e-6, atol=1e-3 * spread, equal_nan=True)
