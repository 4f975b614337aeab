"""Freed memory stays with the process, so that tensors do not wait for the system's pages.

A forward allocates and frees some megabytes for every layer. By default glibc hands such
memory back at once and fetches it anew, and clearing the fresh pages then costs as much as a
layer of a narrow network does.
"""

from __future__ import annotations

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 32 << 20
"""Bytes of one allocation: the most that glibc allows."""
_KEPT = 256 << 20
"""Bytes of free memory at the end of a heap."""


@cache
def keep_freed_memory() -> bool:
    """Ask the allocator to keep what is freed, up to 256 MiB a heap; return whether it does.

    It holds for the whole process, from the first evaluation on. Another allocator than
    glibc's, such as jemalloc, is left alone.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_THRESHOLD, _LARGEST_KEPT), (_TRIM_THRESHOLD, _KEPT))
    return all([mallopt(name, size) == 1 for name, size in settings])
