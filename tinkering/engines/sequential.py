"""Engine: members one after the other, each as fast as a single network can be.

A member's norms are folded into its convolutions, its weights cast and packed, and its
batch runs through the module's fused steps; a thread for each member.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from tinkering.engines.cost import Load, processor
from tinkering.engines.job import Job, widened
from tinkering.engines.planning import Plan, Run
from tinkering.engines.thread_pool import map_in_order
from tinkering.graph.branch import Branch
from tinkering.graph.copies import skeleton
from tinkering.graph.program import Fused, Program, name_of
from tinkering.graph.runner import Runner, own, storages
from tinkering.graph.signature import Batch
from tinkering.layers.centre import Layer, Values, layer


def prepare(job: Job) -> Run:
    """Return what evaluates the job's members one after the other."""
    if job.random or job.program is None:
        return _Unfused(job)
    return _Fused(job, job.program)


_MEMBER = 30
"""Calls that it takes to begin with a member."""
_STEP = 4
"""Calls that a step takes, since no portion of members shares them."""


def cost(load: Load) -> float:
    """Return what an evaluation is expected to cost, in seconds of one thread."""
    known = processor()
    calls = load.members * (_MEMBER + _STEP * load.steps)
    work = load.images * (load.convolved + load.multiplied)
    moved = load.images * load.values * 4 / known.cached
    weights = load.members * load.weights * 4 / known.memory
    return calls * known.call + work / known.products + moved + weights


class _Fused:
    """Members through a module's fused steps."""

    built: int = 0
    notes: tuple[str, ...] = ()

    def __init__(self, job: Job, program: Program) -> None:
        self._job, self._program = job, program
        self._kept: dict[int, Runner] = {}

    def __call__(self, batch: Batch, plan: Plan) -> Iterator[tuple[slice, list[Tensor]]]:
        members, images = range(len(self._job.members)), plan.tiles.images
        branch = self._job.branch if plan.shares else None
        shared: list[Any] = [None] * -(-batch.examples // images)
        if branch is not None:  # the layers before the first that differs between members
            centre = self._runner(self._job.own)
            pieces = list(batch.of_examples(images))
            passed = partial(self._passed, branch, centre)
            shared = list(map_in_order(passed, pieces, plan.tiles.threads))
        one = partial(self._member, batch, plan, branch, shared)
        results = map_in_order(one, members, plan.tiles.threads)
        for index, each in zip(members, results, strict=True):
            yield slice(index, index + 1), [result.unsqueeze(0) for result in each]

    @staticmethod
    def _passed(branch: Branch, centre: Runner, piece: Batch) -> dict[fx.Node, Any]:
        return branch.passed(centre, piece.of_member(0))

    def _member(
        self, batch: Batch, plan: Plan, branch: Branch | None, shared: list[Any], index: int
    ) -> list[Tensor]:
        """Return what a member returns, some examples at a time."""
        runner = self._kept.get(index) or self._runner(self._job.state(index))
        if plan.keeps:
            self._kept[index] = runner
        one = batch.of_members(slice(index, index + 1))
        parts = []
        for piece, values in zip(one.of_examples(plan.tiles.images), shared, strict=True):
            if branch is None:
                parts.append(runner.run(piece.folded()))
            else:
                held = branch.entered(runner, values, _as_it_is, piece.examples)
                parts.append(runner.finish(held, branch.position))
        if len(parts) == 1:
            passed = shared[0].values() if branch is not None else ()
            others = runner.held | storages([*batch.tensors, *passed])
            return [own(widened(result), others) for result in parts[0]]
        return [torch.cat(list(map(widened, results))) for results in zip(*parts, strict=True)]

    def _runner(self, state: dict[str, Tensor]) -> Runner:
        values = self._program.captured.values(state)
        layers = _Layers(self._program, values, self._job.dtype)
        fused = {name_of(step): partial(layers, step) for step in self._program.fused}
        return Runner(self._program, values, fused)


def _as_it_is(value: Tensor) -> Tensor:
    return value


class _Layers:
    """A member's layers, made when needed, so that their weights are still in the cache."""

    def __init__(self, program: Program, values: Values, dtype: torch.dtype) -> None:
        self._program, self._values, self._dtype = program, values, dtype
        self._made: dict[Fused, Layer] = {}

    def __call__(self, step: Fused, tile: object, x: Tensor, residual: Tensor | None) -> Tensor:
        del tile
        if step not in self._made:
            dtype = torch.float32 if self._program.makes_output(step) else self._dtype
            self._made[step] = layer(step, self._values, dtype)
        return self._made[step](x, residual, self._program.may_overwrite_residual(step))


class _Unfused:
    """Members through the module itself, one after the other.

    Where the forward draws random numbers, a member's are a function of its index, so they do
    not depend on who was evaluated before; "same" gives every member those of member 0.
    """

    built: int = 0
    notes: tuple[str, ...] = ()

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, batch: Batch, plan: Plan) -> Iterator[tuple[slice, list[Tensor]]]:
        del plan
        job = self._job
        module, seeded = skeleton(job.model), job.seeds()
        for index in range(len(job.members)):
            with seeded(index if job.randomness == "different" else 0), torch.no_grad():
                results = job.called(module, job.state(index), batch.of_member(index))
            yield slice(index, index + 1), [result.unsqueeze(0) for result in results]
