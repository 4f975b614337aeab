"""Engine: members with weights of their own, all of them in one product for each layer.

A linear layer of many members is one batched product (``torch.baddbmm``), a small convolution a
grouped one. That beats one member after the other as long as a member's own work is less than what
it costs to begin with it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from tinkering.engines.binder import Forms
from tinkering.engines.cost import Load, processor
from tinkering.engines.job import Job
from tinkering.engines.member_forward import MembersRun, members_run
from tinkering.graph.capture import as_computed
from tinkering.layers.stacked import StackedLayer, StackedNorm, StackedTile
from tinkering.population import StackedPopulation

_FORMS = Forms(StackedLayer, StackedNorm, buffers=True)


def prepare(job: Job) -> MembersRun:
    """Return what evaluates the job's members by what they have of their own.

    Raises:
        UnsupportedLayerError: the module has no such form.
    """
    members = job.members
    params, buffers = members.member(0)
    differing = members.differing

    def portion(some: slice) -> MembersStack:
        stack = cast(StackedPopulation, members[some].stack())
        held = as_computed(stack.params | stack.buffers, stack.params)
        own = {name: held[name] for name in held if name in differing}
        return MembersStack(own, job.batch.tensors[0].device)

    return members_run(job, job.own | params | buffers, differing, _FORMS, portion)


_BEGIN = 10
"""Calls that an evaluation takes."""
_STEP = 3
"""Calls that a step takes."""
_CONVOLVED = 0.7
"""Of the speed of one member after the other, whose convolutions are packed and fused."""


def cost(load: Load) -> float:
    """Return what an evaluation is expected to cost, in seconds of one thread."""
    known = processor()
    work = load.images * (load.convolved / _CONVOLVED + load.multiplied)
    # Norms, additions and rectifiers are passes of their own.
    moved = 2 * load.images * load.values * 4 / known.cached
    weights = load.members * load.weights * 4 / known.memory
    calls = _BEGIN + _STEP * load.steps
    return calls * known.call + work / known.products + moved + weights


class MembersStack:
    """The own parameters and buffers of some members, and the tiles that they make.

    Args:
        values: ``[members, *shape]`` by name; none where members share everything.
        device: of the members.
    """

    def __init__(self, values: dict[str, Tensor], device: torch.device) -> None:
        self._values, self._device = values, device
        self._tiles: dict[tuple[int, int], StackedTile] = {}

    def tile(self, members: slice, examples: int) -> StackedTile:
        """Return the tile of some of the members, each with so many examples."""
        key = members.start, members.stop
        known = self._tiles.get(key)
        if known is not None and known.batch == examples:
            return known
        values = {name: value[members] for name, value in self._values.items()}
        rows = torch.arange(members.stop - members.start, device=self._device)
        if examples > 1:
            rows = rows.repeat_interleave(examples)
        # What layers have made of weights is the same for batches of any size.
        kept = {} if known is None else known.kept
        ones = torch.ones(len(rows), device=self._device)
        self._tiles[key] = StackedTile(values, rows, examples, kept, ones)
        return self._tiles[key]
