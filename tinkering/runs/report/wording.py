"""Numbers as a reader wants them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NOTHING = "—"
"""What stands where there is no figure."""


def count(value: int | float) -> str:
    """Return a count with its thousands set apart.

    Example:
        >>> count(1234567.0), count(float("nan"))
        ('1,234,567', '—')
    """
    return f"{value:,.0f}" if math.isfinite(value) else NOTHING


def percent(share: float, digits: int = 1) -> str:
    """Return a share from 0 to 1 as percent.

    Example:
        >>> percent(0.4464), percent(1.0, digits=0)
        ('44.6 %', '100 %')
    """
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else NOTHING


def plain(value: float, digits: int = 3) -> str:
    """Return a number with so many digits after the point.

    Example:
        >>> plain(-1.23456), plain(float("-inf"))
        ('-1.235', '—')
    """
    return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING


def duration(seconds: int | float) -> str:
    """Return a time in the largest units that matter.

    Example:
        >>> duration(4.21), duration(75), duration(7265)
        ('4.2 s', '1 min 15 s', '2 h 1 min')
    """
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def setting(value: Any) -> str:
    """Return a setting as it would be read aloud, to its last digit.

    Example:
        >>> setting([1, 1, 2]), setting(None), setting(True), setting(0.02)
        ('1, 1, 2', '—', 'yes', '0.02')
    """
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(setting(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {setting(item)}" for name, item in value.items())
    return str(value)


_ENDINGS = {
    "seconds": "time limit",
    "generations": "limit of generations",
    "interrupted": "Ctrl-C",
    "terminated": "SIGTERM",
}


def ending(summary: Mapping[str, Any] | None) -> str:
    """Return what ended a run, in a word or two.

    Example:
        >>> ending({"outcome": "interrupted"}), ending(None)
        ('Ctrl-C', 'not ended')
    """
    if summary is None:
        return "not ended"
    reason = str(summary.get("outcome", NOTHING))
    return _ENDINGS.get(reason, reason)


def shortened(name: str, most: int = 32) -> str:
    """Return a name that is cut in its middle where it is longer than `most`.

    Example:
        >>> shortened("a-name-that-goes-on", most=9)
        'a-na…s-on'
    """
    if len(name) <= most:
        return name
    half = (most - 1) // 2
    return f"{name[: most - 1 - half]}…{name[-half:]}"


def shown(text: str) -> str:
    r"""Return a text that can be drawn and written: what is no character in it is escaped.

    Example:
        >>> shown("caf\udce9")
        'caf\\udce9'
    """
    return text.encode("utf-8", "backslashreplace").decode()
