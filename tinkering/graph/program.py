"""A captured module as a list of steps, with norms, residuals and rectifiers fused.

A layer with a weight (a convolution, a linear layer, a norm) takes in what stands behind
it, as far as nobody else needs the values in between:

    weight -> batch norm in eval mode -> addition of a tensor -> relu

No class and no layer name is looked at, only operations, so this holds for any module.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx

from tinkering.graph.capture import Captured, as_float32

_aten = torch.ops.aten
CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default)
LINEAR = _aten.linear.default
NORM = _aten.batch_norm.default
_PLAIN_CONVOLUTIONS = {
    *CONVOLUTIONS,
    _aten.conv_transpose1d.default,
    _aten.conv_transpose2d.input,
    _aten.conv_transpose3d.input,
}
_ADDITION = _aten.add.Tensor
_RELU = _aten.relu.default
# These neither mix numbers nor lose digits, so they keep the dtype they are handed.
_ANY_DTYPE = {_ADDITION, _RELU, _aten.max_pool2d.default, _aten.dropout.default}


# What these make of memory depends on the dtype that the module has it in.
_READS_BITS = {_aten.view.dtype, _aten.view_as_complex.default}


@dataclass(frozen=True, eq=False)
class Fused:
    """A layer with a weight, and what it takes in; `norm` alone where there is no weight."""

    layer: fx.Node
    """A convolution, a linear layer, or a batch norm that stands alone."""
    norm: fx.Node | None
    residual: fx.Node | None
    """A tensor of the result's shape that is added before the rectifier."""
    relu: bool
    last: fx.Node
    """The operation whose result this step's result is."""

    @property
    def source(self) -> fx.Node:
        """The operation whose result the layer reads."""
        source: fx.Node = self.given["input"]
        return source

    @cached_property
    def given(self) -> dict[str, Any]:
        """The layer's arguments by name."""
        return arguments(self.layer)


Step = Fused | fx.Node
FusedCall = Callable[[Fused, Tensor, Tensor | None], Tensor]
NodeCall = Callable[..., Any]


class Program:
    """The steps of a captured module, in order.

    Args:
        captured: the module's operations.
    """

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.steps = tuple(_fuse(captured.graph, captured.images))
        (output,) = (node for node in captured.graph.nodes if node.op == "output")
        self.output: fx.Node = output.args[0][0]
        self._released = self._last_uses()

    @cached_property
    def fused(self) -> list[Fused]:
        """The steps that hold a weight or a norm."""
        return [step for step in self.steps if isinstance(step, Fused)]

    @cached_property
    def plain(self) -> list[fx.Node]:
        """The other steps."""
        return [step for step in self.steps if isinstance(step, fx.Node)]

    @cached_property
    def _own(self) -> set[fx.Node]:
        """Return the values that are new tensors, and that one step alone reads."""
        return {step.last for step in self.fused if len(step.last.users) == 1}

    def may_overwrite_residual(self, step: Fused) -> bool:
        """Return whether nobody else needs what the step adds to its result."""
        return step.residual in self._own

    def walk(self) -> Iterator[tuple[Step, list[str]]]:
        """Yield the steps, each with the values that are needed no more after it."""
        yield from zip(self.steps, self._released, strict=True)

    def makes_output(self, step: Fused) -> bool:
        """Return whether the step's result is the module's."""
        return step.last is self.output

    def run(
        self,
        images: Tensor,
        values: Mapping[str, Tensor],
        call_fused: FusedCall,
        node_calls: Mapping[str, NodeCall] | None = None,
    ) -> Tensor:
        """Return what the module makes of some images.

        Args:
            images: ``[images, ...]``.
            values: the tensors behind the graph's placeholders, by the placeholder's name.
            call_fused: computes a fused step from its input and its residual.
            node_calls: computes a plain step in the graph's stead, by the node's name; it is
                called with the node's arguments.
        """
        calls = node_calls or {}
        known = self.begin(images, values)
        for step, released in self.walk():
            known[name_of(step)] = self._computed(step, known, call_fused, calls)
            for name in released:
                del known[name]
        result: Tensor = known[self.output.name]
        return result

    def begin(self, images: Tensor, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the values before the first step; the arguments are as in `run`."""
        return {**values, self.captured.images: as_float32(images)}

    def go_on(self, known: dict[str, Any], after: int, call_fused: FusedCall) -> Iterator[Step]:
        """Compute the steps behind one, and yield each when its value is known.

        Args:
            known: the values by name; it is given those of the steps, and loses none.
            after: the position of the step; -1 for the beginning.
            call_fused: as in `run`.
        """
        for step in self.steps[after + 1 :]:
            known[name_of(step)] = self._computed(step, known, call_fused, {})
            yield step

    def needed_after(self, position: int) -> list[fx.Node]:
        """Return the values from up to a step that later steps read, and the output.

        Weights and buffers are left out.
        """
        made = {_made(step) for step in self.steps[position + 1 :]}
        read = dict.fromkeys(node for step in self.steps[position + 1 :] for node in _reads(step))
        read[self.output] = None
        images = self.captured.images
        return [
            node
            for node in read
            if node not in made and (node.op != "placeholder" or node.name == images)
        ]

    def _computed(
        self,
        step: Step,
        known: Mapping[str, Any],
        call_fused: FusedCall,
        calls: Mapping[str, NodeCall],
    ) -> Any:
        if not isinstance(step, Fused):
            return _call(step, calls.get(step.name), known)
        residual = None if step.residual is None else known[step.residual.name]
        return call_fused(step, known[step.source.name], residual)

    def _last_uses(self) -> list[list[str]]:
        """Return the values that are needed no more after each step."""
        last = {self.output.name: len(self.steps)}
        for at, step in enumerate(self.steps):
            last |= {node.name: at for node in _reads(step) if node.op != "placeholder"}
            last.setdefault(name_of(step), at)  # a value that nobody reads
        last[self.output.name] = len(self.steps)
        return [[name for name, use in last.items() if use == at] for at in range(len(self.steps))]


def name_of(step: Step) -> str:
    """Return the name of the value that a step makes."""
    return _made(step).name


def _made(step: Step) -> fx.Node:
    return step.last if isinstance(step, Fused) else step


def _reads(step: Step) -> list[fx.Node]:
    if not isinstance(step, Fused):
        return list(step.all_input_nodes)
    return [step.source] if step.residual is None else [step.source, step.residual]


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return an operation's arguments by name, with the defaults of its schema."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {a.name: value for a, value in zip(schema, node.args, strict=False)}
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
    return {**defaults, **given, **node.kwargs}


def _call(node: fx.Node, call: NodeCall | None, known: Mapping[str, Any]) -> Any:
    keep = node.target in _ANY_DTYPE or (_is_view(node) and node.target not in _READS_BITS)
    value = partial(_value, known, keep)
    args = fx.map_arg(node.args, value)
    kwargs = fx.map_arg(node.kwargs, value)
    if node.target in _PLAIN_CONVOLUTIONS:
        args = tuple(in_plain_layout(a) if isinstance(a, Tensor) else a for a in args)
    target: NodeCall = call or node.target  # type: ignore[assignment]
    return target(*args, **kwargs)


def _value(known: Mapping[str, Any], keep: bool, argument: fx.Node) -> Any:
    found = known[argument.name]
    narrow = isinstance(found, Tensor) and found.dtype == torch.bfloat16 and not keep
    return found.float() if narrow else found


def _fuse(graph: fx.Graph, images: str) -> Iterator[Step]:
    """Yield the steps; a fused one stands where the last of its operations stood."""
    inside: dict[fx.Node, Fused] = {}
    for node in graph.nodes:
        if node not in inside and _is_layer(node, images):
            fused = _grown(node, inside, images)
            inside |= dict.fromkeys(_covered(fused), fused)
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node not in inside:
            yield node
        elif node is inside[node].last:
            yield inside[node]


def _is_layer(node: fx.Node, images: str) -> bool:
    """Return whether a node has weights that are parameters, buffers or constants."""
    if node.target not in (*CONVOLUTIONS, LINEAR, NORM):
        return False
    given = arguments(node)
    if node.target is NORM and (given["training"] or given["running_mean"] is None):
        return False
    held = (value for key, value in given.items() if key != "input")
    weights = [value for value in held if isinstance(value, fx.Node)]
    return all(weight.op == "placeholder" and weight.name != images for weight in weights)


def _grown(layer: fx.Node, taken: Mapping[fx.Node, Fused], images: str) -> Fused:
    """Return a layer with as much as it can take in."""
    norm, residual, relu, last = None, None, False, layer
    behind = _only_user(last)
    if layer.target is not NORM and behind is not None and _joins(behind, last, images):
        norm = last = behind
    behind = _only_user(last)
    if behind is not None and behind not in taken and behind.target is _ADDITION:
        other = _other_summand(behind, last)
        if other is not None:
            residual, last = other, behind
    behind = _only_user(last)
    if behind is not None and behind.target is _RELU:
        relu, last = True, behind
    return Fused(layer, norm, residual, relu, last)


def _covered(fused: Fused) -> Iterator[fx.Node]:
    node = fused.layer
    while node is not fused.last:
        yield node
        (node,) = node.users
    yield node


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _is_view(node: fx.Node) -> bool:
    """Return whether a value may be in the memory of what it is made from."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.target is operator.getitem
    return any(value.alias_info for value in schema.returns)


def _joins(norm: fx.Node, layer: fx.Node, images: str) -> bool:
    """Return whether a norm in eval mode scales and shifts the layer's outputs."""
    if norm.target is not NORM:
        return False
    if not _is_layer(norm, images) or arguments(norm)["input"] is not layer:
        return False
    # Behind a linear layer on [images, tokens, features] it would scale the tokens.
    return layer.target is not LINEAR or layer.meta["val"].dim() == 2


def _other_summand(addition: fx.Node, layer: fx.Node) -> fx.Node | None:
    """Return what is added to the layer's result, if it is a tensor of the same shape."""
    given = arguments(addition)
    summands = [given["self"], given["other"]]
    if given["alpha"] != 1 or summands.count(layer) != 1:
        return None
    (other,) = (summand for summand in summands if summand is not layer)
    if not isinstance(other, fx.Node) or other.op == "placeholder":
        return None
    shapes = [str(tuple(node.meta["val"].shape)) for node in (layer, other)]
    return other if shapes[0] == shapes[1] else None


def in_plain_layout(value: Tensor) -> Tensor:
    """Return a tensor whose numbers lie in the order of its axes, and no other way.

    oneDNN's kernels for channels-last layout go wrong for some geometries, and of one channel
    or one pixel a tensor can be in both layouts' strides; hence flat in between.
    """
    return value.contiguous().flatten().view(value.shape)
