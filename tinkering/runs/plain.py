"""A strategy's state as JSON and tensors by name, and back: no pickle, no code in a file.

What a file may say is decided by who reads it: dataclasses and named tuples are made from a list
of classes that the reader hands over, and from nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from torch import Tensor

from tinkering.errors import ArgumentError

_KINDS = "numbers, text, None, tensors, and lists, tuples, mappings and dataclasses of these"


def to_plain(value: Any, tensors: dict[str, Tensor], path: str = "state") -> Any:
    """Return what JSON can hold of a value, and put its tensors into `tensors`.

    Args:
        value: numbers, text, None, tensors, and lists, tuples, mappings, named tuples and
            dataclasses of these.
        tensors: takes copies of the tensors, by their place in the value.
        path: the place of the value.

    Raises:
        ArgumentError: (a ``ValueError``) there is something else in it.

    Example:
        >>> tensors = {}
        >>> plain = to_plain({"step": 3, "mean": Tensor([1.0]), "betas": (0.9, 0.99)}, tensors)
        >>> tensors
        {'state.mean': tensor([1.])}
        >>> from_plain(plain, tensors, {})
        {'step': 3, 'mean': tensor([1.]), 'betas': (0.9, 0.99)}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Tensor):
        while path in tensors:  # {"a": {"b": ...}} beside {"a.b": ...}
            path += "'"
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, list):
        return [to_plain(part, tensors, f"{path}.{at}") for at, part in enumerate(value)]
    if isinstance(value, Mapping):
        return {
            "mapping": [
                [to_plain(key, tensors, path), to_plain(part, tensors, f"{path}.{key}")]
                for key, part in value.items()
            ]
        }
    fields = _fields(value)
    if fields is not None:
        parts = {name: to_plain(part, tensors, f"{path}.{name}") for name, part in fields.items()}
        return {"class": type(value).__name__, "fields": parts}
    if isinstance(value, tuple):
        return {"tuple": to_plain(list(value), tensors, path)}
    raise ArgumentError(path, _KINDS, type(value).__name__)


def from_plain(plain: Any, tensors: Mapping[str, Tensor], classes: Mapping[str, type]) -> Any:
    """Return the value that `to_plain` was given.

    Args:
        plain: what `to_plain` returned.
        tensors: what it put there.
        classes: that may be made, by name: see `classes_of`.

    Raises:
        KeyError, TypeError, ValueError: `plain` is not what `to_plain` returns for these classes.
    """
    if isinstance(plain, list):
        return [from_plain(part, tensors, classes) for part in plain]
    if not isinstance(plain, dict):
        return plain
    if "class" in plain:
        fields = plain["fields"].items()
        parts = {name: from_plain(part, tensors, classes) for name, part in fields}
        return classes[plain["class"]](**parts)
    ((kind, held),) = plain.items()
    if kind == "float":
        return float(held)
    if kind == "tensor":
        return tensors[held]
    if kind == "tuple":
        return tuple(from_plain(held, tensors, classes))
    if kind == "mapping":
        pairs = (from_plain(pair, tensors, classes) for pair in held)
        return {key: value for key, value in pairs}
    raise ValueError(f"unknown kind {kind!r}")


def classes_of(value: Any) -> dict[str, type]:
    """Return a dataclass's own class and those that its annotations name, by name.

    Args:
        value: an instance.

    Example:
        >>> @dataclasses.dataclass
        ... class Stand:
        ...     generation: int
        >>> classes_of(Stand(3))
        {'Stand': <class 'tinkering.runs.plain.Stand'>}
    """
    found: dict[str, type] = {}
    waiting: list[Any] = [type(value)]
    while waiting:
        annotated = waiting.pop()
        waiting += get_args(annotated)
        if isinstance(annotated, type) and _has_fields(annotated):
            if found.get(annotated.__name__) is annotated:
                continue
            found[annotated.__name__] = annotated
            waiting += get_type_hints(annotated).values()
    return found


def _has_fields(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))


def _fields(value: Any) -> dict[str, Any] | None:
    """Return the fields of a dataclass or a named tuple; None for anything else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value._asdict() if isinstance(value, tuple) and hasattr(value, "_asdict") else None
