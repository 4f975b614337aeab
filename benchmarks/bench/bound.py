"""A bound population as a contender, each member with inputs of its own."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.bench.clock import Contender
from benchmarks.bench.judge import Row
from tinkering.evaluation.bound import Bound, bind
from tinkering.population import Population


@dataclass(frozen=True)
class Called:
    """A bound population, and what it is called with."""

    bound: Bound
    inputs: tuple[Tensor, ...]

    def contender(self, name: str) -> Contender:
        """Return its call."""
        members, examples = self.inputs[0].shape[:2]
        return Contender(name, partial(self.bound, *self.inputs), members * examples)

    def noted(self, row: Row) -> Row:
        """Return a row with the name of the engine."""
        return replace(row, note=self.bound.plan.engine)


def called(
    model: nn.Module,
    population: Population,
    *inputs: Tensor,
    dtype: torch.dtype = torch.float32,
    engine: str = "auto",
) -> Called:
    """Return a population bound to inputs of its members' own.

    Args:
        model: the architecture.
        population: the members.
        *inputs: ``[members, examples, ...]``.
        dtype: of the computation.
        engine: by which.

    Example:
        >>> from tinkering import PerturbedPopulation
        >>> model = nn.Linear(4, 2)
        >>> ours = called(model, PerturbedPopulation(model, 6, 0.1), torch.zeros(6, 1, 4))
        >>> ours.contender("ours").run().shape
        torch.Size([6, 1, 2])
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an engine that is slow: the row has its name
        bound = bind(model, population, inputs, in_dims=(0, 0), dtype=dtype, engine=engine)
    return Called(bound, inputs)
