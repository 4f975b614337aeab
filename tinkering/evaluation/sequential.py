"""Engine: members one after the other, each as fast as a single network can be.

A member's norms are folded into its convolutions, its weights cast and packed, and its
batch runs through the module's fused steps; a thread for each member.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from tinkering.evaluation.graph import Fused, Program
from tinkering.evaluation.job import Job, Run, Tiles, narrowed
from tinkering.evaluation.layers import Layer, layer
from tinkering.evaluation.threads import map_in_order


def prepare(job: Job) -> Run:
    """Return what evaluates the job's members one after the other."""

    def run(tiles: Tiles) -> Iterator[tuple[slice, Tensor]]:
        members = range(len(job.population))
        program = job.program
        if job.random:
            logits = _one_by_one(job)
        elif program is None:
            # One at a time: a module is handed its member's weights for the time of a call.
            logits = map(partial(_unfused, job), members)
        else:
            fused = partial(_fused, job, program, tiles.images)
            logits = map_in_order(fused, members, tiles.threads)
        for index, result in zip(members, logits, strict=True):
            yield slice(index, index + 1), result.unsqueeze(0)

    return run


def _fused(job: Job, program: Program, images: int, index: int) -> Tensor:
    """Return a member's logits through its fused steps, some images at a time."""
    values = program.captured.values(job.state(index))
    layers: dict[Fused, Layer] = {}

    def call(step: Fused, x: Tensor, residual: Tensor | None) -> Tensor:
        if step not in layers:  # made when needed, so that its weights are still in the cache
            dtype = torch.float32 if program.makes_output(step) else job.dtype
            layers[step] = layer(step, values, dtype)
        return layers[step](x, residual, program.may_overwrite_residual(step))

    parts = torch.split(job.batches[index], images)
    return torch.cat([program.run(part, values, call).float() for part in parts])


def _unfused(job: Job, index: int) -> Tensor:
    state = {name: narrowed(value, job.dtype) for name, value in job.state(index).items()}
    # A forward that counts its calls, say, counts in a copy: members share buffers.
    state |= {name: state[name].clone() for name, _ in job.model.named_buffers()}
    logits: Tensor = functional_call(job.model, state, (narrowed(job.batches[index], job.dtype),))
    return logits.float()


def _one_by_one(job: Job) -> Iterator[Tensor]:
    """Yield members' logits where the forward draws random numbers.

    A member's numbers are a function of its index, so they do not depend on who was
    evaluated before; "same" gives every member those of member 0.
    """
    with job.seeded() as reseed:
        for index in range(len(job.population)):
            reseed(index if job.randomness == "different" else 0)
            with torch.no_grad():
                yield _unfused(job, index)
