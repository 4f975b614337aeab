"""Engine: ``torch.func.vmap`` over stacked members. The reference for the others."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.func import vmap

from tinkering.engines.job import Job
from tinkering.engines.planning import Plan, Run
from tinkering.errors import UnsupportedLayerError
from tinkering.graph.copies import first_line, skeleton
from tinkering.graph.signature import Batch


def prepare(job: Job) -> Run:
    """Return what evaluates the job's members stacked, some at a time."""
    return _Vmapped(job)


class _Vmapped:
    """Members through ``vmap``."""

    built: int = 0
    notes: tuple[str, ...] = ()

    def __init__(self, job: Job) -> None:
        axes = [0 if axes.members else None for axes in job.batch.signature.axes]
        self._job, self._module = job, skeleton(job.model)
        self._forward = vmap(
            partial(job.called, self._module), in_dims=(0, axes), randomness=job.randomness
        )
        self._kept: dict[int, dict[int, dict[str, Tensor]]] = {}
        self._lock = threading.Lock()

    def __call__(self, batch: Batch, plan: Plan) -> Iterator[tuple[slice, list[Tensor]]]:
        job, seeded = self._job, self._job.seeds()
        for members in plan.tiles.of_members(len(job.members)):
            kept = self._kept.get(plan.tiles.members, {})
            stacked = kept.get(members.start) or self._stacked(members)
            if plan.keeps:
                # Portions of another size were kept for batches of another size: in their place.
                self._kept = {plan.tiles.members: {**kept, members.start: stacked}}
            # With "same", every tile draws what the first one drew.
            number = 0 if job.randomness == "same" else members.start
            # The module holds its members' tensors for the time of a call.
            with self._lock, seeded(number):
                results = self._called(stacked, batch.of_members(members))
            if members.start == 0 and not job.random:
                last = len(results[0]) - 1
                state = {name: value[last] for name, value in stacked.items()}
                self._require_alike(state, batch.of_member(last), [each[last] for each in results])
            yield members, results

    def _stacked(self, members: slice) -> dict[str, Tensor]:
        states = [self._job.state(index) for index in range(members.start, members.stop)]
        return {name: torch.stack([state[name] for state in states]) for name in states[0]}

    def _require_alike(
        self, state: dict[str, Tensor], tensors: list[Tensor], results: list[Tensor]
    ) -> None:
        """Refuse a forward of which vmap makes something else than the module does, silently."""
        with self._lock, torch.no_grad():
            exact = replace(self._job, dtype=torch.float32)
            alone = exact.called(self._module, state, tensors)
        tolerance = 1e-3 if self._job.dtype == torch.float32 else 0.3
        for result, expected in zip(results, alone, strict=True):
            scale = float(expected.float().nan_to_num(0, 0, 0).abs().max())
            close = partial(torch.allclose, rtol=0, atol=tolerance * scale, equal_nan=True)
            if not close(result.float(), expected.float()):
                name, operation = (
                    type(self._job.model).__name__,
                    "its forward under torch.func.vmap",
                )
                raise UnsupportedLayerError(name, f"{operation} (it gives other numbers)")

    def _called(self, stacked: dict[str, Tensor], batch: Batch) -> list[Tensor]:
        with warnings.catch_warnings(), torch.no_grad():
            # Nobody takes this engine for its speed.
            warnings.filterwarnings("ignore", "There is a performance drop")
            try:
                return self._forward(stacked, list(batch.tensors))
            except (RuntimeError, ValueError) as error:
                # What the module does by itself has been tried before: this is vmap's.
                name = type(self._job.model).__name__
                operation = f"its forward under torch.func.vmap ({first_line(error)})"
                raise UnsupportedLayerError(name, operation) from error
