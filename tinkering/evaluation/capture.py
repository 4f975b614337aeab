"""A module's forward as a graph of operations, with ``torch.export``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from tinkering.errors import ArgumentError, UnsupportedLayerError


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
        return {key: as_float32(value) for key, value in values.items()}


def as_float32(value: Tensor) -> Tensor:
    """Return decimal numbers as float32, which engines compute from, and others as they are."""
    return value.float() if value.is_floating_point() else value


_Kind = tuple[torch.dtype, torch.device, tuple[int, ...], tuple[bool, ...]]
_captured: WeakKeyDictionary[nn.Module, dict[_Kind, Captured | str]] = WeakKeyDictionary()
"""The graph, or why there is none."""


class NotCapturedError(UnsupportedLayerError):
    """A forward that cannot be captured: ``args`` are the module's name and the reason."""

    def __str__(self) -> str:
        name, reason = self.args
        return f"{name}: its forward is no graph of operations ({reason})."


def capture(model: nn.Module, x: Tensor) -> Captured:
    """Return the operations of ``model(x)``, for any number of images.

    The result is kept for the module, its modes and the shape of an image: a module whose
    forward is changed afterwards has to be made anew.

    Args:
        model: with no active dropout.
        x: ``[images, ...]``; numbers without a decimal point are taken for an example.

    Raises:
        NotCapturedError: (an `UnsupportedLayerError`) the forward cannot be captured.
        ArgumentError: (a ``ValueError``) the module does not take `x`, or returns no tensor.
    """
    programs = _captured.setdefault(model, {})
    modes = tuple(module.training for module in model.modules())
    kind = (x.dtype, x.device, tuple(x.shape[1:]), modes)
    if kind not in programs:
        coupled = _couples_images(model, x)
        try:
            programs[kind] = _export(model, x, coupled)
        except NotCapturedError as error:  # kept as well: the next try would take as long
            programs[kind] = str(error.args[1])
    found = programs[kind]
    if isinstance(found, str):
        raise NotCapturedError(type(model).__name__, found)
    return found


def draws_random_numbers(model: nn.Module, captured: Captured | None) -> bool:
    """Return whether the forward is random, as active dropout is.

    Args:
        model: the module.
        captured: its operations; None where they are not known, and then its layers tell.
    """
    if captured is None:
        layers = model.modules()
        dropouts = [layer for layer in layers if isinstance(layer, nn.modules.dropout._DropoutNd)]
        return any(layer.training and layer.p > 0 for layer in dropouts)
    return captured.random


def first_line(error: Exception) -> str:
    r"""Return an error's first line, or its class where it says nothing.

    Example:
        >>> first_line(ValueError("a\nb")), first_line(ValueError())
        ('a', 'ValueError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _is_random(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded not in tags:
        return False
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {a.name: a.default_value for a in schema if a.has_default_value()}
    given |= {a.name: value for a, value in zip(schema, node.args, strict=False)}
    given |= node.kwargs
    probability = given.get("p", given.get("dropout_p", 1.0))
    return given.get("train", True) is not False and probability != 0


def _couples_images(model: nn.Module, x: Tensor) -> bool:
    """Return whether the result for an image depends on the images beside it."""
    images = x[[0, -1]]
    if images.is_floating_point():  # else numbers with a meaning, such as words
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(images.shape, generator=generator).to(images)
    elif torch.equal(images[0], images[1]):
        images[1] = 0
    # Copies: a norm that was left in train mode would write into the module's buffers.
    state = {name: value.clone() for name, value in model.named_buffers()} | _stirred(model)
    # Active dropout would leave the caller's generator elsewhere than a kept result does.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            together = functional_call(model, state, (images.clone(),))
        except (RuntimeError, ValueError, IndexError) as error:
            raise ArgumentError(
                "x",
                f"images that {type(model).__name__} takes, [batch, ...] for each member",
                f"{list(x.shape)} of {x.dtype} ({first_line(error)})",
            ) from error
        if not isinstance(together, Tensor):
            raise ArgumentError(
                "model",
                "a module that returns a tensor",
                f"{type(model).__name__}, which returns a {type(together).__name__}",
            )
        if not together.dim():
            raise ArgumentError(
                "model", "a module that returns [batch, ...]", "one that returns a single number"
            )
        try:
            alone = [functional_call(model, state, (images[i : i + 1].clone(),)) for i in (0, 1)]
        except ValueError:  # a norm that needs more than one value a channel
            return True
    if len(together) != 2:
        return True
    # Both: a running sum has an influence on those that come later alone.
    return not torch.allclose(together, torch.cat(alone), rtol=1e-3, atol=1e-4)


def _stirred(model: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters with some noise: a head of zeros would hide what is before."""
    generator = torch.Generator().manual_seed(0)
    stirred = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        spread = 0.1 if value.dim() < 2 else 0.5 / max(1, value[0].numel()) ** 0.5
        noise = torch.randn(value.shape, generator=generator, device="cpu") * spread
        stirred[name] = value + noise.to(value)
    return stirred


def _export(model: nn.Module, x: Tensor, coupled: bool) -> Captured:
    # Two images: with one, its number would be taken for a constant of the network.
    example = torch.zeros(2, *x.shape[1:], dtype=x.dtype, device=x.device)
    batch: dict[int, Any] = {0: torch.export.Dim("images")}
    export: Callable[..., torch.export.ExportedProgram] = torch.export.export
    try:
        program = export(model, (example,), dynamic_shapes=(batch,), strict=False)
    except Exception as error:  # torch.export promises no family of its own
        reason = f"torch.export cannot capture it: {first_line(error)}"
        raise NotCapturedError(type(model).__name__, reason) from error
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
    (images,) = (name for name in placeholders if name not in given)
    random = any(_is_random(node) for node in program.graph.nodes)
    coupled = coupled or any(_has_batch_statistics(node) for node in program.graph.nodes)
    return Captured(program.graph, images, parameters, buffers, constants, coupled, random)


def _has_batch_statistics(node: fx.Node) -> bool:
    """Return whether a node is a batch norm that uses the batch it sees."""
    if node.target is not torch.ops.aten.batch_norm.default:
        return False
    _, _, _, running_mean, _, training = node.args[:6]
    return bool(training) or running_mean is None
