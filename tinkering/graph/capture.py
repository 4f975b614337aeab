"""A module's forward as a graph of operations, with ``torch.export``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind, TensorArgument

from tinkering.errors import UnsupportedLayerError
from tinkering.graph.copies import first_line, skeleton
from tinkering.graph.probe import Probe, probe
from tinkering.graph.signature import Signature
from tinkering.graph.tidy import tidy


@dataclass(frozen=True)
class Captured:
    """A module's operations, at the level of ``torch.ops.aten``."""

    graph: fx.Graph
    inputs: tuple[str, ...]
    """Names of the placeholders of the tensors that the module is called with."""
    batched: frozenset[str]
    """Those of them that have an axis of examples, the first."""
    parameters: dict[str, str]
    """Name of the parameter that stands behind a placeholder, by the placeholder's name."""
    buffers: dict[str, str]
    """Likewise for buffers."""
    constants: dict[str, Tensor]
    """The tensor behind a placeholder that is neither, by the placeholder's name."""
    coupled: bool
    """Whether an example's result depends on the examples beside it."""
    random: bool
    """Whether the forward draws random numbers."""

    @property
    def examples(self) -> fx.Node:
        """A placeholder that has an axis of examples."""
        nodes: list[fx.Node] = [n for n in self.graph.nodes if n.name in self.batched]
        return nodes[0]

    def values(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensor behind every placeholder but the inputs', fractions as float32.

        Args:
            state: parameters and buffers by name.
        """
        names = self.parameters | self.buffers
        values = {**self.constants, **{key: state[name] for key, name in names.items()}}
        return as_computed(values, self.parameters)


def as_float32(value: Tensor) -> Tensor:
    """Return decimal numbers as float32, which engines compute from, and others as they are."""
    return value.float() if value.is_floating_point() else value


def as_computed(values: Mapping[str, Tensor], parameters: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors that engines compute from: `as_float32`, but for what needs its digits.

    Args:
        values: by name.
        parameters: names of those that are parameters. In a module whose parameters are float32,
            what is float64 is so for a reason.
    """
    double = torch.float64
    keeps = not any(values[name].dtype == double for name in parameters)
    return {
        name: value if keeps and value.dtype == double else as_float32(value)
        for name, value in values.items()
    }


class NotCapturedError(UnsupportedLayerError):
    """A forward that cannot be captured: ``args`` are the module's name and the reason."""

    def __str__(self) -> str:
        name, reason, _ = self.args
        return f"{name}: its forward is no graph of operations ({reason})."


def capture(
    model: nn.Module, signature: Signature, tensors: Sequence[Tensor], found: Probe | None = None
) -> Captured:
    """Return the operations of a module's forward, for any number of examples.

    The module itself is not run, but a copy of it. `look` keeps what this returns.

    Args:
        model: the module.
        signature: of the call.
        tensors: what a single member sees.
        found: what `probe` returned, if it was asked.

    Raises:
        NotCapturedError: (an `UnsupportedLayerError`) the forward cannot be captured.
        ArgumentError: (a ``ValueError``) as `probe` does.
    """
    found = found or probe(model, signature, tensors)
    if not any(axes.examples for axes in found.signature.axes):
        reason = "it takes no other number of examples than it was given"
        raise NotCapturedError(type(model).__name__, reason)
    return _export(skeleton(model, shares_all=True), tensors, found)


def _export(model: nn.Module, tensors: Sequence[Tensor], found: Probe) -> Captured:
    signature, batch = found.signature, torch.export.Dim("examples")
    # Two examples: with one, its number would be taken for a constant of the network.
    given = [
        torch.zeros(2, *value.shape[1:], dtype=value.dtype, device=value.device)
        if axes.examples
        # A tensor that is there twice, or a parameter as well, would be one for ever.
        else value.detach().clone()
        for value, axes in zip(tensors, signature.axes, strict=True)
    ]
    shapes = {"tensors": tuple({0: batch} if axes.examples else None for axes in signature.axes)}
    called = _Called(model, signature)
    export: Callable[..., torch.export.ExportedProgram] = torch.export.export
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, about itself and what it finds
            program = export(called, tuple(given), dynamic_shapes=shapes, strict=False)
            if not all(map(_is_pure, program.graph.nodes)):
                # No operation writes into a tensor then; others stay as they are.
                program = program.run_decompositions({})
    except Exception as error:  # torch.export promises no family of its own
        said = first_line(error).partition(" For more information")[0]
        reason = f"torch.export cannot capture it: {said}"
        raise NotCapturedError(type(model).__name__, reason) from error
    if not all(map(_is_pure, program.graph.nodes)):
        reason = "torch.export gives no plain list of operations"
        raise NotCapturedError(type(model).__name__, reason)
    signature_of = program.graph_signature
    # A tensor that two layers share has two names there, and one in a module's state.
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    name_of |= {id(buffer): name for name, buffer in model.named_buffers()}
    parameters = {
        placeholder: name_of[id(called.get_parameter(name))]
        for placeholder, name in signature_of.inputs_to_parameters.items()
    }
    buffers = {
        placeholder: name_of[id(called.get_buffer(name))]
        for placeholder, name in signature_of.inputs_to_buffers.items()
    }
    constants = {
        placeholder: program.constants[name]
        for placeholder, name in signature_of.inputs_to_lifted_tensor_constants.items()
    }
    known = {*parameters, *buffers, *constants}
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    inputs = [node.name for node in placeholders if node.name not in known]
    if len(inputs) != len(tensors) or any(map(_depends_on_layout, program.graph.nodes)):
        reason = "it reads a generator, or strides that depend on how values lie in memory"
        raise NotCapturedError(type(model).__name__, reason)
    results = [
        made.arg.name
        for made in signature_of.output_specs
        if made.kind is OutputKind.USER_OUTPUT and isinstance(made.arg, TensorArgument)
    ]
    if len(results) != len(found.result.tree.places):
        reason = "torch.export gives another result than the module"
        raise NotCapturedError(type(model).__name__, reason)
    tidy(program.graph, results)
    coupled = found.coupled or any(has_batch_statistics(node) for node in program.graph.nodes)
    # Some draw for some inputs only, and the probe's need not be among them.
    random = found.random or any(_is_random(node) for node in program.graph.nodes)
    names = zip(inputs, signature.axes, strict=True)
    batched = frozenset(name for name, axes in names if axes.examples)
    return Captured(
        program.graph, tuple(inputs), batched, parameters, buffers, constants, coupled, random
    )


class _Called(nn.Module):
    """A module that takes the tensors of a call, whatever tree they stand in."""

    def __init__(self, model: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.model = model
        self._arguments = signature.arguments

    def forward(self, *tensors: Tensor) -> Any:
        """Return what the module makes of them."""
        args, kwargs = self._arguments(tensors)
        return self.model(*args, **kwargs)


def _is_pure(node: fx.Node) -> bool:
    """Return whether a node is an operation that writes into none of its arguments, or no call."""
    if node.op in ("placeholder", "output"):
        return True
    if node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return not node.target._schema.is_mutable
    # Arithmetic on sizes; whatever else there is has an effect that no schema tells.
    of = getattr(node.target, "__module__", ""), getattr(node.target, "__name__", "")
    return of[0] in ("_operator", "math") or of[1].startswith("sym_")


def _depends_on_layout(node: fx.Node) -> bool:
    """Return whether an operation reads memory that layers here may fill in another order."""
    if node.target is not torch.ops.aten.as_strided.default:
        return False
    return not node.all_input_nodes[0].meta["val"].is_contiguous()


def _is_random(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded not in tags:
        return False
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {a.name: a.default_value for a in schema if a.has_default_value()}
    given |= {a.name: value for a, value in zip(schema, node.args, strict=False)}
    given |= node.kwargs
    probability = given.get("p", given.get("dropout_p", 1.0))
    trains = given.get("train", given.get("training", True))
    return trains is not False and probability != 0


def has_batch_statistics(node: fx.Node) -> bool:
    """Return whether a node is a batch norm that uses the batch it sees."""
    if node.target is not torch.ops.aten.batch_norm.default:
        return False
    _, _, _, running_mean, _, training = node.args[:6]
    return bool(training) or running_mean is None
