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
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from tinkering.evaluation.capture import Captured, as_float32, capture

_aten = torch.ops.aten
CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default)
LINEAR = _aten.linear.default
NORM = _aten.batch_norm.default
_ADDITIONS = (_aten.add.Tensor, _aten.add_.Tensor)
_RELUS = (_aten.relu.default, _aten.relu_.default)
_DROPOUT = _aten.dropout.default  # active ones are never captured
# These neither mix numbers nor lose digits, so they keep the dtype they are handed.
_ANY_DTYPE = {*_ADDITIONS, *_RELUS, _aten.max_pool2d.default}


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
        return self.layer.all_input_nodes[0]

    @cached_property
    def given(self) -> dict[str, Any]:
        """The layer's arguments by name."""
        return arguments(self.layer)


Step = Fused | fx.Node
FusedCall = Callable[[Fused, Tensor, Tensor | None], Tensor]
NodeCall = Callable[..., Any]


_programs: WeakKeyDictionary[nn.Module, dict[int, Program]] = WeakKeyDictionary()


def program(model: nn.Module, x: Tensor) -> Program:
    """Return the steps of ``model(x)``; they are kept as long as the module.

    Raises:
        UnsupportedLayerError: the forward cannot be captured.
    """
    captured = capture(model, x)
    programs = _programs.setdefault(model, {})
    if id(captured) not in programs:  # a program holds what it was made from, so ids stay
        programs[id(captured)] = Program(captured)
    return programs[id(captured)]


class Program:
    """The steps of a captured module, in order.

    Args:
        captured: the module's operations.
    """

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.steps = tuple(_fuse(captured.graph))
        (output,) = (node for node in captured.graph.nodes if node.op == "output")
        self.output: fx.Node = output.args[0][0]
        self._released = self._last_uses()
        # Images and buffers are the caller's: a step that writes into one writes into a copy.
        self._written = {_memory(node).name for node in self.plain if _writes(node)}

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
        known: dict[str, Any] = {**values, self.captured.images: as_float32(images)}
        known |= {name: known[name].clone() for name in self._written & known.keys()}
        for step, released in self.walk():
            if isinstance(step, Fused):
                residual = None if step.residual is None else known[step.residual.name]
                known[step.last.name] = call_fused(step, known[step.source.name], residual)
            else:
                known[step.name] = _call(step, calls.get(step.name), known)
            for name in released:
                del known[name]
        result: Tensor = known[self.output.name]
        return result

    def _last_uses(self) -> list[list[str]]:
        """Return the values that are needed no more after each step."""
        last = {self.output.name: len(self.steps)}
        for at, step in enumerate(self.steps):
            if isinstance(step, Fused):
                reads = [step.source, *([step.residual] if step.residual is not None else [])]
            else:
                reads = step.all_input_nodes
            last |= {node.name: at for node in reads if node.op != "placeholder"}
            made = step.last if isinstance(step, Fused) else step
            last.setdefault(made.name, at)  # a value that nobody reads
        last[self.output.name] = len(self.steps)
        return [[name for name, use in last.items() if use == at] for at in range(len(self.steps))]


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return an operation's arguments by name, with the defaults of its schema."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {a.name: value for a, value in zip(schema, node.args, strict=False)}
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
    return {**defaults, **given, **node.kwargs}


def _call(node: fx.Node, call: NodeCall | None, known: Mapping[str, Any]) -> Any:
    # What others know has to be found by an operation in place, and by a view it writes to.
    keep = node.target in _ANY_DTYPE or _shares_memory(node)

    def value(argument: fx.Node) -> Any:
        found = known[argument.name]
        narrow = isinstance(found, Tensor) and found.dtype == torch.bfloat16 and not keep
        return found.float() if narrow else found

    args = fx.map_arg(node.args, value)
    kwargs = fx.map_arg(node.kwargs, value)
    target: NodeCall = call or node.target  # type: ignore[assignment]
    return target(*args, **kwargs)


def _fuse(graph: fx.Graph) -> Iterator[Step]:
    """Yield the steps; a fused one stands where the last of its operations stood."""
    inside: dict[fx.Node, Fused] = {}
    for node in graph.nodes:
        if node not in inside and _is_layer(node):
            fused = _grown(node, inside)
            inside |= dict.fromkeys(_covered(fused), fused)
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node not in inside:
            yield node
        elif node is inside[node].last:
            yield inside[node]


def _is_layer(node: fx.Node) -> bool:
    """Return whether a node has weights that are parameters, buffers or constants."""
    if node.target not in (*CONVOLUTIONS, LINEAR, NORM):
        return False
    weights = node.all_input_nodes[1:]
    in_train_mode = node.target is NORM and (
        arguments(node)["training"] or arguments(node)["running_mean"] is None
    )
    return not in_train_mode and all(weight.op == "placeholder" for weight in weights)


def _grown(layer: fx.Node, taken: Mapping[fx.Node, Fused]) -> Fused:
    """Return a layer with as much as it can take in."""
    norm, residual, relu, last = None, None, False, layer
    source = layer.all_input_nodes[0]
    if layer.target is not NORM:
        behind = _only_user(last)
        if behind is not None and _joins(behind, last) and _lasts(source, last, behind):
            norm = last = behind
    behind = _only_user(last)
    if behind is not None and behind not in taken and behind.target in _ADDITIONS:
        other = _other_summand(behind, last)
        if other is not None and _lasts(source, last, behind):
            residual, last = other, behind
    behind = _only_user(last)
    reads = [source] if residual is None else [source, residual]
    if (
        behind is not None
        and behind.target in _RELUS
        and all(_lasts(read, last, behind) for read in reads)
    ):
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


def _lasts(value: fx.Node, after: fx.Node, before: fx.Node) -> bool:
    """Return whether nothing writes to a value between two operations."""
    memory, node = _memory(value), after.next
    while node is not before:
        if _writes(node) and _memory(node) is memory:
            return False
        node = node.next
    return True


def _writes(node: fx.Node) -> bool:
    """Return whether an operation works in place."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _memory(node: fx.Node) -> fx.Node:
    """Return the operation that made the tensor in whose memory a value is."""
    while _shares_memory(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _shares_memory(node: fx.Node) -> bool:
    """Return whether a value may be in the memory of what it is made from, as a view is."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.target is operator.getitem
    return node.target is _DROPOUT or any(value.alias_info for value in schema.returns)


def _joins(norm: fx.Node, layer: fx.Node) -> bool:
    """Return whether a norm in eval mode scales and shifts the layer's outputs."""
    if norm.target is not NORM:
        return False
    if not _is_layer(norm) or norm.all_input_nodes[0] is not layer:
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
    kept = addition.target is _aten.add.Tensor or summands[0] is layer
    # x += layer(x) writes into x, which others may read; that is left as it is.
    return other if shapes[0] == shapes[1] and kept else None
