"""How a task's evaluation is divided, so that others can do a part of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tinkering.errors import ArgumentError


@runtime_checkable
class Task(Protocol):
    """What the loop needs of an evaluation: see `tinkering.runs.evolve.Evaluator`."""

    def fitness(self, population: Any, generation: int) -> Any:
        """Return the fitness of each member, ``[members]``, or scores with that."""

    def images(self, population: Any) -> int:
        """Return the model-images that evaluating this population takes."""

    def measure(self, params: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Return held-out figures of one parameter set."""


@runtime_checkable
class Divisible(Task, Protocol):
    """A task whose parts come to the same bits as the whole, whoever evaluates them."""

    def parts(self, population: Any, count: int) -> Sequence[slice]:
        """Return about `count` parts; that they are others must not change the result."""

    def part(self, population: Any, generation: int, part: slice) -> Any:
        """Return the result of one part."""

    def merged(self, population: Any, results: Sequence[Any]) -> Any:
        """Return what `fitness` would have, from the results of all parts in their order."""


def divisible(task: Task) -> Divisible:
    """Return the task, or one that hands it slices of a population where it has no parts."""
    return task if isinstance(task, Divisible) else _ByMembers(task)


class _ByMembers:
    """A task whose ``fitness`` is given some members at a time.

    That a member's fitness does not depend on which others are evaluated with it is up to the
    task.
    """

    def __init__(self, task: Task) -> None:
        self._task = task

    def fitness(self, population: Any, generation: int) -> Any:
        return self._task.fitness(population, generation)

    def images(self, population: Any) -> int:
        return self._task.images(population)

    def measure(self, params: Mapping[str, Tensor]) -> Mapping[str, float]:
        return self._task.measure(params)

    def parts(self, population: Any, count: int) -> list[slice]:
        """Return about `count` slices of an even number of members, so that pairs stay whole.

        Raises:
            ArgumentError: (a ``ValueError``) the population has no members to slice.
        """
        if not hasattr(population, "__len__"):
            needed = f"a task with parts of its own, for {type(population).__name__}"
            raise ArgumentError("make_task", needed, type(self._task).__name__)
        each = max(1, -(-len(population) // (2 * count))) * 2
        starts = range(0, len(population), each)
        return [slice(at, min(at + each, len(population))) for at in starts]

    def part(self, population: Any, generation: int, part: slice) -> Tensor:
        """Return the fitness of some members.

        Raises:
            ArgumentError: (a ``ValueError``) it is not one number a member.
        """
        fitness = self._task.fitness(population[part], generation)
        members = part.stop - part.start
        if not isinstance(fitness, Tensor) or fitness.shape != (members,):
            came = list(fitness.shape) if isinstance(fitness, Tensor) else type(fitness).__name__
            raise ArgumentError(
                "make_task",
                f"a task whose fitness is a tensor of shape [{members}] for {members} members",
                came,
                "A task that returns anything else needs parts, part and merged of its own.",
            )
        return fitness

    def merged(self, population: Any, results: Sequence[Tensor]) -> Tensor:
        del population
        return torch.cat(list(results))
