"""How much memory this process can still have."""

from __future__ import annotations

from pathlib import Path

try:
    import resource
except ImportError:  # a system without such limits
    resource = None  # type: ignore[assignment]

_GROUP = Path("/sys/fs/cgroup")
_UNKNOWN = 2**62
"""Where nobody says how much there is, assume that there is enough."""


def free_memory() -> int:
    """Return the bytes that the machine, the container and the process's limits leave.

    Example:
        >>> free_memory() > 0
        True
    """
    return max(0, min(_machine(), _group(), _address_space()))


def _machine() -> int:
    """Return what the system says is available."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # another system
        return _UNKNOWN
    sizes = dict(line.split(":", 1) for line in lines)
    return int(sizes["MemAvailable"].split()[0]) * 1024


def _group() -> int:
    """Return what the control group has left, as containers have it."""
    try:
        limit = (_GROUP / "memory.max").read_text().strip()
        used = int((_GROUP / "memory.current").read_text())
    except OSError:
        return _UNKNOWN
    return _UNKNOWN if limit == "max" else int(limit) - used + _file_cache()


def _file_cache() -> int:
    """Return what was read from files: it counts as used, and is given back when needed."""
    try:
        lines = (_GROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return int(dict(line.split() for line in lines).get("inactive_file", 0))


def _address_space() -> int:
    """Return what ``ulimit -v`` has left."""
    if resource is None:
        return _UNKNOWN  # type: ignore[unreachable]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return _UNKNOWN
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return limit
    return limit - pages * resource.getpagesize()
