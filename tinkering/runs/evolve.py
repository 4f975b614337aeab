"""The loop: ask, evaluate, tell, until a limit is reached.

It knows its strategy, its evaluator and its callbacks by their protocols only.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from tinkering.engines.evaluation import Evaluation
from tinkering.errors import ArgumentError
from tinkering.ranges import require_not_negative
from tinkering.runs.checkpoint import Progress
from tinkering.runs.interrupt import Interrupt
from tinkering.runs.watch import Watch

State = TypeVar("State")
Record = dict[str, Any]
"""What is known of a generation, as it stands in ``metrics.jsonl``."""


@runtime_checkable
class Strategy(Protocol[State]):
    """What the loop needs of a strategy."""

    def ask(self, state: State) -> Any:
        """Return the population of a generation."""

    def tell(self, state: State, evaluation: Evaluation) -> State:
        """Return the state after a generation, from what the evaluator returned."""

    def centre(self, state: State) -> Mapping[str, Tensor]:
        """Return the parameters to use, by name."""


@runtime_checkable
class Evaluator(Protocol):
    """What the loop needs of an evaluation."""

    def evaluate(self, population: Any, generation: int) -> Evaluation:
        """Return what the population was worth in a generation, the first of which is 0."""

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
        limits = {"seconds": self.seconds, "generations": self.generations}
        require_not_negative(**limits, measure_every=self.measure_every)


@dataclass(frozen=True)
class Outcome(Generic[State]):
    """What a run came to."""

    state: State
    """The strategy's last state."""
    reason: str
    """Why it ended: ``"seconds"``, ``"generations"``, ``"interrupted"`` (Ctrl-C) or
    ``"terminated"`` (SIGTERM)."""
    generations: int
    evaluations: int
    """Forward passes for fitness, over all generations, as `Evaluation.evaluations` counts them:
    members times the examples that each sees. A member that perturbs an activation counts in full,
    though it goes through the last layers alone."""
    seconds: float
    """Time of the loop, measurements included."""
    measured: Mapping[str, float]
    """The last held-out figures: those of `state`."""
    troubles: Mapping[str, int] = field(default_factory=dict)
    """Generations in which something went wrong, by what it was: see `tinkering.runs.watch`."""


def evolve(
    strategy: Strategy[State],
    state: State,
    evaluator: Evaluator,
    limits: Limits,
    callbacks: Sequence[Callable[[Record], None]] = (),
    progress: Progress | None = None,
    keep: Callable[[Progress, State], None] | None = None,
) -> Outcome[State]:
    """Run generations until a limit is reached or Ctrl-C is pressed, and measure the result.

    After Ctrl-C or SIGTERM the generation under way is finished and the outcome is as complete as
    any, with the reason ``"interrupted"`` or ``"terminated"``; a second one raises
    ``KeyboardInterrupt``.

    Args:
        strategy: asked for populations and told their evaluations.
        state: the strategy's state to start from.
        evaluator: evaluates a population, and gives held-out figures of a centre.
        limits: when to end, counted over the whole run.
        callbacks: called with the record of each generation, in order: ``generation``
            (1 is the first), ``evaluations``, ``seconds``, ``fitness_mean``,
            ``fitness_best``, ``fitness_low`` and ``fitness_high`` (the 10 % and 90 %
            quantiles), and the held-out figures where they were measured; ``troubles``, a list,
            where something went wrong.
        progress: what the run had done when it stood at `state`; nothing by default.
        keep: called after the callbacks with what the run has done and the state, such as
            `tinkering.runs.checkpoint.Checkpoints.save`.
    """
    done = progress or Progress()
    start = time.monotonic() - done.seconds
    generation, evaluations, seconds = done.generation, done.evaluations, done.seconds
    measured_at = seconds
    measured: Mapping[str, float] | None = None
    watch, troubles = Watch(), Counter(done.troubles)
    with Interrupt() as interrupt:
        reason = _why_end(limits, interrupt, seconds, generation)
        while reason is None:
            population = strategy.ask(state)
            evaluation = evaluator.evaluate(population, generation)
            state = strategy.tell(state, evaluation)
            generation += 1
            evaluations += evaluation.evaluations
            seconds = time.monotonic() - start
            fitness = evaluation.fitness
            if not fitness.is_floating_point():  # counts, or whether a member succeeded
                fitness = fitness.double()
            record: Record = {
                "generation": generation,
                "evaluations": evaluations,
                "seconds": seconds,
                **_summary(fitness),
            }
            wrong = watch.generation(fitness, getattr(state, "told", ""))
            # Asked once a generation: a Ctrl-C later in it ends the next one, which is measured.
            reason = _why_end(limits, interrupt, seconds, generation)
            if reason or seconds - measured_at >= limits.measure_every:
                measured = evaluator.measure(strategy.centre(state))
                measured_at = time.monotonic() - start
                record.update(measured)
                wrong += watch.centre(measured)
            if wrong:
                record["troubles"] = wrong
                troubles.update(wrong)
            for callback in callbacks:
                callback(record)
            if keep is not None:
                seconds = time.monotonic() - start
                keep(Progress(generation, evaluations, seconds, dict(troubles)), state)
        if measured is None:  # there was no generation
            measured = evaluator.measure(strategy.centre(state))
    seconds = time.monotonic() - start
    return Outcome(state, reason, generation, evaluations, seconds, measured, dict(troubles))


def _why_end(limits: Limits, interrupt: Interrupt, seconds: float, generation: int) -> str | None:
    if interrupt.signal is not None:
        return "interrupted" if interrupt.signal == signal.SIGINT else "terminated"
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
