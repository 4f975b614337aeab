"""The engines: one function of one signature each, in one table."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from tinkering.engines import factored, sequential, vmapped
from tinkering.engines.job import Job, Run
from tinkering.errors import UnsupportedLayerError
from tinkering.noise import Dense
from tinkering.population import PerturbedPopulation

ENGINES: dict[str, Callable[[Job], Run]] = {
    "factored": factored.prepare,
    "sequential": sequential.prepare,
    "vmapped": vmapped.prepare,
}
"""Each prepares a job; it raises `UnsupportedLayerError` where it cannot do it."""

_FEW_IMAGES = 8
"""Images a member: below that, building a member costs more than noise in every layer."""


def choose(job: Job) -> tuple[str, str, Run]:
    """Return the engine for a job, why it is this one, and the job prepared."""
    images = job.batch.examples
    if not isinstance(job.population, PerturbedPopulation):
        return "sequential", "every member has weights of its own", sequential.prepare(job)
    if isinstance(job.population.noise, Dense) and images >= _FEW_IMAGES:
        reason = (
            "members share a centre, but dense noise is as large as the weights, and with "
            f"{images} images a member it pays to build them"
        )
        return "sequential", reason, sequential.prepare(job)
    try:
        run = factored.prepare(job)
    except UnsupportedLayerError as error:
        reason = f"members share a centre, but {error}"
        warnings.warn(f"{reason} Members are evaluated one after the other.", stacklevel=6)
        return "sequential", reason, sequential.prepare(job)
    return "factored", "members share a centre, so one pass serves many of them", run
