"""Engine: members that share a centre, folded into the batch.

The centre's layers are folded, cast and packed once. A tile of members then runs through
them as one batch of images, and every layer adds to each image what belongs to its member.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch
from torch import Tensor, fx

from tinkering.engines.job import Job, Run, Tiles
from tinkering.engines.thread_pool import map_in_order
from tinkering.errors import UnsupportedLayerError
from tinkering.graph.batch_axis import Placement, place_images
from tinkering.graph.capture import has_batch_statistics
from tinkering.graph.program import CONVOLUTIONS, LINEAR, NORM, Fused, Program, arguments
from tinkering.layers.centre import Layer, Values, layer
from tinkering.layers.perturbed import MemberLayer, MemberNorm, Names, Tile
from tinkering.layers.perturbed_operations import NODES, batch_statistics
from tinkering.noise import Factors
from tinkering.population import Draw, PerturbedPopulation, Sigma


class FactoredForward:
    """A module's forward for members that share a centre.

    Args:
        program: the module's steps.
        state: the centre's parameters and buffers by name.
        evolving: names of the parameters that members have noise for.
        dtype: of the layers; the one that makes the module's output is float32.

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
        self._program = program
        self._values = program.captured.values(state)
        binder = _Binder(program, self._values, evolving)
        self._layers = {
            step.last.name: binder.layer(
                step, torch.float32 if program.makes_output(step) else dtype
            )
            for step in program.fused
        }
        self._nodes = {
            node.name: call for node in program.plain if (call := binder.node(node)) is not None
        }

    def __call__(self, x: Tensor, draw: Draw, sigma: Sigma, images: int) -> Tensor:
        """Return what some members make of their batches, ``[members, batch, ...]``.

        Args:
            x: ``[members, batch, ...]``.
            draw: the members' noise.
            sigma: multiplies it; one number, or one a parameter.
            images: at a time.
        """
        members, batch = x.shape[:2]
        step = max(1, images // batch)
        kept: dict[object, Any] = {}
        rows = []
        for start in range(0, members, step):
            some = slice(start, start + step)
            parts = [
                self._run(part, draw.rows[some], draw.signs[some], (draw.noise, sigma, kept))
                for part in torch.split(x[some], images, dim=1)
            ]
            rows.append(parts[0] if len(parts) == 1 else torch.cat(parts, 1))
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _run(
        self,
        x: Tensor,
        rows: Tensor,
        signs: Tensor,
        drawn: tuple[Mapping[str, Factors], Sigma, dict[object, Any]],
    ) -> Tensor:
        """Return what members make of ``x``, ``[members, batch, ...]``, as one batch."""
        batch = x.shape[1]
        if batch > 1:
            rows, signs = rows.repeat_interleave(batch), signs.repeat_interleave(batch)
        noise, sigma, kept = drawn
        tile = Tile(noise, rows, signs, sigma, batch, kept)

        nodes = {name: _with_tile(call, tile) for name, call in self._nodes.items()}
        images = x.flatten(0, 1)
        folded = self._program.run(images, self._values, partial(self._call, tile), nodes)
        if folded.untyped_storage().data_ptr() == images.untyped_storage().data_ptr():
            folded = folded.clone()  # a forward may hand its input on, which is the caller's
        return folded.float().view(-1, batch, *folded.shape[1:])

    def _call(self, tile: Tile, step: Fused, x: Tensor, residual: Tensor | None) -> Tensor:
        overwrite = self._program.may_overwrite_residual(step)
        return self._layers[step.last.name](tile, x, residual, overwrite)


@runtime_checkable
class _Call(Protocol):
    def __call__(
        self, tile: Tile, x: Tensor, residual: Tensor | None, overwrite: bool
    ) -> Tensor: ...


class _Binder:
    """Gives every step of a program its member-wise form."""

    def __init__(self, program: Program, values: Values, evolving: frozenset[str]) -> None:
        self._captured = program.captured
        (self._images,) = (
            node for node in program.captured.graph.nodes if node.name == program.captured.images
        )
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
            self._refuse(step.layer, f"{step.layer.target} on images that are not along axis 0")
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
            self._refuse(node, f"{node.target} on images that are not along axis 0")
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
            self._refuse(node, f"{node.target} on an input whose images cannot be told apart")
        return found

    def _refuse(self, node: fx.Node, operation: str) -> NoReturn:
        raise UnsupportedLayerError(", ".join(self._evolving_inputs(node)) or node.name, operation)


def _shared(
    layer: Layer, tile: Tile, x: Tensor, residual: Tensor | None, overwrite: bool
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


def _with_tile(call: Callable[..., Any], tile: Tile) -> Callable[..., Any]:
    return lambda *args, **kwargs: call(tile, *args, **kwargs)


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
    state = job.own | population.params | population.buffers
    forward = FactoredForward(program, state, frozenset(population.params), job.dtype)
    if program.captured.coupled and _couples_members(forward, population, job.batches):
        raise UnsupportedLayerError(
            type(job.model).__name__, "its forward (the images of a batch are not independent)"
        )

    def run(tiles: Tiles) -> Iterator[tuple[slice, Tensor]]:
        def logits(members: slice) -> Tensor:
            # Noise is drawn here, by the thread that needs it, while it is in its cache.
            part = population[members]
            return forward(job.batches[members], part.draw(), part.sigma, tiles.images)

        portions = list(tiles.of_members(len(population)))
        yield from zip(portions, map_in_order(logits, portions, tiles.threads), strict=True)

    return run


@torch.no_grad()
def _couples_members(
    forward: FactoredForward, population: PerturbedPopulation, batches: Tensor
) -> bool:
    """Return whether a member's result depends on the members beside it."""
    # Several: with two, an influence on the image two places away would not be seen.
    members = population[:8]
    x = batches[: len(members), :4]
    most = x.shape[:2].numel()
    if x.is_floating_point():  # else numbers with a meaning, such as words
        x = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    try:
        together = forward(x, members.draw(), members.sigma, images=most)
    except RuntimeError:  # the result is not [images, ...]
        return True
    each = [members[at : at + 1] for at in range(len(members))]
    alone = [forward(x[i : i + 1], one.draw(), one.sigma, most) for i, one in enumerate(each)]
    # All of them: a running sum has an influence on those that come later alone.
    expected = torch.cat(alone)
    return not torch.allclose(together, expected, rtol=1e-3, atol=1e-4, equal_nan=True)
