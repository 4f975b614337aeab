"""Copies of a module to run in its stead, so that nothing a forward does reaches the user's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree

from tinkering.errors import ArgumentError

_OF_NO_CONSEQUENCE = {
    "_backward_hooks",
    "_backward_pre_hooks",
    "_buffers",
    "_is_full_backward_hook",
    "_load_state_dict_post_hooks",
    "_load_state_dict_pre_hooks",
    "_modules",
    "_non_persistent_buffers_set",
    "_parameters",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
}
"""What every module holds beside attributes that its forward may read."""


def skeleton(model: nn.Module, shares_all: bool = False) -> nn.Module:
    """Return a copy of a module that holds the very parameters and buffers of the module.

    ``functional_call`` puts a member's tensors into a module for the time of a call. In a
    copy of its own, a thread is in nobody's way, and an attribute that a forward assigns is
    assigned there.

    Args:
        model: the module.
        shares_all: whether it also holds the very tensors that are plain attributes, for a graph
            that is to see what becomes of them; a forward that runs could write into them.

    Raises:
        ArgumentError: (a ``ValueError``) the module cannot be copied.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> copied = skeleton(model)
        >>> copied is model, copied.weight is model.weight
        (False, True)
    """
    held = [*model.parameters(), *model.buffers()]
    if shares_all:
        held += [tensor for _, value in attributes(model) for tensor in tensors_in(value)]
    return copied_with(model, {id(tensor): tensor for tensor in held})


def independent_copy(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a copy that shares no memory with the module.

    Args:
        model: the module.
        change: makes a parameter's value in the copy of the module's.

    Raises:
        ArgumentError: (a ``ValueError``) the module cannot be copied.
    """
    copies: dict[int, Any] = {id(buffer): buffer.clone() for buffer in model.buffers()}
    for parameter in model.parameters():
        value = change(parameter.detach()).clone()
        copies[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    return copied_with(model, copies)


def attributes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what a module and its parts hold beside parameters, buffers and parts, by name."""
    for name, part in model.named_modules():
        for key, value in attributes_of(part):
            yield f"{name}.{key}" if name else key, value


def attributes_of(part: nn.Module) -> list[tuple[str, Any]]:
    """Return what a module itself holds beside parameters, buffers and parts, by name."""
    return [(key, value) for key, value in vars(part).items() if key not in _OF_NO_CONSEQUENCE]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in an attribute's value, those of modules in containers among them."""
    for leaf in _pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, nn.Module):
            yield from [*leaf.parameters(), *leaf.buffers()]
            for _, held in attributes(leaf):
                yield from tensors_in(held)


def copied_with(model: nn.Module, tensors: dict[int, Any]) -> nn.Module:
    """Return a deep copy of a module with other tensors in the place of some of its own.

    Args:
        model: the module.
        tensors: what the copy holds, by the ``id`` of what the module holds.

    Raises:
        ArgumentError: (a ``ValueError``) the module cannot be copied.
    """
    copies = dict(tensors)  # wherever deepcopy meets one of these, it takes ours
    for _, value in attributes(model):
        for tensor in tensors_in(value):
            if not tensor.is_leaf:  # deepcopy refuses a history
                copies.setdefault(id(tensor), tensor.detach().clone())
    try:
        copied = copy.deepcopy(model, copies)
        if copied is model:
            raise TypeError("its __deepcopy__ returns the module itself")
        return copied
    except Exception as error:  # a module may hold whatever cannot be copied: a file, a lock
        raise ArgumentError(
            "model",
            "a module that copy.deepcopy can copy",
            f"{type(model).__name__} ({first_line(error)})",
            "Members run in copies of it, so that no forward changes yours.",
        ) from error


def first_line(error: Exception) -> str:
    r"""Return an error's first line, or its class where it says nothing.

    Example:
        >>> first_line(ValueError("a\nb")), first_line(ValueError())
        ('a', 'ValueError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
