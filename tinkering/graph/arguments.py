"""What an operation of a captured graph is called with."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import fx


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return an operation's arguments by name, with the defaults of its schema."""
    names, defaults = _schema(node.target)
    return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}


@cache
def _schema(operation: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the names of an operation's arguments, and the defaults of some: slow to ask for."""
    schema = operation._schema.arguments
    defaults = {each.name: each.default_value for each in schema if each.has_default_value()}
    return tuple(each.name for each in schema), defaults
