"""What a module's forward may depend on beside its inputs, parameters and buffers.

A graph that was captured holds as long as this is the same: Python attributes, modes, hooks,
ties between parameters, the code of every forward.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tinkering.population.copies import attributes_of

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def fingerprint(model: nn.Module) -> Hashable:
    """Return a value that is equal as long as a forward of the module would be captured alike.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        >>> before = fingerprint(model)
        >>> before == fingerprint(model), before == fingerprint(model.eval())
        (True, False)
    """
    first: dict[int, int] = {}
    seen: list[Hashable] = []
    for name, part in model.named_modules(remove_duplicate=False):
        seen.append((name, type(part), type(part).forward))
        for key, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is None:
                seen.append(key)
                continue
            # The place where a tensor stands first: tied ones have the same.
            place = first.setdefault(id(tensor), len(seen))
            seen.append((key, place, tensor.shape, tensor.dtype, tensor.device))
        seen.extend([(key, _digest(value)) for key, value in attributes_of(part)])
    return tuple(seen)


def _digest(value: Any, depth: int = 4) -> Hashable:
    """Return what is equal for an attribute's value and for one that does the same.

    Args:
        value: the attribute's.
        depth: how far containers are looked into, which may contain themselves.
    """
    if isinstance(value, _PLAIN):
        return type(value), value
    if depth and isinstance(value, list | tuple | set | frozenset):
        return type(value), tuple([_digest(item, depth - 1) for item in value])
    if depth and isinstance(value, Mapping):
        items = [(_digest(k, depth - 1), _digest(v, depth - 1)) for k, v in value.items()]
        return type(value), tuple(items)
    if isinstance(value, Tensor):  # parameters and buffers are inputs of the graph
        version = 0 if isinstance(value, nn.Parameter) or value.is_inference() else value._version
        return _Same(value), version
    return _Same(value)


class _Same:
    """Stands for one object: equal to what stands for the very same, as long as that lives."""

    def __init__(self, value: Any) -> None:
        # A bound method is made anew each time it is looked up.
        self._of = id(getattr(value, "__self__", None))
        value = getattr(value, "__func__", value)
        self._hash = id(value)
        try:
            # Weak, since a module's attribute may well lead back to the module.
            self._value: Any = weakref.ref(value)
        except TypeError:
            self._value = lambda: value

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same):
            return NotImplemented
        mine = self._value()
        return mine is not None and mine is other._value() and self._of == other._of
