"""What a measurement is worth: a row of the benchmark, its targets, and whether they are met."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Target:
    """What a figure must reach, and what it should.

    Example:
        >>> speed = Target(must=2.5, goal=2.8)
        >>> speed.verdict(2.4), speed.verdict(2.6), speed.verdict(2.8)
        ('missed', 'must', 'goal')
    """

    must: float | None = None
    goal: float | None = None
    at_most: bool = False
    """Whether less is better."""

    def reaches(self, figure: float | None, limit: float | None) -> bool | None:
        """Return whether a figure is as good as a limit; None where one is missing."""
        if figure is None or limit is None:
            return None
        return figure <= limit if self.at_most else figure >= limit

    def verdict(self, figure: float | None) -> str:
        """Return "goal" or "must", whichever is met, "missed", or "" if there is none."""
        must, goal = self.reaches(figure, self.must), self.reaches(figure, self.goal)
        if must is None and goal is None:
            return ""
        if must is False or (must is None and goal is False):
            return "missed"
        return "goal" if goal else "must"


@dataclass(frozen=True)
class Figure:
    """A number and what it counts.

    Example:
        >>> str(Figure(12345.6, "img/s")), str(Figure(0.9321, "of pure")), str(Figure(0.07, "%"))
        ('12,346 img/s', '0.93 of pure', '7.0 %')
    """

    value: float
    unit: str
    """``"img/s"``, ``"GB"``, ``"s"``, ``"%"`` (of 1), or what a ratio is a ratio to."""

    def __str__(self) -> str:
        return f"{bare(self.value, self.unit)} {self.unit}"


def bare(value: float, unit: str) -> str:
    """Return a number without its unit, in as many digits as matter."""
    if unit == "%":
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if unit == "img/s" and value >= 100 else f"{value:,.2f}"


@dataclass(frozen=True)
class Row:
    """A line of the benchmark."""

    name: str
    what: str
    """What was measured, in words."""
    measured: Figure | None = None
    judged: Figure | None = None
    """What the target is about."""
    target: Target = field(default_factory=Target)
    note: str = ""
    readings: tuple[float, ...] = ()
    """What was measured in each round."""

    @property
    def verdict(self) -> str:
        """Which target is met, as `Target.verdict` has it."""
        return self.target.verdict(None if self.judged is None else self.judged.value)

    def as_json(self) -> dict[str, Any]:
        """Return what a file holds of it."""
        value = None if self.judged is None else self.judged.value
        return {
            "name": self.name,
            "what": self.what,
            "measured": None if self.measured is None else vars(self.measured),
            "judged": None if self.judged is None else vars(self.judged),
            "must": self.target.must,
            "goal": self.target.goal,
            "at_most": self.target.at_most,
            "must_met": self.target.reaches(value, self.target.must),
            "goal_met": self.target.reaches(value, self.target.goal),
            "note": self.note,
            "readings": list(self.readings),
        }
