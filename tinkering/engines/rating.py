"""Rating: a fitness function is called on some members at a time, and has to rate each alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from weakref import WeakSet

import torch
from torch import Tensor, nn

from tinkering.engines.thread_pool import map_beside
from tinkering.errors import ArgumentError
from tinkering.required import kind_of, require_tensor

Fitness = Callable[[Tensor, Tensor], Tensor]
"""``(logits [members, batch, classes], labels [members, batch]) -> [members]``.

It is called on some members at a time, in their order and on one thread, so that nobody holds
all logits: a member's fitness is a function of its own logits and labels. What ranks or
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


def checked(fitness: Fitness, logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``fitness(logits, labels)``, which must be a number for every member.

    Integers and booleans become float32.

    Raises:
        ArgumentError: (a ``ValueError``) it is anything else. A mean over the whole
            population would give every member the same fitness, and nothing would evolve.
    """
    if isinstance(fitness, nn.Module) or not callable(fitness):
        raise ArgumentError(
            "fitness",
            "a function of logits and labels that returns one number a member",
            kind_of(fitness),
            "A loss of PyTorch averages over members; negative_cross_entropy does not.",
        )
    # Labels of a copy's: a fitness that writes to them must not reach the caller's.
    result = fitness(logits, labels.clone())
    needed = f"a tensor of shape [members] = [{len(logits)}], one number a member"
    require_tensor("fitness", result, needed)
    if result.shape != logits.shape[:1]:
        raise ArgumentError(
            "fitness",
            needed,
            f"a tensor of shape {list(result.shape)}",
            "Average over the images of a member (dimension 1), not over the members.",
        )
    if result.is_complex():
        raise ArgumentError("fitness", "real numbers", result.dtype)
    return result if result.is_floating_point() else result.float()


def rated(fitness: Fitness, portions: Iterable[tuple[slice, Tensor]], labels: Tensor) -> Tensor:
    """Return the fitness of all members, ``[members]``, from some members' logits at a time.

    Args:
        fitness: of a member.
        portions: members and their logits ``[members, batch, classes]``, in order.
        labels: ``[members, batch]`` of all members.

    Raises:
        ArgumentError: (a ``ValueError``) as in `checked`; or the fitness of a member depends on
            who is beside it. A function is asked for that once, by calling it again.

    Example:
        >>> logits, labels = torch.randn(4, 1, 3), torch.zeros(4, 1, dtype=torch.int64)
        >>> halves = [(slice(0, 2), logits[:2]), (slice(2, 4), logits[2:])]
        >>> torch.equal(rated(accuracy, halves, labels), accuracy(logits, labels))
        True
    """
    shown: list[Tensor] | None = None if _is_known(fitness) else []
    rates = map_beside(partial(_rate, fitness, labels), _noted(portions, shown))
    result = torch.cat(list(rates))
    if shown and len(result) > 1:
        first = torch.cat(shown)
        require_independent(fitness, first, labels, result[: len(first)])
    return result


def _noted(
    portions: Iterable[tuple[slice, Tensor]], shown: list[Tensor] | None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the portions, and keep the first members', where they are asked for."""
    for members, logits in portions:
        if shown is not None and members.start < _SHOWN:
            shown.append(logits.clone())  # the fitness may write to what it is given
        yield members, logits


def _rate(fitness: Fitness, labels: Tensor, portion: tuple[slice, Tensor]) -> Tensor:
    members, logits = portion
    return checked(fitness, logits, labels[members])


def require_independent(fitness: Fitness, logits: Tensor, labels: Tensor, result: Tensor) -> None:
    """Refuse a fitness whose value for a member depends on the members beside it.

    Args:
        fitness: of a member.
        logits: ``[members, batch, classes]`` of the first members, at least two.
        labels: ``[members, batch]`` of these at least.
        result: what the fitness made of them, together or some at a time.

    Raises:
        ArgumentError: (a ``ValueError``) it does.
    """
    count = len(logits)
    few = min(_COMPARED, (count + 1) // 2)

    again = partial(_again, fitness, logits, labels[:count])
    # Of the first, of the last (a maximum, say, is in one part alone), and of both together.
    parts = [slice(0, few), slice(count - few, count), slice(0, min(count, 2 * few))]
    spread = _spread(result)
    if all(_alike(again(part), result[part], spread) for part in parts):
        if spread and _spread(logits):  # members that are all alike say nothing
            _remember(fitness)
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


def _again(fitness: Fitness, logits: Tensor, labels: Tensor, part: slice) -> Tensor:
    return checked(fitness, logits[part].clone(), labels[part])


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
    finite = values[torch.isfinite(values)]
    return float(finite.max() - finite.min()) if len(finite) else 0.0


def _alike(one: Tensor, other: Tensor, spread: float) -> bool:
    """Return whether two ratings are the same, but for what adds up to nothing beside `spread`."""
    one, other = one.double(), other.double()
    return torch.allclose(one, other, rtol=1e-6, atol=1e-3 * spread, equal_nan=True)
