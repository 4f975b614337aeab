"""Engine: ``torch.func.vmap`` over stacked members. The reference for the others."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from tinkering.evaluation.job import Job, Run, Tiles, narrowed


def prepare(job: Job) -> Run:
    """Return what evaluates the job's members stacked, some at a time."""
    in_dims = (0, None) if job.shared else (0, 0)

    def one(state: dict[str, Tensor], x: Tensor) -> Tensor:
        result: Tensor = functional_call(job.model, state, (x,))
        return result

    forward = vmap(one, in_dims=in_dims, randomness=job.randomness)

    def run(tiles: Tiles) -> Iterator[tuple[slice, Tensor]]:
        with job.seeded() as reseed:
            for members in tiles.of_members(len(job.population)):
                if job.randomness == "same":
                    reseed(0)  # every tile draws what the first one drew
                states = [job.state(index) for index in range(members.start, members.stop)]
                stacked = {
                    name: narrowed(torch.stack([state[name] for state in states]), job.dtype)
                    for name in states[0]
                }
                x = job.batches[0] if job.shared else job.batches[members]
                with torch.no_grad():
                    logits = forward(stacked, narrowed(x, job.dtype))
                yield members, logits.float()

    return run
