"""What members must have in common to be stacked, and what is said where they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from tinkering.errors import ArgumentError
from tinkering.required import require_named

Traits = dict[str, dict[str, object]]
"""Of each parameter, buffer and submodule: words, and what a module has there."""


def detached(argument: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without their history.

    Raises:
        ArgumentError: (a ``ValueError``) one is not a tensor, or has no axis of members.
    """
    require_named(argument, tensors)
    held = {}
    for name, tensor in tensors.items():
        if not tensor.ndim:
            raise ArgumentError(argument, f"{name!r} of shape [members, ...]", [])
        held[name] = tensor.detach()
    return held


def require_members(argument: str, stack: Mapping[str, Tensor], members: int, because: str) -> None:
    """Refuse tensors that are not ``[members, ...]``.

    Raises:
        ArgumentError: (a ``ValueError``) one is not.
    """
    for name, tensor in stack.items():
        if len(tensor) != members:
            needed = f"{members} members along the first axis of {name!r}, {because}"
            raise ArgumentError(argument, needed, len(tensor))


def in_order_of(
    argument: str, stack: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Return the tensors in the order of the model's, whose shapes are given.

    Raises:
        ArgumentError: (a ``ValueError``) a name is missing or unknown, or a shape is not
            ``[members, *shape]``.
    """
    for name, tensor in stack.items():
        if name not in shapes:
            raise ArgumentError(argument, f"only {argument} that the model has", repr(name))
        needed = [len(tensor), *shapes[name]]
        if list(tensor.shape) != needed:
            raise ArgumentError(
                argument, f"{name!r} of shape {needed}, as the model's", list(tensor.shape)
            )
    for name in shapes:
        if name not in stack:
            raise ArgumentError(argument, f"a tensor for the model's {name!r}", "none")
    return {name: stack[name] for name in shapes}


def require_alike(modules: Sequence[Any]) -> None:
    """Refuse modules that are not all like the first.

    Raises:
        ArgumentError: (a ``ValueError``) one is not, or there is no module.
    """
    if not modules:
        raise ArgumentError("models", "at least one module", "none")
    for index, module in enumerate(modules):
        if not isinstance(module, nn.Module):
            raise ArgumentError("models", f"a module for member {index}", type(module).__name__)
    first = _traits(modules[0])
    for index, module in enumerate(modules[1:], 1):
        member = _traits(module)
        for part, traits in first.items():
            if part not in member:
                needed = f"for member {index} {part}, as member 0 has"
                raise ArgumentError("models", needed, "none")
            for word, trait in traits.items():
                if (came := member[part][word]) != trait:
                    needed = f"for member {index} {part} {word} {_said(trait)}, as member 0 has"
                    raise ArgumentError("models", needed, _said(came))
        for part in member:
            if part not in first:
                needed = f"for member {index} the parts of member 0 and no other"
                raise ArgumentError("models", needed, part)


def _traits(module: nn.Module) -> Traits:
    traits: Traits = {}
    tensors = {"parameter": module.named_parameters(), "buffer": module.named_buffers()}
    for kind, named in tensors.items():
        for name, held in named:
            of = {"of shape": list(held.shape), "of dtype": held.dtype, "on device": held.device}
            traits[f"a {kind} {name!r}"] = of
    for name, part in module.named_modules():
        of = {
            "of type": type_before_parametrizations(part),
            "in": "train mode" if part.training else "eval mode",
        }
        traits[f"a submodule {name!r}" if name else "a module"] = of
    return traits


def _said(trait: object) -> object:
    return trait.__qualname__ if isinstance(trait, type) else trait
