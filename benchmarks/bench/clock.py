"""Takes the time of several ways to do the same, so that one may be compared with another."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

_SHORTEST = 0.2
"""Seconds that a reading takes at least: shorter calls are repeated."""
_SURELY_LONG = 10
"""First calls that take so many times as long are not asked a second time."""


@dataclass(frozen=True)
class Contender:
    """A way to do something."""

    name: str
    run: Callable[[], object]
    """Does it once."""
    images: int = 1
    """Images, times members, that one call evaluates; or whatever else is counted."""


@dataclass(frozen=True)
class Rates:
    """Images a second of each contender, a reading a round.

    Example:
        >>> rates = Rates({"a": [10.0, 30.0, 20.0], "b": [5.0, 10.0, 5.0]})
        >>> rates.median("a"), rates.ratio("a", "b"), rates.best(["a", "b"])
        (20.0, 3.0, 'a')
    """

    readings: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        """Return a contender's images a second."""
        return statistics.median(self.readings[name])

    def best(self, names: Sequence[str]) -> str:
        """Return which of some contenders is the fastest."""
        return max(names, key=self.median)

    def ranked(self) -> list[str]:
        """Return the contenders, the fastest first."""
        return sorted(self.readings, key=self.median, reverse=True)

    def ratio(self, name: str, to: str) -> float:
        """Return how many times as fast as another a contender is.

        It is the median of the rounds' ratios, not the ratio of medians: the two readings
        of a round were taken one after the other, and a slow phase of the machine met both.
        """
        pairs = zip(self.readings[name], self.readings[to], strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


@contextmanager
def one_thread() -> Iterator[None]:
    """Have PyTorch use one thread meanwhile: calls that are short gain nothing by a second one.

    Example:
        >>> with one_thread():
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def compare(contenders: Sequence[Contender], rounds: int, shortest: float = _SHORTEST) -> Rates:
    """Return the contenders' rates: in every round each has its turn, every other one backwards.

    Args:
        contenders: at least one; each is called once before it counts.
        rounds: readings of each.
        shortest: seconds that a reading takes at least.
    """
    repeats = {contender.name: _repeats(contender, shortest) for contender in contenders}
    readings: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for round_ in range(rounds):
        for contender in contenders[:: -1 if round_ % 2 else 1]:
            times = repeats[contender.name]
            rate = times * contender.images / max(_seconds(contender, times), 1e-9)
            readings[contender.name].append(rate)
    return Rates(readings)


def _repeats(contender: Contender, shortest: float) -> int:
    """Return how many calls take `shortest` seconds, after one that does not count."""
    first = _seconds(contender, 1)  # compiles, packs, and fetches memory
    if first > _SURELY_LONG * shortest:
        return 1
    return max(1, math.ceil(shortest / max(_seconds(contender, 1), 1e-9)))


def _seconds(contender: Contender, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        contender.run()
    return time.perf_counter() - start
