"""What has to be a tensor, or parameters by name; anything else is refused in words."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from tinkering.errors import ArgumentError


def kind_of(value: object) -> str:
    """Return what a value is, as a message says it.

    Example:
        >>> kind_of([1.0]), kind_of(1)
        ('a list', 'an int')
    """
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' or name == 'ndarray' else 'a'} {name}"


def require_kind(argument: str, value: object, kind: type, needed: str) -> None:
    """Refuse what is of another kind; a class is of none.

    Raises:
        ArgumentError: (a ``ValueError``) it is.
    """
    if isinstance(value, type) or not isinstance(value, kind):
        raise ArgumentError(argument, needed, repr(value))


def require_tensor(argument: str, value: object, needed: str = "a tensor") -> None:
    """Refuse what is no tensor, such as an array or a list.

    Raises:
        ArgumentError: (a ``ValueError``) it is none.

    Example:
        >>> require_tensor("x", [1.0, 2.0])
        Traceback (most recent call last):
        tinkering.errors.ArgumentError: x: needed a tensor, got a list. Call torch.as_tensor on it.
    """
    if not isinstance(value, Tensor):
        raise ArgumentError(argument, needed, kind_of(value), "Call torch.as_tensor on it.")


def require_named(argument: str, value: object) -> None:
    """Refuse what is no mapping of tensors by name.

    Raises:
        ArgumentError: (a ``ValueError``) it is none.
    """
    if not isinstance(value, Mapping):
        advice = "It is dict(model.named_parameters())." if isinstance(value, nn.Module) else ""
        raise ArgumentError(argument, "tensors by name", kind_of(value), advice)
    for name, tensor in value.items():
        if not isinstance(tensor, Tensor):
            raise ArgumentError(argument, f"a tensor for {name!r}", kind_of(tensor))


def require_floating_point(argument: str, params: Mapping[str, Tensor]) -> None:
    """Refuse parameters that noise cannot be added to without being rounded away.

    Raises:
        ArgumentError: (a ``ValueError``) one is no tensor, or holds integers or booleans.

    Example:
        >>> import torch
        >>> require_floating_point("model", {"table": torch.tensor([1, 2])})
        Traceback (most recent call last):
        tinkering.errors.ArgumentError: model: needed parameters of a floating-point dtype, got
        torch.int64 in 'table'. Hand in the others as a dict: it stays as it is then.
    """
    require_named(argument, params)
    for name, value in params.items():
        if isinstance(value, UninitializedParameter):
            advice = "Call the module once."
            raise ArgumentError(argument, "parameters with a shape", f"a lazy {name!r}", advice)
        if not (value.is_floating_point() or value.is_complex()):
            raise ArgumentError(
                argument,
                "parameters of a floating-point dtype",
                f"{value.dtype} in {name!r}",
                "Hand in the others as a dict: it stays as it is then.",
            )
