"""Engine: members that share a centre, folded into the batch.

The centre's layers are folded, cast and packed once. A tile of members then runs through
them as one batch of images, and every layer adds to each image what belongs to its member.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, fx

from tinkering.engines.job import Job, widened
from tinkering.engines.planning import Plan, Run
from tinkering.engines.thread_pool import map_in_order
from tinkering.errors import UnsupportedLayerError
from tinkering.graph.batch_axis import Placement, place_images
from tinkering.graph.branch import Branch, for_each_member
from tinkering.graph.capture import has_batch_statistics
from tinkering.graph.probe import alike
from tinkering.graph.program import (
    CONVOLUTIONS,
    LINEAR,
    NORM,
    Fused,
    Program,
    arguments,
    name_of,
)
from tinkering.graph.runner import Runner, own, storages
from tinkering.graph.signature import Batch
from tinkering.layers.centre import Layer, Values, layer
from tinkering.layers.perturbed import MemberLayer, MemberNorm, Names, Tile
from tinkering.layers.perturbed_operations import NODES, batch_statistics
from tinkering.population import Draw, PerturbedPopulation, Sigma


class FactoredForward:
    """A module's forward for members that share a centre.

    Args:
        program: the module's steps.
        state: the centre's parameters and buffers by name.
        evolving: names of the parameters that members have noise for.
        dtype: of the layers; those that make the module's outputs are float32.

    Raises:
        UnsupportedLayerError: an evolving parameter is used in an operation that has no
            member-wise form.
    """

    def __init__(
        self,
        program: Program,
        state: Mapping[str, Tensor],
        evolving: frozenset[str],
        dtype: torch.dtype,
    ) -> None:
        values = program.captured.values(state)
        binder = _Binder(program, values, evolving)
        layers = {
            name_of(step): partial(
                binder.layer(step, torch.float32 if program.makes_output(step) else dtype),
                program.may_overwrite_residual(step),
            )
            for step in program.fused
        }
        nodes = {
            node.name: call for node in program.plain if (call := binder.node(node)) is not None
        }
        self._runner = Runner(program, values, layers, nodes)

    def shared(self, branch: Branch, batch: Batch) -> Shared:
        """Return what all members have in common on some examples, from where they part."""
        return branch, branch.passed(self._runner, batch.of_member(0))

    def __call__(
        self, batch: Batch, noise: MembersNoise, images: int, shared: list[Shared] | None = None
    ) -> list[Tensor]:
        """Return what some members make of their batches, ``[members, batch, ...]`` each.

        Args:
            batch: theirs.
            noise: theirs.
            images: examples at a time.
            shared: what they have in common, on so many examples each; None to begin with the
                first layer.
        """
        common: list[Shared | None] = [None] * -(-batch.examples // images)
        common = common if shared is None else [*shared]
        step = max(1, images // batch.examples)
        if step >= batch.members and images >= batch.examples:
            return self._run(batch, noise, slice(0, batch.members), common[0])
        rows = []
        for start in range(0, batch.members, step):
            some = slice(start, min(start + step, batch.members))
            pieces = batch.of_members(some).of_examples(images)
            parts = [
                self._run(piece, noise, some, held)
                for piece, held in zip(pieces, common, strict=True)
            ]
            rows.append(parts[0] if len(parts) == 1 else _joined(parts, 1))
        return rows[0] if len(rows) == 1 else _joined(rows, 0)

    def _run(
        self, batch: Batch, noise: MembersNoise, members: slice, shared: Shared | None
    ) -> list[Tensor]:
        """Return what members make of their examples, run as one batch."""
        tile = noise.tile(members, batch.examples)
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
        shaped = []
        for result in results:
            result = own(widened(result), others)
            shaped.append(result.view(batch.members, batch.examples, *result.shape[1:]))
        return shaped


Shared = tuple[Branch, dict[fx.Node, Any]]
"""Where members part, and the values of the path before it, on some examples."""


def _joined(parts: list[list[Tensor]], axis: int) -> list[Tensor]:
    return [torch.cat(each, axis) for each in zip(*parts, strict=True)]


class MembersNoise:
    """The noise of some members as it was drawn, and the tiles that it makes.

    Args:
        draw: of the members.
        sigma: multiplies it; one number, or one a parameter.
    """

    def __init__(self, draw: Draw, sigma: Sigma) -> None:
        self._draw, self._sigma = draw, sigma
        self._kept: dict[object, Any] = {}
        self._tiles: dict[tuple[int, int, int], Tile] = {}

    def tile(self, members: slice, examples: int) -> Tile:
        """Return the tile of some of the members, each with so many examples."""
        key = members.start, members.stop, examples
        if key not in self._tiles:
            if any(each != examples for *_, each in list(self._tiles)):
                self._tiles = {}  # of batches of another size: one at a time is kept
            rows, signs = self._draw.rows[members], self._draw.signs[members]
            if examples > 1:
                rows, signs = rows.repeat_interleave(examples), signs.repeat_interleave(examples)
            noise, sigma = self._draw.noise, self._sigma
            tile = Tile(noise, rows, signs, sigma, examples, self._kept)
            self._tiles[key] = tile
            return tile
        return self._tiles[key]


_Call = Callable[[bool, Tile, Tensor, Tensor | None], Tensor]
"""``(overwrites the residual, tile, input, residual) -> result`` of a fused step."""


class _Binder:
    """Gives every step of a program its member-wise form."""

    def __init__(self, program: Program, values: Values, evolving: frozenset[str]) -> None:
        self._captured = program.captured
        self._images = program.captured.examples
        self._values = values
        self._evolving = evolving

    def layer(self, step: Fused, dtype: torch.dtype) -> _Call:
        """Return what computes a fused step for a tile."""
        names = self._names(step)
        self._require_weights(step)
        if not names.any():
            shared = layer(step, self._values, dtype)
            return partial(_shared, shared)
        placement = self._placement(step.layer, step.source)
        if step.layer.target is LINEAR and step.norm is None:
            return MemberLayer(step, names, self._values, dtype, placement)
        if not placement.is_first:
            self._refuse(step.layer, f"{step.layer.target} on examples that are not along axis 0")
        if step.layer.target is NORM:
            return MemberNorm(step, names, self._values, dtype)
        return MemberLayer(step, names, self._values, dtype, placement)

    def _require_weights(self, step: Fused) -> None:
        """Refuse a step that reads an evolving parameter as anything but a weight or a bias.

        What a layer makes of a parameter belongs to no image, and yet is each member's own.
        """
        for node in [step.layer] if step.norm is None else [step.layer, step.norm]:
            for key, argument in arguments(node).items():
                if key not in ("weight", "bias") and self._name(argument) is not None:
                    self._refuse(node, f"{node.target} with it as {key}")

    def node(self, node: fx.Node) -> Callable[..., Any] | None:
        """Return what computes a plain step in the graph's stead; None where nothing has to."""
        if node.target is NORM and has_batch_statistics(node):
            build = batch_statistics
        elif not self._evolving_inputs(node):
            return None
        else:
            build = NODES.get(node.target)  # type: ignore[assignment]
        member = None if build is None else build(node, self._name)
        if member is None:
            self._refuse(node, str(node.target))
        placement = self._placement(node, member.reads)
        if placement.is_first:
            return member.call
        if not member.moves:
            self._refuse(node, f"{node.target} on examples that are not along axis 0")
        return partial(_moved, member.call, placement)

    def _name(self, argument: Any) -> str | None:
        if not isinstance(argument, fx.Node):
            return None
        name = self._captured.parameters.get(argument.name)
        return name if name in self._evolving else None

    def _names(self, step: Fused) -> Names:
        weight = bias = scale = shift = None
        norm: fx.Node | None = step.layer
        if step.layer.target in (*CONVOLUTIONS, LINEAR):
            weight, bias = (self._name(step.given[key]) for key in ("weight", "bias"))
            norm = step.norm
        if norm is not None:
            scale, shift = (self._name(arguments(norm)[key]) for key in ("weight", "bias"))
        return Names(weight, bias, scale, shift)

    def _evolving_inputs(self, node: fx.Node) -> list[str]:
        return [name for argument in node.all_input_nodes if (name := self._name(argument))]

    def _placement(self, node: fx.Node, source: fx.Node) -> Placement:
        found = place_images(source, self._images)
        if found is None:
            self._refuse(node, f"{node.target} on an input whose examples cannot be told apart")
        return found

    def _refuse(self, node: fx.Node, operation: str) -> NoReturn:
        raise UnsupportedLayerError(", ".join(self._evolving_inputs(node)) or node.name, operation)


def _shared(
    layer: Layer, overwrite: bool, tile: Tile | None, x: Tensor, residual: Tensor | None
) -> Tensor:
    """Return what a layer makes that has no noise, and so is the same for every tile."""
    del tile
    return layer(x, residual, overwrite)


def _moved(
    call: Callable[..., Any],
    placement: Placement,
    tile: Tile,
    x: Tensor,
    *rest: Any,
    **options: Any,
) -> Any:
    """Return what an operation makes of images along the first axis, back in their place."""
    return placement.back(call(tile, placement.first(x, len(tile.rows)), *rest, **options))


def prepare(job: Job) -> Run:
    """Return what evaluates the job's members around their centre.

    Raises:
        UnsupportedLayerError: the module has no member-wise form.
    """
    population, program = job.population, job.program
    if not isinstance(population, PerturbedPopulation):
        raise UnsupportedLayerError(type(population).__name__, "members that share no centre")
    if program is None:
        raise UnsupportedLayerError(type(job.model).__name__, f"its forward ({job.not_captured})")
    if job.random:
        raise UnsupportedLayerError(type(job.model).__name__, "active dropout")
    if any(axes.members and not axes.examples for axes in job.batch.signature.axes):
        raise UnsupportedLayerError(type(job.model).__name__, "an input that has no batch")
    state = job.own | population.params | population.buffers
    forward = FactoredForward(program, state, frozenset(population.params), job.dtype)
    if _couples_members(job, forward, population):
        raise UnsupportedLayerError(
            type(job.model).__name__, "its forward (the examples of a batch are not independent)"
        )
    return _Factored(job, forward, population)


class _Factored:
    """Members around their centre, a tile of them at a time."""

    def __init__(self, job: Job, forward: FactoredForward, population: PerturbedPopulation) -> None:
        self._job, self._forward, self._population = job, forward, population
        self._kept: dict[int, dict[tuple[int, int], MembersNoise]] = {}

    def __call__(self, batch: Batch, plan: Plan) -> Iterator[tuple[slice, list[Tensor]]]:
        tiles, shared = plan.tiles, None
        branch = self._job.branch if plan.shares else None
        if branch is not None:
            pieces = list(batch.of_examples(tiles.images))
            passed = partial(self._forward.shared, branch)
            shared = list(map_in_order(passed, pieces, tiles.threads))
        portions = list(tiles.of_members(len(self._population)))
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
        kept: dict[tuple[int, int], MembersNoise] | None,
        members: slice,
    ) -> list[Tensor]:
        # Noise is drawn here, by the thread that needs it, while it is in its cache.
        key = members.start, members.stop
        noise = None if kept is None else kept.get(key)
        if noise is None:
            part = self._population[members]
            noise = MembersNoise(part.draw(), part.sigma)
            if kept is not None:
                kept[key] = noise
        return self._forward(batch.of_members(members), noise, plan.tiles.images, shared)


@torch.no_grad()
def _couples_members(job: Job, forward: FactoredForward, population: PerturbedPopulation) -> bool:
    """Return whether a member's result depends on the members beside it."""
    if not job.network.coupled:
        return False
    # Several: with two, an influence on the image two places away would not be seen.
    members = population[:8]
    few = next(job.batch.of_members(slice(0, len(members))).of_examples(4))
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
        together = forward(few, MembersNoise(members.draw(), members.sigma), most)
    except RuntimeError:  # the result is not [images, ...]
        return True
    each = [slice(at, at + 1) for at in range(len(members))]
    ones = [members[at] for at in each]
    alone = [
        forward(few.of_members(at), MembersNoise(one.draw(), one.sigma), most)
        for at, one in zip(each, ones, strict=True)
    ]
    # All of them: a running sum has an influence on those that come later alone.
    expected = _joined(alone, 0)
    return not all(map(alike, together, expected))
