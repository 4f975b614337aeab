"""What an operation of a captured graph is called with."""

from __future__ import annotations

from typing import Any

from torch import fx


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return an operation's arguments by name, with the defaults of its schema."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {a.name: value for a, value in zip(schema, node.args, strict=False)}
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
    return {**defaults, **given, **node.kwargs}
