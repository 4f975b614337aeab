"""What an evaluation is expected to cost: from its sizes and the kind of processor.

Nothing is timed here, so the same command chooses the same engine, and has the same bits,
whatever else the machine does. Each engine knows its own cost, in seconds of one thread; what
counts is which is the smallest, and ``python -m benchmarks.grid`` compares with measured times.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from tinkering.engines.job import Job
from tinkering.graph.signature import Batch
from tinkering.noise import Dense
from tinkering.population import PerturbedPopulation


@dataclass(frozen=True)
class Processor:
    """How fast one thread of a kind of processor is, about."""

    products: float
    """Multiplications a second in products of matrices with many rows, float32."""
    memory: float
    """Bytes a second that do not come from a cache."""
    cached: float
    """Bytes a second that do."""
    call: float
    """Seconds that it takes to begin an operation from Python."""


_PROCESSORS = {
    "AVX512": Processor(products=35e9, memory=10e9, cached=40e9, call=5e-6),
    "AVX2": Processor(products=18e9, memory=9e9, cached=30e9, call=5e-6),
}
_ANY = Processor(products=5e9, memory=8e9, cached=15e9, call=8e-6)


@cache
def processor() -> Processor:
    """Return what is known of this processor's kind, by what it is capable of."""
    return _PROCESSORS.get(torch.backends.cpu.get_cpu_capability(), _ANY)


@dataclass(frozen=True)
class Load:
    """The sizes of an evaluation."""

    members: int
    examples: int
    """Of each member."""
    steps: int
    """Operations of the module's forward."""
    convolved: int
    """Multiplications of convolutions, for an example."""
    multiplied: int
    """Multiplications of other layers, for an example."""
    weights: int
    """Numbers that each member has of its own."""
    values: int
    """Numbers that an example's operations return, all together."""
    dense: bool
    """Whether the members are a centre and noise on every weight, pairs of them the same."""

    @property
    def images(self) -> int:
        """Examples of all members."""
        return self.members * self.examples


def load_of(job: Job, batch: Batch) -> Load:
    """Return the sizes of an evaluation of a module that was captured."""
    population, program = job.population, job.network.steps(type(job.model).__name__)
    footprint = job.network.footprint
    own = [value for name, value in job.own.items() if name in population.differing]
    dense = isinstance(population, PerturbedPopulation) and isinstance(population.noise, Dense)
    return Load(
        batch.members,
        batch.examples,
        len(program.steps),
        footprint.convolved,
        footprint.multiplied,
        sum(value.numel() for value in own),
        footprint.values,
        dense,
    )
