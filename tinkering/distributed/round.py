"""One generation's parts: which wait, who has which, and what came back.

Nothing here knows of Ray or of clocks: it is told who is free, who is gone and what time it is.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable
from statistics import median
from typing import Generic, TypeVar

Result = TypeVar("Result")

_SLOW = 2.0
"""A part that takes so many times the median of those done is given to a second worker."""
_MOST_HOLDERS = 2


class Round(Generic[Result]):
    """Hands out numbered parts until each has a result.

    A part of a worker that is lost waits again. A part that takes much longer than the others is
    given to a worker that has nothing else to do as well; the first result of a part counts, and
    any other is dropped.

    Args:
        parts: how many there are, numbered from 0.

    Example:
        >>> round = Round(2)
        >>> round.next_for("a", now=0.0), round.next_for("b", now=0.0)
        (0, 1)
        >>> round.returned("b", 1, "right", now=1.0)
        >>> round.next_for("b", now=1.5), round.next_for("b", now=2.5)  # a is slow
        (None, 0)
        >>> round.returned("b", 0, "left", now=3.0)
        >>> round.returned("a", 0, "left", now=9.0)
        >>> round.results(), round.repeated
        (['left', 'right'], 1)
    """

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._waiting = deque(range(parts))
        self._results: dict[int, Result] = {}
        self._held: dict[tuple[Hashable, int], float] = {}
        """Since when a worker has a part."""
        self._took: list[float] = []
        self._losses: Counter[int] = Counter()
        self.repeated = 0
        """How many times a part was handed out that had been handed out before."""

    @property
    def complete(self) -> bool:
        """Whether each part has a result."""
        return len(self._results) == self._parts

    def next_for(self, worker: Hashable, now: float) -> int | None:
        """Return the part that a free worker is to evaluate, or None where there is none."""
        part = self._waiting.popleft() if self._waiting else self._overdue(worker, now)
        if part is not None:
            self.repeated += self._losses[part] > 0 or self._holders(part) > 0
            self._held[worker, part] = now
        return part

    def returned(self, worker: Hashable, part: int, result: Result, now: float) -> None:
        """Take a result; that of a part which has one already is dropped."""
        since = self._held.pop((worker, part), now)
        if part not in self._results:
            self._results[part] = result
            self._took.append(now - since)
        if part in self._waiting:
            self._waiting.remove(part)

    def lost(self, worker: Hashable) -> int:
        """Let a worker's parts wait again, and return how many times one of them was lost."""
        most = 0
        for holder, part in [held for held in self._held if held[0] == worker]:
            del self._held[holder, part]
            self._losses[part] += 1
            most = max(most, self._losses[part])
            if part not in self._results and not self._holders(part):
                self._waiting.appendleft(part)
        return most

    def results(self) -> list[Result]:
        """Return the results in the order of the parts, of which each has one."""
        return [self._results[part] for part in range(self._parts)]

    def _overdue(self, worker: Hashable, now: float) -> int | None:
        """Return the part that takes longest, where that is much longer than others took."""
        if not self._took:
            return None
        patience = _SLOW * median(self._took)
        late = [
            (since, part)
            for (holder, part), since in self._held.items()
            if part not in self._results
            and holder != worker
            and now - since > patience
            and self._holders(part) < _MOST_HOLDERS
        ]
        return min(late)[1] if late else None

    def _holders(self, part: int) -> int:
        return sum(held == part for _, held in self._held)
