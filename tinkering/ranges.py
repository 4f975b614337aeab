"""Refusals of numbers that are out of range, in one voice."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from tinkering.errors import ArgumentError
from tinkering.required import require_kind


def require_at_least(least: int, **given: Any) -> None:
    """Refuse an integer below `least`; None is no integer, and passes.

    Args:
        least: the smallest that is accepted.
        given: what came, by the name of the argument.

    Raises:
        ArgumentError: (a ``ValueError``) one is smaller.

    Example:
        >>> require_at_least(1, group=None, rank=0)
        Traceback (most recent call last):
        tinkering.errors.ArgumentError: rank: needed an integer of at least 1, got 0.
    """
    for name, value in given.items():
        needed = f"an integer of at least {least}"
        if value is None:
            continue
        require_kind(name, value, Integral, needed)
        if value < least:
            raise ArgumentError(name, needed, value)


def require_not_negative(**given: Any) -> None:
    """Refuse what is below 0, or not finite; None is no number, and passes.

    Raises:
        ArgumentError: (a ``ValueError``) one is.
    """
    for name, value in given.items():
        needed = "a finite number of at least 0"
        if value is None:
            continue
        require_kind(name, value, Real, needed)
        if not 0 <= value < math.inf:
            raise ArgumentError(name, needed, value)


def require_positive(argument: str, value: Any, most: float = math.inf) -> None:
    """Refuse what is not a finite number above 0, or is above `most`.

    Raises:
        ArgumentError: (a ``ValueError``) it is.
    """
    needed = "a finite number above 0"
    require_kind(argument, value, Real, needed)
    if not 0 < value < math.inf:
        raise ArgumentError(argument, needed, value)
    if value > most:
        raise ArgumentError(argument, f"a number above 0 and at most {most:.4g}", value)
