"""Gives every step of a program the form in which many members compute it at once."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch
from torch import Tensor, fx

from tinkering.errors import UnsupportedLayerError
from tinkering.graph.batch_axis import Placement, place_images
from tinkering.graph.capture import has_batch_statistics
from tinkering.graph.program import (
    CONVOLUTIONS,
    LINEAR,
    NORM,
    Fused,
    Program,
    arguments,
    name_of,
)
from tinkering.layers.centre import Layer, Values, layer
from tinkering.layers.lifted import Count, Images, Kind, Lifted, Made, Own
from tinkering.layers.operations import MADE, NODES, MemberNode, batch_statistics
from tinkering.layers.perturbed import Names
from tinkering.layers.recurrent import Linear
from tinkering.layers.tile import MemberTile

Call = Callable[[bool, Any, Tensor, Tensor | None], Tensor]
"""``(overwrites the residual, tile, input, residual) -> result`` of a fused step."""


@runtime_checkable
class LayerForm(Protocol):
    """A fused layer of members: see `MemberLayer`."""

    def __call__(
        self, step: Fused, names: Names, values: Values, dtype: torch.dtype, placement: Placement
    ) -> Call:
        """Return what computes it for a tile."""


@runtime_checkable
class NormForm(Protocol):
    """A batch norm that stands alone: see `MemberNorm`."""

    def __call__(self, step: Fused, names: Names, values: Values, dtype: torch.dtype) -> Call:
        """Return what computes it for a tile."""


@dataclass(frozen=True)
class Forms:
    """How a kind of members computes fused layers."""

    layer: LayerForm
    norm: NormForm
    buffers: bool
    """Whether members may have buffers of their own."""


class Binder:
    """The steps of a program in their member-wise forms.

    Args:
        program: the module's steps.
        values: the tensors that members share, behind the graph's placeholders.
        own: names of the parameters and buffers that are the members' own.
        forms: of fused layers.
        dtype: of the layers; those that make the module's outputs are float32.

    Raises:
        UnsupportedLayerError: there is no such form for one of them.
    """

    def __init__(
        self,
        program: Program,
        values: Values,
        own: frozenset[str],
        forms: Forms,
        dtype: torch.dtype,
    ) -> None:
        captured = program.captured
        self._images = captured.examples
        self._names_of = captured.parameters | (captured.buffers if forms.buffers else {})
        self._values, self._own, self._forms, self._dtype = values, own, forms, dtype
        inputs = {node for node in program.inputs if node.name in captured.batched}
        self._with_examples = _behind(captured.graph, inputs)
        theirs = {node for node in captured.graph.nodes if self.name(node) is not None}
        self._theirs = _behind(captured.graph, theirs)
        self.is_unusual = False
        """Whether it is to be tried that members have no influence on each other."""
        self.built: dict[str, str] = {}
        """Parameters and buffers that are built for members, and for which operation."""
        self.layers = {
            name_of(step): partial(self._layer(step, program), program.may_overwrite_residual(step))
            for step in program.fused
        }
        """What computes the fused steps, by name."""
        self.nodes = {
            node.name: call for node in program.plain if (call := self._node(node)) is not None
        }
        """What computes other steps in the graph's stead, by name."""
        for node in program.outputs:
            if node in self._theirs and node not in self._with_examples:
                self._refuse(node, "a result that has no examples")

    def name(self, argument: Any) -> str | None:
        """Return the name of the members' own parameter or buffer behind an argument, or None."""
        if not isinstance(argument, fx.Node):
            return None
        name = self._names_of.get(argument.name)
        return name if name in self._own else None

    def placement(self, argument: fx.Node) -> Placement | None:
        """Return where the images are in a value; None where it cannot be told."""
        found = place_images(argument, self._images)
        if found is not None and not found.outer == found.inner == 1:
            self.is_unusual = True
        return found

    def linear(self, weight: fx.Node, bias: fx.Node | None, transposed: bool = False) -> Linear:
        """Return what computes a linear layer of members for ``[images, ..., features]``.

        Args:
            weight: the parameter.
            bias: likewise, or None.
            transposed: whether the weight is ``[in, out]``.
        """
        graph = fx.Graph()
        given = [graph.placeholder(node.name) for node in (weight, bias) if node is not None]
        node = graph.call_function(LINEAR, (graph.placeholder("x"), *given))
        step = Fused(node, None, None, None, node)
        names = Names(self.name(weight), self.name(bias), None, None, transposed=transposed)
        values = self._values
        if transposed:
            values = {**values, weight.name: values[weight.name].t()}
        if not names.any():
            return partial(_of_all, layer(step, values, self._dtype))
        call = self._forms.layer(step, names, values, self._dtype, Placement(0))
        return partial(_of_each, call)

    def _layer(self, step: Fused, program: Program) -> Call:
        """Return what computes a fused step for a tile."""
        dtype = torch.float32 if program.makes_output(step) else self._dtype
        names = self._names(step)
        self._require_weights(step)
        if not names.any():
            return partial(_shared, layer(step, self._values, dtype))
        placement = self._placed(step.layer, step.source)
        if step.layer.target is LINEAR and step.norm is None:
            return self._forms.layer(step, names, self._values, dtype, placement)
        if placement.axis or placement.outer > 1:
            self._refuse(step.layer, f"{step.layer.target} on examples that are not along axis 0")
        if step.layer.target is NORM:
            call = self._forms.norm(step, names, self._values, dtype)
        else:
            call = self._forms.layer(step, names, self._values, dtype, Placement(0))
        return call if placement.is_first else partial(_of_parts, call, placement.inner)

    def _require_weights(self, step: Fused) -> None:
        """Refuse a step that reads an own parameter in another place than layers do."""
        known = {"weight", "bias"}
        if self._forms.buffers:
            known |= {"running_mean", "running_var"}
        for node in [step.layer] if step.norm is None else [step.layer, step.norm]:
            for key, argument in arguments(node).items():
                if key not in known and self.name(argument) is not None:
                    self._refuse(node, f"{node.target} with it as {key}")

    def _node(self, node: fx.Node) -> Callable[..., Any] | None:
        """Return what computes a plain step in the graph's stead; None where nothing has to."""
        if node.target is NORM and has_batch_statistics(node):
            build = batch_statistics
        elif node.target is operator.getitem or not any(map(self._is_theirs, node.all_input_nodes)):
            return None
        else:
            made = any(self._is_made(source) for source in node.all_input_nodes)
            build = (MADE if made else NODES).get(node.target)  # type: ignore[assignment]
        member = None if build is None else build(node, self)
        placement = None if member is None else self._where(member)
        if member is None or placement is None:
            return self._lifted(node)
        if placement.is_first or member.anywhere:
            return member.call
        if not member.moves:
            return self._lifted(node)
        return partial(_moved, member.call, member.at, placement)

    def _where(self, member: MemberNode) -> Placement | None:
        """Return where the images are that a form reads; what has none is one image a member."""
        if member.reads in self._with_examples:
            return self.placement(member.reads)
        return Placement(0) if member.alone else None

    def _is_made(self, node: fx.Node) -> bool:
        """Return whether a value was computed from members' own alone: ``[members, *shape]``."""
        return node in self._theirs and node not in self._with_examples and not self.name(node)

    def _is_theirs(self, node: fx.Node) -> bool:
        return self.name(node) is not None or self._is_made(node)

    def _lifted(self, node: fx.Node) -> Lifted:
        kinds = {source: self._kind(source) for source in node.all_input_nodes}
        try:
            made = Lifted(node, kinds, self._images)
        except ValueError as error:
            self._refuse(node, f"{node.target} ({error})")
        self.is_unusual = True
        for name in self._own_inputs(node):
            self.built[name] = str(node.target)
        return made

    def _kind(self, node: fx.Node) -> Kind:
        name = self.name(node)
        if name is not None:
            return Own(name)
        if node not in self._with_examples:
            return Made() if node in self._theirs else None
        if not isinstance(node.meta["val"], Tensor):
            return Count(node)
        return Images(self._placed(node, node))

    def _names(self, step: Fused) -> Names:
        weight = bias = scale = shift = mean = variance = None
        norm: fx.Node | None = step.layer
        if step.layer.target in (*CONVOLUTIONS, LINEAR):
            weight, bias = (self.name(step.given[key]) for key in ("weight", "bias"))
            norm = step.norm
        if norm is not None:
            keys = ("weight", "bias", "running_mean", "running_var")
            scale, shift, mean, variance = (self.name(arguments(norm)[key]) for key in keys)
        return Names(weight, bias, scale, shift, mean, variance)

    def _own_inputs(self, node: fx.Node) -> list[str]:
        return [name for argument in node.all_input_nodes if (name := self.name(argument))]

    def _placed(self, node: fx.Node, source: fx.Node) -> Placement:
        found = self.placement(source)
        if found is None:
            self._refuse(node, f"{node.target} on an input whose examples cannot be told apart")
        return found

    def _refuse(self, node: fx.Node, operation: str) -> NoReturn:
        raise UnsupportedLayerError(", ".join(self._own_inputs(node)) or node.name, operation)


def _behind(graph: fx.Graph, first: set[fx.Node]) -> set[fx.Node]:
    """Return some nodes, and all that depends on them."""
    found = set(first)
    for node in graph.nodes:
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _of_all(made: Layer, tile: MemberTile, x: Tensor) -> Tensor:
    del tile
    return made(x, None, False)


def _of_each(call: Call, tile: MemberTile, x: Tensor) -> Tensor:
    return call(False, tile, x, None)


def _of_parts(
    call: Call,
    parts: int,
    overwrite: bool,
    tile: MemberTile,
    x: Tensor,
    residual: Tensor | None,
) -> Tensor:
    """Return what a layer makes of parts of images, which lie where the images were."""
    return call(overwrite, tile.times(parts), x, residual)


def _shared(
    layer: Layer, overwrite: bool, tile: object, x: Tensor, residual: Tensor | None
) -> Tensor:
    """Return what a layer makes that is nobody's own, and so is the same for every tile."""
    del tile
    return layer(x, residual, overwrite)


def _moved(
    call: Callable[..., Any],
    at: int,
    placement: Placement,
    tile: MemberTile,
    *given: Any,
    **options: Any,
) -> Any:
    """Return what an operation makes of images along the first axis, back in their place."""
    values = list(given)
    values[at] = placement.first(values[at], len(tile.rows))
    return placement.back(call(tile, *values, **options))
