"""The engines: one contract, one table."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Protocol, runtime_checkable

from torch import Tensor

from tinkering.engines import batched, factored, sequential, vmapped
from tinkering.engines.activations import Activations
from tinkering.engines.cost import Load, load_of
from tinkering.engines.evaluation import Evaluation
from tinkering.engines.feedback import Feedback
from tinkering.engines.job import Job
from tinkering.engines.planning import Chosen, Plan, Run, make_plan
from tinkering.engines.rating import Rater, rated
from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.graph.signature import Batch
from tinkering.noise import Dense
from tinkering.population import (
    FedBackActivations,
    PerturbedActivations,
    PerturbedPopulation,
    Population,
)

ENGINES: dict[str, Callable[[Job], Run]] = {
    "batched": batched.prepare,
    "factored": factored.prepare,
    "sequential": sequential.prepare,
    "vmapped": vmapped.prepare,
}
"""Each prepares a job for members with weights of their own; it raises `UnsupportedLayerError`
where it cannot do it."""

COSTS: dict[str, Callable[[Load], float]] = {
    "batched": batched.cost,
    "factored": factored.cost,
    "sequential": sequential.cost,
}
"""What those that are chosen from cost; ``vmapped`` is a reference for them."""


@runtime_checkable
class Engine(Protocol):
    """A population and a module, ready to be evaluated."""

    @property
    def job(self) -> Job:
        """What is evaluated."""

    @property
    def name(self) -> str:
        """Of the engine, as a user asks for it."""

    @property
    def reason(self) -> str:
        """Why it is this one."""

    def plan(self, batch: Batch, budget: int | None, keeps_outputs: bool, may_keep: bool) -> Plan:
        """Return how a batch would be evaluated: see `make_plan`."""

    def outputs(self, batch: Batch, plan: Plan) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield some members at a time, and the tensors of what they return."""

    def evaluate(self, batch: Batch, rater: Rater, plan: Plan) -> Evaluation:
        """Return what the members are worth, without holding all that they return."""


@dataclass(frozen=True)
class Members:
    """Members with weights of their own, which return outputs."""

    job: Job
    name: str
    reason: str
    run: Run

    def plan(self, batch: Batch, budget: int | None, keeps_outputs: bool, may_keep: bool) -> Plan:
        """Return how a batch would be evaluated: see `make_plan`."""
        cost = COSTS.get(self.name)
        engine = Chosen(self.name, self.reason, self.run.built, self.run.notes, cost)
        return make_plan(self.job, batch, engine, budget, keeps_outputs, may_keep)

    def outputs(self, batch: Batch, plan: Plan) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield some members at a time, and the tensors of what they return."""
        return self.run(batch, plan)

    def evaluate(self, batch: Batch, rater: Rater, plan: Plan) -> Evaluation:
        """Return what the members are worth, without holding all that they return."""
        fitness = rated(rater, self.outputs(batch, plan))
        seen = batch.members * batch.examples
        return Evaluation(fitness, None, float(seen), seen)


def names_for(population: Population) -> tuple[str, ...]:
    """Return the names of the engines that evaluate a kind of population."""
    if isinstance(population, FedBackActivations):
        return (Feedback.name,)
    return ("activations",) if isinstance(population, PerturbedActivations) else tuple(ENGINES)


def prepared(job: Job, name: str, reason: str = "asked for") -> Engine:
    """Return an engine for a job.

    Args:
        job: what is to be evaluated.
        name: of the engine, or ``"auto"`` for the fastest that can do it.
        reason: why it is this one.

    Raises:
        UnsupportedLayerError: it cannot evaluate the module.
        ArgumentError: (a ``ValueError``) members are to be random, and nobody said how.
    """
    population = job.population
    if isinstance(population, FedBackActivations):
        return Feedback(job, population)
    if isinstance(population, PerturbedActivations):
        return Activations(job, population)
    if job.random and job.randomness == "error":
        raise ArgumentError(
            "randomness",
            '"same" or "different", because the module has active dropout',
            '"error"',
            "For no dropout call model.eval().",
        )
    if name == "auto":
        return _chosen(job)
    return Members(job, name, reason, ENGINES[name](job))


def _chosen(job: Job) -> Engine:
    """Return the engine that is expected to be the fastest of those that can do a job."""
    population = job.population
    names, reason = ["batched", "sequential"], "every member has weights of its own"
    if isinstance(population, PerturbedPopulation):
        names.append("factored")
        reason = "members share a centre, so one pass serves many of them"
        if isinstance(population.noise, Dense):
            reason = "members share a centre, but dense noise is as large as the weights"
    if job.program is None or job.random:  # those that run steps cannot do it, and say why
        order = sorted(names, key=lambda name: (name != "factored", name != "sequential"))
    elif isinstance(population, PerturbedPopulation) and not isinstance(population.noise, Dense):
        order = ["factored", *_by_cost(job, names[:2])]
    else:
        order = _by_cost(job, names)
    return _first(job, order, reason)


def _by_cost(job: Job, names: Sequence[str]) -> list[str]:
    """Return the names of engines, the one with the smallest expected cost first."""
    load = load_of(job, job.batch)
    return sorted(names, key=lambda name: COSTS[name](load))


def _first(job: Job, names: Sequence[str], reason: str) -> Engine:
    """Return the first of some engines that can do a job: one of them can."""
    missed = ""
    for name in names:
        try:
            engine = prepared(job, name, reason)
        except UnsupportedLayerError as error:
            if not missed:
                missed = reason = f"{reason.partition(',')[0]}, but {error}"
            continue
        if missed and name in _INSTEAD and isinstance(job.population, PerturbedPopulation):
            text = f"{missed} {_INSTEAD[name]}"
            warnings.warn(text, stacklevel=_levels_to_the_caller(sys._getframe()))
        return engine
    raise AssertionError("members can always be evaluated one after the other")


_INSTEAD = {
    "batched": "Members' weights are built, and multiplied in one product.",
    "sequential": "Members are evaluated one after the other.",
}
"""What an engine does in place of a faster one."""


def _levels_to_the_caller(frame: FrameType) -> int:
    """Return how many calls lie between a frame and whoever called this package."""
    package, levels = __name__.partition(".")[0], 1
    while frame.f_back is not None:
        name = frame.f_globals.get("__name__", "")
        if name.partition(".")[0] != package and name != "torch.utils._contextlib":
            break
        frame, levels = frame.f_back, levels + 1
    return levels
