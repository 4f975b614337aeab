"""Refusals of numbers that are out of range, in one voice."""

from __future__ import annotations

import math

from tinkering.errors import ArgumentError


def require_at_least(least: int, **given: int | None) -> None:
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
        if value is not None and value < least:
            raise ArgumentError(name, f"an integer of at least {least}", value)


def require_not_negative(**given: int | float | None) -> None:
    """Refuse what is below 0, or not finite; None is no number, and passes.

    Raises:
        ArgumentError: (a ``ValueError``) one is.
    """
    for name, value in given.items():
        if value is not None and not 0 <= value < math.inf:
            raise ArgumentError(name, "a finite number of at least 0", value)


def require_positive(argument: str, value: int | float, most: float = math.inf) -> None:
    """Refuse what is not a finite number above 0, or is above `most`.

    Raises:
        ArgumentError: (a ``ValueError``) it is.
    """
    if not 0 < value < math.inf:
        raise ArgumentError(argument, "a finite number above 0", value)
    if value > most:
        raise ArgumentError(argument, f"a number above 0 and at most {most:.4g}", value)
