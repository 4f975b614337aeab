"""The loop: ask, evaluate, tell, until a limit is reached.

It knows its strategy, its evaluator and its callbacks by their protocols only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from tinkering.errors import ArgumentError
from tinkering.runs.interrupt import Interrupt

State = TypeVar("State")
Record = dict[str, int | float]
"""What is known of a generation, as it stands in ``metrics.jsonl``."""


@runtime_checkable
class Scores(Protocol):
    """What an evaluation returns where there is more to tell than a number a member."""

    @property
    def fitness(self) -> Tensor:
        """Of each member, ``[members]``."""


@runtime_checkable
class Strategy(Protocol[State]):
    """What the loop needs of a strategy."""

    def ask(self, state: State) -> Any:
        """Return the population of a generation."""

    def tell(self, state: State, fitness: Any) -> State:
        """Return the state after a generation, from what the evaluator returned."""

    def centre(self, state: State) -> Mapping[str, Tensor]:
        """Return the parameters to use, by name."""


@runtime_checkable
class Evaluator(Protocol):
    """What the loop needs of an evaluation."""

    def fitness(self, population: Any, generation: int) -> Tensor | Scores:
        """Return the fitness of each member, ``[members]``, or `Scores` with that."""

    def images(self, population: Any) -> int:
        """Return the model-images that evaluating this population takes: members x images."""

    def measure(self, params: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Return held-out figures of one parameter set, such as ``test_accuracy``."""


@dataclass(frozen=True)
class Limits:
    """When a run ends: at whichever limit comes first.

    Args:
        seconds: time after which no further generation begins.
        generations: generations at most.
        measure_every: seconds between two held-out measurements; there is always one at
            the end.

    Raises:
        ArgumentError: (a ``ValueError``) a limit is negative, or there is none.
    """

    seconds: float | None = None
    generations: int | None = None
    measure_every: float = 10.0

    def __post_init__(self) -> None:
        if self.seconds is None and self.generations is None:
            raise ArgumentError("seconds", "a limit: seconds, generations or both", None)
        for name in ("seconds", "generations", "measure_every"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ArgumentError(name, "a finite number of at least 0", value)


@dataclass(frozen=True)
class Outcome(Generic[State]):
    """What a run came to."""

    state: State
    """The strategy's last state."""
    reason: str
    """Why it ended: ``"seconds"``, ``"generations"`` or ``"interrupted"``."""
    generations: int
    evaluations: int
    """Model-images evaluated for fitness: members x images, over all generations."""
    seconds: float
    """Time of the loop, measurements included."""
    measured: Mapping[str, float]
    """The last held-out figures: those of `state`."""


def evolve(
    strategy: Strategy[State],
    state: State,
    evaluator: Evaluator,
    limits: Limits,
    callbacks: Sequence[Callable[[Record], None]] = (),
) -> Outcome[State]:
    """Run generations until a limit is reached or Ctrl-C is pressed, and measure the result.

    After Ctrl-C the generation under way is finished and the outcome is as complete as
    any, with the reason ``"interrupted"``; a second Ctrl-C raises ``KeyboardInterrupt``.

    Args:
        strategy: asked for populations and told their fitness.
        state: the strategy's state to start from.
        evaluator: gives the fitness of a population, and held-out figures of a centre.
        limits: when to end.
        callbacks: called with the record of each generation, in order: ``generation``
            (1 is the first), ``evaluations``, ``seconds``, ``fitness_mean``,
            ``fitness_best``, ``fitness_low`` and ``fitness_high`` (the 10 % and 90 %
            quantiles), and the held-out figures where they were measured.
    """
    start = time.monotonic()
    generation = evaluations = 0
    measured_at = seconds = 0.0
    measured: Mapping[str, float] = {}
    with Interrupt() as interrupt:
        reason = _why_end(limits, interrupt, seconds, generation)
        while reason is None:
            population = strategy.ask(state)
            fitness = evaluator.fitness(population, generation)
            state = strategy.tell(state, fitness)
            generation += 1
            evaluations += evaluator.images(population)
            seconds = time.monotonic() - start
            record: Record = {
                "generation": generation,
                "evaluations": evaluations,
                "seconds": seconds,
                **_summary(fitness if isinstance(fitness, Tensor) else fitness.fitness),
            }
            # Asked once a generation: a Ctrl-C later in it ends the next one, which is measured.
            reason = _why_end(limits, interrupt, seconds, generation)
            if reason or seconds - measured_at >= limits.measure_every:
                measured = evaluator.measure(strategy.centre(state))
                measured_at = time.monotonic() - start
                record.update(measured)
            for callback in callbacks:
                callback(record)
        if not generation:
            measured = evaluator.measure(strategy.centre(state))
    return Outcome(state, reason, generation, evaluations, time.monotonic() - start, measured)


def _why_end(limits: Limits, interrupt: Interrupt, seconds: float, generation: int) -> str | None:
    if interrupt.pressed:
        return "interrupted"
    if limits.generations is not None and generation >= limits.generations:
        return "generations"
    if limits.seconds is not None and seconds >= limits.seconds:
        return "seconds"
    return None


def _summary(fitness: Tensor) -> Record:
    """Return mean, best and spread of the finite fitness; a NaN must not hide how the rest fare.

    ``fitness_low`` and ``fitness_high`` are the 10 % and 90 % quantiles (nearest rank).
    """
    finite = fitness[torch.isfinite(fitness)]
    if not len(finite):
        names = ("fitness_mean", "fitness_best", "fitness_low", "fitness_high")
        return dict.fromkeys(names, float("-inf"))
    # Sorted, since torch.quantile takes no more than 2**24 numbers.
    ordered = finite.sort().values
    last = len(ordered) - 1
    return {
        "fitness_mean": finite.mean().item(),
        "fitness_best": ordered[last].item(),
        "fitness_low": ordered[round(0.1 * last)].item(),
        "fitness_high": ordered[round(0.9 * last)].item(),
    }
