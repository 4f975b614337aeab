"""What a flag may be, whatever the others are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tinkering.errors import ArgumentError
from tinkering.ranges import require_at_least, require_not_negative

try:
    import resource
except ImportError:  # a system without such limits
    resource = None  # type: ignore[assignment]

_MOST_PROCESSORS = 8192
"""That a Linux system can be built for. More threads only wait for one another; fewer are not the
limit, since a run has to go on with its number of threads on a smaller machine too."""
_MAPPINGS_OF_A_THREAD = 2
"""Areas of memory: its stack, and what guards it."""


def at_least_one(name: str, value: int) -> None:
    """Refuse an integer below 1."""
    require_at_least(1, **{name: value})


def counts_of_stages(name: str, value: Sequence[int]) -> None:
    """Refuse a stage of no block."""
    if any(number < 1 for number in value):
        came = " ".join(map(str, value))
        raise ArgumentError(name, "four numbers of at least 1, one a stage", came)


def generation_number(name: str, value: int) -> None:
    """Refuse a number that noise cannot be drawn with, which takes one of 64 bits."""
    if value >= 2**64:
        raise ArgumentError(name, "an integer of at most 2^64 - 1", value)


def share(name: str, value: float) -> None:
    """Refuse a number below 0, or one that is not finite."""
    require_not_negative(**{name: value})


def waiting_time(name: str, value: float) -> None:
    """Refuse a time that does not pass, or does not end."""
    if not 0 < value < float("inf"):
        raise ArgumentError(name, "a finite number of seconds above 0", value)


def require_threads(name: str, threads: int | None) -> None:
    """Refuse more threads than can be started: the libraries that would start them end the process.

    Args:
        name: of the flag.
        threads: what it says; None if it was not given.

    Raises:
        ArgumentError: (a ``ValueError``) it is out of range.
    """
    most = _most_threads()
    if threads is not None and not 1 <= threads <= most:
        needed = "an integer of at least 1" if threads < 1 else f"an integer from 1 to {most:,}"
        advice = "" if threads < 1 else f"This machine has {os.cpu_count()} processors."
        raise ArgumentError(name, needed, threads, advice)


def _most_threads() -> int:
    """Return how many threads can be asked for.

    Twice as many are started, some by PyTorch's libraries and some here, and a quarter of what
    the system has room for is left to others.
    """
    places = ("/proc/sys/kernel/threads-max", "/sys/fs/cgroup/pids.max")
    limits = [_number(place) for place in (*places, "/sys/fs/cgroup/pids/pids.max")]
    mappings = _number("/proc/sys/vm/max_map_count")
    limits.append(None if mappings is None else mappings // _MAPPINGS_OF_A_THREAD)
    if resource is not None and os.geteuid() != 0:  # nothing is counted for root
        own = resource.getrlimit(resource.RLIMIT_NPROC)[0]
        limits.append(None if own == resource.RLIM_INFINITY else own)
    room = min((limit for limit in limits if limit is not None), default=2 * _MOST_PROCESSORS)
    return max(os.cpu_count() or 1, min(_MOST_PROCESSORS, room * 3 // 8))


def _number(place: str) -> int | None:
    """Return the number in a file of the system, None where there is none."""
    try:
        return int(Path(place).read_text())
    except (OSError, ValueError):
        return None
