"""How an evaluation of perturbed activations will be done: examples at a time, threads, memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tinkering.engines import memory
from tinkering.engines.activation_targets import Target
from tinkering.engines.planning import images_in_cache
from tinkering.errors import ArgumentError
from tinkering.graph.program import Program
from tinkering.layers.centre import Values
from tinkering.population import PerturbedActivations

_MIB = 1 << 20


@dataclass(frozen=True)
class ActivationPlan:
    """How members whose activations are perturbed are evaluated."""

    images: int
    """At a time on a thread, each with all its members."""
    threads: int
    dtype: torch.dtype
    needed: int
    """Bytes that the evaluation takes beyond the module and `x`, at most."""
    budget: int
    """Bytes that it may take."""

    def __str__(self) -> str:
        return (
            f"perturbed activations: {self.images} images a run, {self.threads} threads, "
            f"{str(self.dtype).removeprefix('torch.')}\n"
            f"about {self.needed / _MIB:,.0f} MiB of {self.budget / _MIB:,.0f} MiB"
        )


def make_activation_plan(
    steps: Program,
    values: Values,
    targets: list[Target],
    images: int,
    population: PerturbedActivations,
    dtype: torch.dtype,
    budget: int | None,
) -> ActivationPlan:
    """Return the plan: portions that fit the caches and the budget.

    Args:
        steps: of the module.
        values: its parameters and buffers.
        targets: the layers that are perturbed.
        images: of the batch.
        population: the members of each image at each layer.
        dtype: of the computation.
        budget: bytes; None for half of what is free.

    Raises:
        ArgumentError: (a ``ValueError``) not even one image at a time fits.
    """
    budget = memory.default_budget() if budget is None else budget
    one = memory.footprint(steps)
    weights = sum(values[name].numel() for name in steps.captured.parameters) * dtype.itemsize
    threads, members = torch.get_num_threads(), population.samples
    # Of further readings: the noise, the logits with it, and what the fitness makes of those.
    further = population.readings - 1 if population.blur else 0
    peak = one.peak + 4 * further * one.output
    rows = images_in_cache(one.largest * dtype.itemsize, weights) // members
    rows = max(1, min(rows, math.ceil(images / threads)))
    # Kept to the end: each target's inputs, and how fitness changes with its result.
    shared = [one.step for target in targets for one in target.sharing]
    each = sum(memory.size_of(step.source) + memory.size_of(step.last) for step in shared)
    kept = images * each + 2 * weights
    while kept + threads * rows * members * peak > budget and rows > 1:
        rows //= 2
    while kept + threads * rows * members * peak > budget and threads > 1:
        threads //= 2
    needed = kept + threads * rows * members * peak
    if needed > budget:
        advice = "Give it more, or fewer members an image, or fewer images a generation."
        raise ArgumentError("memory", f"at least {needed:,} bytes", f"{budget:,}", advice)
    return ActivationPlan(rows, threads, dtype, needed, budget)
