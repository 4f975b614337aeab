"""Parameters by patterns over their names, in the way of file names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from tinkering.errors import ArgumentError

Patterns = str | Sequence[str]
"""One pattern or several: ``*`` is anything, dots included, ``?`` one character, ``[ab]`` one of
some; upper and lower case differ."""


def require_matches(argument: str, names: Iterable[str], patterns: Iterable[str]) -> None:
    """Refuse a pattern that matches no name.

    Args:
        argument: its name, for the error.
        names: of the parameters.
        patterns: over them.

    Raises:
        ArgumentError: (a ``ValueError``) one matches none.
    """
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            advice = f"The parameters are {', '.join(map(repr, names)) or 'none'}."
            needed = "patterns that match a parameter's name"
            raise ArgumentError(argument, needed, repr(pattern), advice)


def matching(argument: str, names: Iterable[str], patterns: Patterns) -> list[str]:
    """Return the names that one of the patterns matches, in their own order.

    ``"*"`` matches all, also where there is none.

    Raises:
        ArgumentError: (a ``ValueError``) a pattern matches no name, or there is no pattern.

    Example:
        >>> matching("parameters", ["body.weight", "fc.weight", "fc.bias"], "fc.*")
        ['fc.weight', 'fc.bias']
        >>> matching("parameters", ["body.weight", "fc.weight"], ["body.*", "head"])
        Traceback (most recent call last):
        tinkering.errors.ArgumentError: parameters: needed patterns that match a parameter's name,
        got 'head'. The parameters are 'body.weight', 'fc.weight'.
    """
    names, several = list(names), [patterns] if isinstance(patterns, str) else list(patterns)
    if not several:
        raise ArgumentError(argument, "at least one pattern", "none")
    require_matches(argument, names, (pattern for pattern in several if pattern != "*"))
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in several)]
