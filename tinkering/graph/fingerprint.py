"""What a module's forward may depend on beside its inputs, parameters and buffers.

A graph that was captured holds as long as this is the same: Python attributes, modes, hooks,
ties between parameters, the code of every forward.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import is_dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tinkering.graph.copies import attributes_of

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_EXACTLY = frozenset(_PLAIN)
"""The same, for most values: a set is faster to look into than classes are to go through."""


def fingerprint(model: nn.Module, depth: int = 4) -> Hashable:
    """Return a value that is equal as long as a forward of the module would be captured alike.

    Args:
        model: the module.
        depth: how far attributes are looked into, which may contain themselves.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        >>> before = fingerprint(model)
        >>> before == fingerprint(model), before == fingerprint(model.eval())
        (True, False)
    """
    first: dict[int, int] = {}
    seen: list[Hashable] = []
    known: set[type] = set()
    for name, part in model.named_modules(remove_duplicate=False):
        kind = type(part)
        if kind not in known:
            known.add(kind)
            seen.extend(_code_of(kind))
        seen.append((name, kind))
        for key, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is None:
                seen.append(key)
                continue
            # The place where a tensor stands first: tied ones have the same.
            place = first.setdefault(id(tensor), len(seen))
            seen.append((key, place, tensor.shape, tensor.dtype, tensor.device))
        seen.extend([(key, digest(value, depth)) for key, value in attributes_of(part)])
    return tuple(seen)


def _code_of(kind: type) -> list[object]:
    """Return the functions of a module's class, of those that are no part of PyTorch."""
    return [
        value
        for each in kind.__mro__
        if not each.__module__.startswith("torch.")
        for value in vars(each).values()
        if callable(value) or isinstance(value, property | staticmethod | classmethod)
    ]


def digest(value: Any, depth: int = 4) -> Hashable:
    """Return what is equal for an attribute's value and for one that does the same.

    Args:
        value: the attribute's.
        depth: as in `fingerprint`.
    """
    kind = type(value)
    if kind in _EXACTLY or isinstance(value, _PLAIN):
        return kind, value, str(value) if value == 0 else ""
    if kind is OrderedDict and not value:  # as most hooks are
        return kind, ()
    if depth and isinstance(value, list | tuple | set | frozenset):
        return kind, tuple([digest(item, depth - 1) for item in value])
    if depth and isinstance(value, Mapping):
        items = [(digest(k, depth - 1), digest(v, depth - 1)) for k, v in value.items()]
        return kind, tuple(items)
    if depth and isinstance(value, partial):
        return partial, tuple(
            digest(v, depth - 1) for v in (value.func, value.args, value.keywords)
        )
    if depth and isinstance(value, nn.Module):  # in a container; its parameters are constants
        return fingerprint(value, depth - 1), tuple(
            map(_Same, [*value.parameters(), *value.buffers()])
        )
    plain = is_dataclass(value) or isinstance(value, SimpleNamespace)
    if depth and plain and hasattr(value, "__dict__") and not isinstance(value, type):
        return _Same(value), digest(vars(value), depth - 1)
    return _Same(value)  # a graph holds the very tensors, and sees what becomes of their values


class _Same:
    """Stands for one object: equal to what stands for the very same, as long as that lives."""

    def __init__(self, value: Any) -> None:
        # A bound method is made anew each time it is looked up.
        function = getattr(value, "__func__", None)
        parts = [value] if function is None else [function, value.__self__]
        self._hash = hash(tuple(map(id, parts)))
        self._parts = [_weak(part) for part in parts]

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same):
            return NotImplemented
        mine, others = ([part() for part in one._parts] for one in (self, other))
        same = len(mine) == len(others)
        return same and all(a is b is not None for a, b in zip(mine, others, strict=True))


def _weak(value: Any) -> Callable[[], Any]:
    """Return what returns a value, as long as it lives."""
    try:
        # Weak, since a module's attribute may well lead back to the module.
        return weakref.ref(value)
    except TypeError:
        return lambda: value
