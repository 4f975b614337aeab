"""Engine: members one after the other, each as fast as a single network can be.

A member's norms are folded into its convolutions, its weights cast and packed, and its
batch runs through the module's fused steps; a thread for each member.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from tinkering.engines.job import Job, Run, Tiles
from tinkering.engines.thread_pool import map_in_order
from tinkering.graph.copies import skeleton
from tinkering.graph.program import Fused, Program
from tinkering.layers.centre import Layer, Values, layer


def prepare(job: Job) -> Run:
    """Return what evaluates the job's members one after the other."""

    def run(tiles: Tiles) -> Iterator[tuple[slice, Tensor]]:
        members = range(len(job.population))
        program = job.program
        if job.random or program is None:
            logits = _unfused(job)
        else:
            fused = partial(_fused, job, program, tiles.images)
            logits = map_in_order(fused, members, tiles.threads)
        for index, result in zip(members, logits, strict=True):
            yield slice(index, index + 1), result.unsqueeze(0)

    return run


def _fused(job: Job, program: Program, images: int, index: int) -> Tensor:
    """Return a member's logits through its fused steps, some images at a time."""
    values = program.captured.values(job.state(index))
    layers = _Layers(program, values, job.dtype)
    parts = torch.split(job.batches[index], images)
    return torch.cat([program.run(part, values, layers).float() for part in parts])


class _Layers:
    """A member's layers, made when needed, so that their weights are still in the cache."""

    def __init__(self, program: Program, values: Values, dtype: torch.dtype) -> None:
        self._program, self._values, self._dtype = program, values, dtype
        self._made: dict[Fused, Layer] = {}

    def __call__(self, step: Fused, x: Tensor, residual: Tensor | None) -> Tensor:
        if step not in self._made:
            dtype = torch.float32 if self._program.makes_output(step) else self._dtype
            self._made[step] = layer(step, self._values, dtype)
        return self._made[step](x, residual, self._program.may_overwrite_residual(step))


def _unfused(job: Job) -> Iterator[Tensor]:
    """Yield members' logits through the module itself, one member after the other.

    Where the forward draws random numbers, a member's are a function of its index, so they do
    not depend on who was evaluated before; "same" gives every member those of member 0.
    """
    module, seeded = skeleton(job.model), job.seeds()
    for index in range(len(job.population)):
        with seeded(index if job.randomness == "different" else 0), torch.no_grad():
            logits = job.called(module, job.state(index), job.batches[index])
        yield logits
