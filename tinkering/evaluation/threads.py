"""Tiles side by side: a thread for each, in place of threads inside every operation.

The operations on a tile are so short that threads inside them mostly wait for one
another, and on a machine that does anything else besides they wait for the scheduler. A
tile that has a thread to itself waits for nobody, and its result does not depend on the
number of threads.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

from tinkering.native.allocator import keep_freed_memory

Item = TypeVar("Item")
Result = TypeVar("Result")

_starting = threading.Lock()


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in order, on some threads.

    Gradients are off in `function`. Few results wait at any time, so memory does not grow
    with the number of items.

    Example:
        >>> list(map_in_order(lambda x: x * x, range(5), threads=2))
        [0, 1, 4, 9, 16]
    """

    def without_gradients(item: Item) -> Result:
        with torch.no_grad():
            return function(item)

    with _starting:
        keep_freed_memory()
        pool = _pool(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(without_gradients, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return threads that are kept: new ones would have to fetch all their memory anew."""
    started = threading.Barrier(threads + 1)
    before = torch.get_num_threads()

    def begin() -> None:
        torch.get_num_threads()  # a thread's first look at the number would set it again
        torch.set_num_threads(1)  # holds for this thread, and for those that start later
        started.wait()

    pool = ThreadPoolExecutor(threads, "tinkering", initializer=begin)
    for _ in range(threads):
        pool.submit(int)
    try:
        started.wait()
    except BaseException:  # Ctrl-C, or a thread that could not start: let the others go
        started.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    torch.set_num_threads(before)
    return pool


if hasattr(os, "register_at_fork"):
    # A forked process has the pool's memory and none of its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)
