"""How a task's evaluation is divided, so that others can do a part of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from tinkering.engines.evaluation import Evaluation
from tinkering.errors import ArgumentError


@runtime_checkable
class Task(Protocol):
    """What the loop needs of an evaluation: see `tinkering.runs.evolve.Evaluator`."""

    def evaluate(self, population: Any, generation: int) -> Evaluation:
        """Return what the population was worth."""

    def measure(self, params: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Return held-out figures of one parameter set."""


@runtime_checkable
class Divisible(Task, Protocol):
    """A task whose parts come to the same bits as the whole, whoever evaluates them.

    What `tinkering.engines.evaluation.merged` makes of all parts in their order is what
    ``evaluate`` returns.
    """

    def parts(self, population: Any, count: int) -> Sequence[slice]:
        """Return about `count` parts; that they are others must not change the result."""

    def part(self, population: Any, generation: int, part: slice) -> Evaluation:
        """Return the evaluation of one part."""


def divisible(task: Task) -> Divisible:
    """Return the task, or one that hands it slices of a population where it has no parts."""
    return task if isinstance(task, Divisible) else _ByMembers(task)


class _ByMembers:
    """A task whose ``evaluate`` is given some members at a time.

    That a member's fitness does not depend on which others are evaluated with it is up to the
    task.
    """

    def __init__(self, task: Task) -> None:
        self._task = task

    def evaluate(self, population: Any, generation: int) -> Evaluation:
        return self._task.evaluate(population, generation)

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

    def part(self, population: Any, generation: int, part: slice) -> Evaluation:
        """Return the evaluation of some members.

        Raises:
            ArgumentError: (a ``ValueError``) its fitness is not one scalar per member.
        """
        evaluation: Any = self._task.evaluate(population[part], generation)
        members, came = part.stop - part.start, type(evaluation).__name__
        if isinstance(evaluation, Evaluation):
            if evaluation.fitness.shape == (members,):
                return evaluation
            came = str(list(evaluation.fitness.shape))
        raise ArgumentError(
            "make_task",
            f"a task whose evaluate returns an Evaluation with fitness of shape [{members}] "
            f"for {members} members",
            came,
            "One whose members are others needs parts and part of its own.",
        )
