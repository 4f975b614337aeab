"""A module's forward for many members at once: their examples are run as one batch.

The layers that members share run over all of them. What a layer has of each member's own, such as
noise around a centre or a weight in a stack, is looked up by the tile that the examples belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, fx

from tinkering.engines.binder import Binder, Forms
from tinkering.engines.job import Job, widened
from tinkering.engines.planning import Plan
from tinkering.engines.thread_pool import map_in_order
from tinkering.errors import UnsupportedLayerError
from tinkering.graph.branch import Branch, for_each_member
from tinkering.graph.probe import alike
from tinkering.graph.program import Program
from tinkering.graph.runner import Runner, own, storages
from tinkering.graph.signature import Batch
from tinkering.layers.centre import Values
from tinkering.layers.tile import MemberTile


@runtime_checkable
class Portion(Protocol):
    """Some members, with what is their own at hand."""

    def tile(self, members: slice, examples: int) -> MemberTile:
        """Return the tile of some of the members, each with so many examples."""


class MemberForward:
    """A module's forward for many members at once.

    Args:
        program: the module's steps.
        values: the tensors that members share.
        binder: of its steps.
    """

    def __init__(self, program: Program, values: Values, binder: Binder) -> None:
        self._runner = Runner(program, values, binder.layers, binder.nodes)
        # Values that are built of members' own are kept, and views of them may be returned.
        self._may_return_own = bool(binder.built)
        places = [binder.placement(node) for node in program.outputs]
        self._places = [None if place is None or place.is_first else place for place in places]

    def shared(self, branch: Branch, batch: Batch) -> Shared:
        """Return what all members have in common on some examples, from where they part."""
        return branch, branch.passed(self._runner, batch.of_member(0))

    def __call__(
        self, batch: Batch, portion: Portion, images: int, shared: list[Shared] | None = None
    ) -> list[Tensor]:
        """Return what some members make of their batches, ``[members, batch, ...]`` each.

        Args:
            batch: theirs.
            portion: theirs.
            images: examples at a time.
            shared: what they have in common, on so many examples each; None to begin with the
                first layer.
        """
        common: list[Shared | None] = [None] * -(-batch.examples // images)
        common = common if shared is None else [*shared]
        step = max(1, images // batch.examples)
        if step >= batch.members and images >= batch.examples:
            return self._run(batch, portion, slice(0, batch.members), common[0])
        rows = []
        for start in range(0, batch.members, step):
            some = slice(start, min(start + step, batch.members))
            pieces = batch.of_members(some).of_examples(images)
            parts = [
                self._run(piece, portion, some, held)
                for piece, held in zip(pieces, common, strict=True)
            ]
            rows.append(parts[0] if len(parts) == 1 else _joined(parts, 1))
        return rows[0] if len(rows) == 1 else _joined(rows, 0)

    def _run(
        self, batch: Batch, portion: Portion, members: slice, shared: Shared | None
    ) -> list[Tensor]:
        """Return what members make of their examples, run as one batch."""
        tile = portion.tile(members, batch.examples)
        if shared is None:
            inputs = batch.folded()
            results = self._runner.run(inputs, tile)
            others = storages(inputs)
        else:
            branch, values = shared
            spread = partial(for_each_member, members=batch.members)
            held = branch.entered(self._runner, values, spread, batch.members * batch.examples)
            results = self._runner.finish(held, branch.position, tile)
            others = storages(values.values())
        others |= self._runner.held
        if self._may_return_own:
            others |= storages(tile.held())
        shaped = []
        for result, place in zip(results, self._places, strict=True):
            result = own(widened(result), others)
            if place is None:
                shaped.append(result.view(batch.members, batch.examples, *result.shape[1:]))
            else:  # such as a last state, [layers, examples, hidden]
                shaped.append(place.unfolded(result, batch.members))
        return shaped


Shared = tuple[Branch, dict[fx.Node, Any]]
"""Where members part, and the values of the path before it, on some examples."""


def _joined(parts: list[list[Tensor]], axis: int) -> list[Tensor]:
    return [torch.cat(each, axis) for each in zip(*parts, strict=True)]


class MembersRun:
    """An engine that runs a tile of members at a time.

    Args:
        job: what is evaluated.
        forward: the module's.
        portion: makes a portion of the members.
        built: bytes that are built for every member of a tile.
        notes: for the plan.
    """

    def __init__(
        self,
        job: Job,
        forward: MemberForward,
        portion: Callable[[slice], Portion],
        built: int,
        notes: tuple[str, ...],
    ) -> None:
        self._job, self._forward, self._made = job, forward, portion
        self.built, self.notes = built, notes
        self._kept: dict[int, dict[tuple[int, int], Portion]] = {}

    def __call__(self, batch: Batch, plan: Plan) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield some members at a time, and the tensors of what they return: see `Run`."""
        tiles, shared = plan.tiles, None
        branch = self._job.branch if plan.shares else None
        if branch is not None:
            pieces = list(batch.of_examples(tiles.images))
            passed = partial(self._forward.shared, branch)
            shared = list(map_in_order(passed, pieces, tiles.threads))
        portions = list(tiles.of_members(batch.members))
        if plan.keeps and tiles.members not in self._kept:
            # Portions of another size were kept for batches of another size: in their place.
            self._kept = {tiles.members: {}}
        kept = self._kept.get(tiles.members) if plan.keeps else None
        one = partial(self._portion, batch, plan, shared, kept)
        yield from zip(portions, map_in_order(one, portions, tiles.threads), strict=True)

    def _portion(
        self,
        batch: Batch,
        plan: Plan,
        shared: list[Shared] | None,
        kept: dict[tuple[int, int], Portion] | None,
        members: slice,
    ) -> list[Tensor]:
        # Noise is drawn here, by the thread that needs it, while it is in its cache.
        key = members.start, members.stop
        portion = None if kept is None else kept.get(key)
        if portion is None:
            portion = self._made(members)
            if kept is not None:
                kept[key] = portion
        return self._forward(batch.of_members(members), portion, plan.tiles.images, shared)


@torch.no_grad()
def _couples_members(job: Job, forward: MemberForward, portion: Callable[[slice], Portion]) -> bool:
    """Return whether a member's result depends on the members beside it."""
    # Several: with two, an influence on the image two places away would not be seen.
    members = slice(0, min(8, job.batch.members))
    few = next(job.batch.of_members(members).of_examples(4))
    generator = torch.Generator().manual_seed(0)
    drawn = [
        # Others are numbers with a meaning, such as words.
        torch.randn(value.shape, generator=generator).to(value)
        if value.is_floating_point() and axes.examples
        else value
        for value, axes in zip(few.tensors, few.signature.axes, strict=True)
    ]
    few = replace(few, tensors=tuple(drawn))
    most = few.members * few.examples
    try:
        together = forward(few, portion(members), most)
    except RuntimeError:  # the result is not [images, ...]
        return True
    each = [slice(at, at + 1) for at in range(few.members)]
    alone = [forward(few.of_members(at), portion(at), most) for at in each]
    # All of them: a running sum has an influence on those that come later alone.
    expected = _joined(alone, 0)
    return not all(map(alike, together, expected))


def members_run(
    job: Job,
    state: Mapping[str, Tensor],
    own: frozenset[str],
    forms: Forms,
    portion: Callable[[slice], Portion],
) -> MembersRun:
    """Return what evaluates a job's members, many at once.

    Args:
        job: what is evaluated.
        state: the parameters and buffers that members share, by name.
        own: names of those that are the members' own.
        forms: of fused layers.
        portion: makes a portion of the members.

    Raises:
        UnsupportedLayerError: the module has no such form.
    """
    name = type(job.model).__name__
    if job.program is None:
        raise UnsupportedLayerError(name, f"its forward ({job.not_captured})")
    if job.random:
        raise UnsupportedLayerError(name, "active dropout")
    if any(axes.members and not axes.examples for axes in job.batch.signature.axes):
        raise UnsupportedLayerError(name, "an input that has no batch")
    values = job.program.captured.values(state)
    binder = Binder(job.program, values, own, forms, job.dtype)
    forward = MemberForward(job.program, values, binder)
    tried = job.network.coupled or binder.is_unusual
    if tried and _couples_members(job, forward, portion):
        operation = "its forward (the examples of a batch are not independent)"
        raise UnsupportedLayerError(name, operation)
    return MembersRun(job, forward, portion, *_built(binder, state))


def _built(binder: Binder, state: Mapping[str, Tensor]) -> tuple[int, tuple[str, ...]]:
    """Return the bytes that are built for a member of a tile, and what a plan says of them."""
    total, notes = 0, []
    by_operation = sorted(binder.built.items(), key=itemgetter(1))
    for operation, pairs in groupby(by_operation, key=itemgetter(1)):
        names = [name for name, _ in pairs]
        size = sum(state[name].numel() for name in names) * torch.float32.itemsize
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        what = f"{names[0]}{more} ({size:,} bytes a member)"
        notes.append(f"{operation} has no form of its own for {what}: its values are built.")
        total += size
    return total, tuple(notes)
