"""Engine: ``torch.func.vmap`` over stacked members. The reference for the others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import vmap

from tinkering.engines.job import Job, Run, Tiles
from tinkering.errors import UnsupportedLayerError
from tinkering.graph.copies import first_line, skeleton


def prepare(job: Job) -> Run:
    """Return what evaluates the job's members stacked, some at a time."""
    in_dims = (0, None) if job.shared else (0, 0)
    module = skeleton(job.model)
    forward = vmap(partial(job.called, module), in_dims=in_dims, randomness=job.randomness)

    def run(tiles: Tiles) -> Iterator[tuple[slice, Tensor]]:
        seeded = job.seeds()
        for members in tiles.of_members(len(job.population)):
            states = [job.state(index) for index in range(members.start, members.stop)]
            stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
            x = job.batches[0] if job.shared else job.batches[members]
            # With "same", every tile draws what the first one drew.
            number = 0 if job.randomness == "same" else members.start
            with seeded(number):
                logits = _called(forward, module, stacked, x)
            if members.start == 0 and not job.random:
                _require_alike(job, module, states[-1], members.stop - 1, logits[-1])
            yield members, logits

    return run


def _require_alike(
    job: Job, module: nn.Module, state: dict[str, Tensor], index: int, result: Tensor
) -> None:
    """Refuse a forward of which vmap makes something else than the module does, silently."""
    with torch.no_grad():
        exact = replace(job, dtype=torch.float32)
        alone = exact.called(module, state, job.batches[index])
    tolerance = 1e-3 if job.dtype == torch.float32 else 0.3
    scale = float(alone.nan_to_num(0, 0, 0).abs().max())
    if not torch.allclose(result, alone, rtol=0, atol=tolerance * scale, equal_nan=True):
        name, operation = type(job.model).__name__, "its forward under torch.func.vmap"
        raise UnsupportedLayerError(name, f"{operation} (it gives other numbers)")


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
        except (RuntimeError, ValueError) as error:
            # What the module does by itself has been tried before: this is vmap's.
            name = type(model).__name__
            operation = f"its forward under torch.func.vmap ({first_line(error)})"
            raise UnsupportedLayerError(name, operation) from error
