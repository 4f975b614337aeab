"""A module's forward as a graph of operations, with ``torch.export``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from tinkering.errors import UnsupportedLayerError
from tinkering.graph.copies import first_line, skeleton
from tinkering.graph.probe import Probe, probe
from tinkering.graph.tidy import tidy


@dataclass(frozen=True)
class Captured:
    """A module's operations, at the level of ``torch.ops.aten``."""

    graph: fx.Graph
    images: str
    """Name of the placeholder of the images."""
    parameters: dict[str, str]
    """Name of the parameter that stands behind a placeholder, by the placeholder's name."""
    buffers: dict[str, str]
    """Likewise for buffers."""
    constants: dict[str, Tensor]
    """The tensor behind a placeholder that is neither, by the placeholder's name."""
    coupled: bool
    """Whether an image's result depends on the images beside it."""
    random: bool
    """Whether the forward draws random numbers."""

    def values(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensor behind every placeholder but the images', decimals as float32.

        Args:
            state: parameters and buffers by name.
        """
        names = self.parameters | self.buffers
        values = {**self.constants, **{key: state[name] for key, name in names.items()}}
        # In a module of float32, what is float64 is so for a reason.
        keeps = not any(values[key].dtype == torch.float64 for key in self.parameters)
        return {
            key: value if keeps and value.dtype == torch.float64 else as_float32(value)
            for key, value in values.items()
        }


def as_float32(value: Tensor) -> Tensor:
    """Return decimal numbers as float32, which engines compute from, and others as they are."""
    return value.float() if value.is_floating_point() else value


class NotCapturedError(UnsupportedLayerError):
    """A forward that cannot be captured: ``args`` are the module's name and the reason."""

    def __str__(self) -> str:
        name, reason = self.args
        return f"{name}: its forward is no graph of operations ({reason})."


def capture(model: nn.Module, x: Tensor, found: Probe | None = None) -> Captured:
    """Return the operations of ``model(x)``, for any number of images.

    The module itself is not run, but a copy of it. `look` keeps what this returns.

    Args:
        model: the module.
        x: ``[images, ...]``; as in `probe`.
        found: what `probe` returned, if it was asked.

    Raises:
        NotCapturedError: (an `UnsupportedLayerError`) the forward cannot be captured.
        ArgumentError: (a ``ValueError``) as `probe` does.
    """
    return _export(skeleton(model, shares_all=True), x, probe(model, x) if found is None else found)


def _export(model: nn.Module, x: Tensor, found: Probe) -> Captured:
    # Two images: with one, its number would be taken for a constant of the network.
    example = torch.zeros(2, *x.shape[1:], dtype=x.dtype, device=x.device)
    batch: dict[int, Any] = {0: torch.export.Dim("images")}
    export: Callable[..., torch.export.ExportedProgram] = torch.export.export
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, about itself and what it finds
            program = export(model, (example,), dynamic_shapes=(batch,), strict=False)
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
    signature = program.graph_signature
    # A tensor that two layers share has two names there, and one in a module's state.
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    name_of |= {id(buffer): name for name, buffer in model.named_buffers()}
    parameters = {
        placeholder: name_of[id(model.get_parameter(name))]
        for placeholder, name in signature.inputs_to_parameters.items()
    }
    buffers = {
        placeholder: name_of[id(model.get_buffer(name))]
        for placeholder, name in signature.inputs_to_buffers.items()
    }
    constants = {
        placeholder: program.constants[name]
        for placeholder, name in signature.inputs_to_lifted_tensor_constants.items()
    }
    given = {*parameters, *buffers, *constants}
    placeholders = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    unknown = [name for name in placeholders if name not in given]
    if len(unknown) != 1 or any(map(_depends_on_layout, program.graph.nodes)):
        reason = "it reads a generator, or strides that depend on how values lie in memory"
        raise NotCapturedError(type(model).__name__, reason)
    (images,) = unknown
    tidy(program.graph, signature.user_outputs[0])
    coupled = found.coupled or any(has_batch_statistics(node) for node in program.graph.nodes)
    # Some draw for some inputs only, and the probe's need not be among them.
    random = found.random or any(_is_random(node) for node in program.graph.nodes)
    return Captured(program.graph, images, parameters, buffers, constants, coupled, random)


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
