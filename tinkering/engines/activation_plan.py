"""How an evaluation of perturbed activations will be done: examples at a time, threads, memory."""

from __future__ import annotations

import math

import torch

from tinkering.engines import memory
from tinkering.engines.activation_targets import Target
from tinkering.engines.job import Job, Tiles
from tinkering.engines.planning import Plan, images_in_cache
from tinkering.errors import ArgumentError
from tinkering.population import PerturbedActivations

REASON = "members share all but the noise on one activation, so the centre runs once for all"

_READINGS = 16
"""Times that outputs are held for each reading: as noise, its size, targets, and in the fitness."""


def make_activation_plan(
    job: Job,
    population: PerturbedActivations,
    targets: list[Target],
    images: int,
    budget: int | None,
) -> Plan:
    """Return the plan: portions that fit the caches and the budget.

    Args:
        job: what is to be evaluated.
        population: the members of each example at each layer.
        targets: the layers that are perturbed.
        images: examples of the batch.
        budget: bytes; None for half of what is free.

    Raises:
        ArgumentError: (a ``ValueError``) not even one example at a time fits.
    """
    dtype, one = job.dtype, job.network.footprint
    budget = memory.default_budget() if budget is None else budget
    weights = sum(value.numel() for value in job.own.values()) * dtype.itemsize
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
    rows, threads, needed = _fitting(kept, members * peak, rows, threads, budget)
    return Plan("activations", REASON, Tiles(members, rows, threads), dtype, needed, budget)


def make_part_plan(
    job: Job, population: PerturbedActivations, images: int, budget: int | None, known: int
) -> Plan:
    """Return the plan of an evaluation in whole parts, each on a thread.

    Args:
        job: what is to be evaluated.
        population: says how many examples a part has.
        images: examples of the batch.
        budget: bytes; None for half of what is free.
        known: bytes of what is known of the layers.

    Raises:
        ArgumentError: (a ``ValueError``) not even one part at a time fits.
    """
    dtype, one = job.dtype, job.network.footprint
    budget = memory.default_budget() if budget is None else budget
    weights = sum(value.numel() for value in job.own.values()) * dtype.itemsize
    parts = [part.stop - part.start for part in population.parts(images)]
    readings = _READINGS * population.readings * one.output
    each = max(parts, default=0) * (8 * one.values + population.samples * one.peak + readings)
    threads = max(1, min(torch.get_num_threads(), len(parts)))
    kept = weights + 2 * known
    _, threads, needed = _fitting(kept, each + known + 3 * weights, 1, threads, budget)
    tiles = Tiles(population.samples, max(parts, default=0), threads)
    return Plan("feedback", REASON, tiles, dtype, needed, budget)


def _fitting(kept: int, each: int, rows: int, threads: int, budget: int) -> tuple[int, int, int]:
    """Return rows, threads and the bytes they take: halved until they fit, rows first.

    Args:
        kept: bytes that are taken whatever they are.
        each: bytes of a row on a thread.
        rows: on a thread, at most.
        threads: at most.
        budget: bytes.

    Raises:
        ArgumentError: (a ``ValueError``) not even a row on one thread fits.
    """
    needed = kept + threads * rows * each
    if needed <= budget:
        return rows, threads, needed
    if rows > 1:
        return _fitting(kept, each, rows // 2, threads, budget)
    if threads > 1:
        return _fitting(kept, each, rows, threads // 2, budget)
    advice = "Give it more, or fewer members an example, or fewer examples."
    raise ArgumentError("memory", f"at least {needed:,} bytes", f"{budget:,}", advice)
