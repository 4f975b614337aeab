"""Tiles side by side: a thread for each, in place of threads inside every operation.

The operations on a tile are so short that threads inside them mostly wait for one
another, and on a machine that does anything else besides they wait for the scheduler. A
tile that has a thread to itself waits for nobody, and its result does not depend on the
number of threads, nor on which of them took it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import TypeVar

import torch

from tinkering.errors import ArgumentError
from tinkering.native.allocator import keep_freed_memory

Item = TypeVar("Item")
Result = TypeVar("Result")

_starting = threading.Lock()
_here = threading.local()
"""Of a thread: whether it is one of a pool, and the one beside it."""


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in order, on some threads.

    A thread that is done takes the next item, so one that is held up holds up no other.
    Gradients are off in `function`. Few results wait at any time, so memory does not grow
    with the number of items.

    In `function` itself, as where a fitness evaluates another population, items are done one
    after the other in the thread that asks: it would wait for itself otherwise.

    Args:
        function: of an item; called from any of the threads.
        items: taken some ahead of their results.
        threads: how many.

    Raises:
        ArgumentError: (a ``ValueError``) so many threads cannot be started.

    Example:
        >>> list(map_in_order(lambda x: x * x, range(5), threads=2))
        [0, 1, 4, 9, 16]
    """
    if getattr(_here, "is_of_a_pool", False):
        yield from map(partial(_without_gradients, function), items)
        return
    if isinstance(items, Sequence) and len(items) == 1:
        with _starting:
            keep_freed_memory()
        yield _with_one_thread(function, items[0])
        return
    with _starting:
        keep_freed_memory()
        pool = _pool(threads)
    yield from _mapped(pool, threads, function, items)


def _with_one_thread(function: Callable[[Item], Result], item: Item) -> Result:
    """Return what a thread of a pool would, without the way there and back.

    A call of a small network takes less than that, and less than a second thread inside
    operations takes to begin.
    """
    with one_thread_inside():
        return _without_gradients(function, item)


@contextmanager
def one_thread_inside() -> Iterator[None]:
    """Have the operations of this thread use no others for a while.

    For what is short, and stands between evaluations: threads inside operations wait for each
    other and spin, on cores that a pool, or somebody else, has work for.

    Example:
        >>> before = torch.get_num_threads()
        >>> with one_thread_inside():
        ...     inside = torch.get_num_threads()
        >>> inside, torch.get_num_threads() == before
        (1, True)
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # of this thread
    try:
        yield
    finally:
        torch.set_num_threads(before)


def map_beside(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in order, on a thread that is the caller's alone.

    It has one thread inside operations, so that these do not wait for one another, and spin, on
    cores that a pool computes on meanwhile. A `function` that waits for other threads, which
    evaluate something, holds up none of them.

    Args:
        function: of an item.
        items: taken some ahead of their results.

    Example:
        >>> list(map_beside(lambda x: x * x, range(5)))
        [0, 1, 4, 9, 16]
    """
    if getattr(_here, "is_of_a_pool", False):
        yield from map(partial(_without_gradients, function), items)
        return
    if not hasattr(_here, "beside"):
        with _starting:
            _here.beside = _started(1)
    yield from _mapped(_here.beside, 1, function, items)


def _mapped(
    pool: ThreadPoolExecutor,
    threads: int,
    function: Callable[[Item], Result],
    items: Iterable[Item],
) -> Iterator[Result]:
    without_gradients = partial(_without_gradients, function)
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


def _without_gradients(function: Callable[[Item], Result], item: Item) -> Result:
    with torch.no_grad():
        return function(item)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return threads that are kept: new ones would have to fetch all their memory anew."""
    return _started(threads)


def _started(threads: int) -> ThreadPoolExecutor:
    """Return new threads that have begun, each with one thread inside operations."""
    started = threading.Barrier(threads + 1)
    before = torch.get_num_threads()

    def begin() -> None:
        _here.is_of_a_pool = True
        torch.get_num_threads()  # a thread's first look at the number would set it again
        torch.set_num_threads(1)  # holds for this thread, and for those that start later
        started.wait()

    pool = ThreadPoolExecutor(threads, "tinkering", initializer=begin)
    try:
        for _ in range(threads):
            pool.submit(int)
        started.wait()
    except BaseException as error:  # Ctrl-C, or one that could not start: let the others go
        started.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        if not isinstance(error, RuntimeError | MemoryError):
            raise
        needed = "as many threads as this machine lets a process start"
        advice = "Ask for fewer with torch.set_num_threads; more than cores gain nothing."
        raise ArgumentError("threads", needed, f"{threads:,} ({error})", advice) from error
    finally:
        torch.set_num_threads(before)
    return pool


def _begin_anew() -> None:
    """Forget the pools: a forked process has their memory and none of their threads."""
    global _starting, _here
    _starting, _here = threading.Lock(), threading.local()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
