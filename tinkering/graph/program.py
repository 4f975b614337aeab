"""A captured module as a list of steps, with norms, residuals and activations fused.

A layer with a weight (a convolution, a linear layer, a norm) takes in what stands behind
it, as far as nobody else needs the values in between:

    weight -> batch norm in eval mode -> addition of a tensor -> relu or another such function

No class and no layer name is looked at, only operations, so this holds for any module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx

from tinkering.graph.activation import Activation, activation_of
from tinkering.graph.arguments import arguments as arguments
from tinkering.graph.capture import Captured

_aten = torch.ops.aten
CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default)
LINEAR = _aten.linear.default
NORM = _aten.batch_norm.default
ADDITION = _aten.add.Tensor
RELU = _aten.relu.default


@dataclass(frozen=True, eq=False)
class Fused:
    """A layer with a weight, and what it takes in; `norm` alone where there is no weight."""

    layer: fx.Node
    """A convolution, a linear layer, or a batch norm that stands alone."""
    norm: fx.Node | None
    residual: fx.Node | None
    """A tensor of the result's shape that is added before the activation."""
    activation: Activation | None
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
_Known = Callable[[fx.Node], Activation | None]


class Program:
    """The steps of a captured module, in order.

    Args:
        captured: the module's operations.
        known: returns the function that a node applies, if a layer is to take it in.
    """

    def __init__(self, captured: Captured, known: _Known = activation_of) -> None:
        self.captured = captured
        self.steps = tuple(_fuse(captured.graph, frozenset(captured.inputs), known))
        (output,) = (node for node in captured.graph.nodes if node.op == "output")
        self.outputs: tuple[fx.Node, ...] = tuple(output.args[0])
        self.inputs = [n for n in captured.graph.nodes if n.name in captured.inputs]

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
        """Return whether the step's result is the module's, or a part of it."""
        return step.last in self.outputs

    def needed_after(self, position: int) -> list[fx.Node]:
        """Return the values from up to a step that later steps read, and the outputs.

        Weights and buffers are left out.
        """
        made = {_made(step) for step in self.steps[position + 1 :]}
        read = dict.fromkeys(node for step in self.steps[position + 1 :] for node in _reads(step))
        read |= dict.fromkeys(self.outputs)
        return [
            node
            for node in read
            if node not in made and (node.op != "placeholder" or node in self.inputs)
        ]

    @cached_property
    def _released(self) -> list[list[str]]:
        """Return the values that are needed no more after each step."""
        last: dict[str, int] = {}
        for at, step in enumerate(self.steps):
            last |= {node.name: at for node in _reads(step) if node.op != "placeholder"}
            last.setdefault(name_of(step), at)  # a value that nobody reads
        last |= {node.name: len(self.steps) for node in self.outputs}
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


def _fuse(graph: fx.Graph, inputs: frozenset[str], known: _Known) -> Iterator[Step]:
    """Yield the steps; a fused one stands where the last of its operations stood."""
    inside: dict[fx.Node, Fused] = {}
    computed: set[fx.Node] = set()  # from the inputs, and not from parameters alone
    for node in graph.nodes:
        if node.name in inputs or not computed.isdisjoint(node.all_input_nodes):
            computed.add(node)
    for node in graph.nodes:
        if node in computed and node not in inside and _is_layer(node, inputs):
            fused = _grown(node, inside, inputs, known)
            inside |= dict.fromkeys(_covered(fused), fused)
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node not in inside:
            yield node
        elif node is inside[node].last:
            yield inside[node]


def _is_layer(node: fx.Node, inputs: frozenset[str]) -> bool:
    """Return whether a node has weights that are parameters, buffers or constants."""
    if node.target not in (*CONVOLUTIONS, LINEAR, NORM):
        return False
    given = arguments(node)
    if node.target is NORM and (given["training"] or given["running_mean"] is None):
        return False
    held = (value for key, value in given.items() if key != "input")
    weights = [value for value in held if isinstance(value, fx.Node)]
    return all(weight.op == "placeholder" and weight.name not in inputs for weight in weights)


def _grown(
    layer: fx.Node, taken: Mapping[fx.Node, Fused], inputs: frozenset[str], known: _Known
) -> Fused:
    """Return a layer with as much as it can take in."""
    norm, residual, activation, last = None, None, None, layer
    behind = _only_user(last)
    if layer.target is not NORM and behind is not None and _joins(behind, last, inputs):
        norm = last = behind
    behind = _only_user(last)
    if behind is not None and behind not in taken and behind.target is ADDITION:
        other = _other_summand(behind, last)
        if other is not None:
            residual, last = other, behind
    behind = _only_user(last)
    if behind is not None and (activation := known(behind)) is not None:
        last = behind
    return Fused(layer, norm, residual, activation, last)


def _covered(fused: Fused) -> Iterator[fx.Node]:
    node = fused.layer
    while node is not fused.last:
        yield node
        (node,) = node.users
    yield node


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _joins(norm: fx.Node, layer: fx.Node, inputs: frozenset[str]) -> bool:
    """Return whether a norm in eval mode scales and shifts the layer's outputs."""
    if norm.target is not NORM:
        return False
    if not _is_layer(norm, inputs) or arguments(norm)["input"] is not layer:
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
