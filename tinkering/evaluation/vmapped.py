"""Engine: ``torch.func.vmap`` over stacked members. The reference for the others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tinkering.errors import UnsupportedLayerError
from tinkering.evaluation.capture import first_line
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
                yield members, _called(forward, job.model, stacked, narrowed(x, job.dtype)).float()

    return run


def _called(
    forward: Callable[[dict[str, Tensor], Tensor], Tensor],
    model: nn.Module,
    stacked: dict[str, Tensor],
    x: Tensor,
) -> Tensor:
    with warnings.catch_warnings(), torch.no_grad():
        # Nobody takes this engine for its speed.
        warnings.filterwarnings("ignore", "There is a performance drop")
        try:
            return forward(stacked, x)
        except RuntimeError as error:
            if not str(error).startswith("vmap:"):
                raise
            name = type(model).__name__
            operation = f"its forward under torch.func.vmap ({first_line(error)})"
            raise UnsupportedLayerError(name, operation) from error
