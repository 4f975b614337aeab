"""What runs reached, and when: read from their metrics, as tables and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

LEVELS = (0.65, 0.8, 0.9, 0.95)
"""Test accuracies that `levels` says the forward passes of."""


class Point(NamedTuple):
    """A measurement on the test images."""

    passes: int
    """Forward passes until then."""
    seconds: float
    accuracy: float
    """From 0 to 1."""


Curve = list[Point]


def curve(run: Path) -> Curve:
    """Return what was measured in a run, in order.

    Args:
        run: the run folder.
    """
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [
        Point(record["evaluations"], record["seconds"], record["test_accuracy"])
        for record in records
        if record.get("test_accuracy") is not None
    ]


def at(points: Curve, seconds: int | float) -> Point | None:
    """Return the last measurement until a time; None if there was none.

    Example:
        >>> points = [Point(10, 1.0, 0.5), Point(20, 2.0, 0.7)]
        >>> at(points, 1.9), at(points, 0.5)
        (Point(passes=10, seconds=1.0, accuracy=0.5), None)
    """
    return max((p for p in points if p.seconds <= seconds), key=lambda p: p.seconds, default=None)


def lasts(points: Curve, seconds: int | float) -> bool:
    """Return whether a run was measured at a time or after it."""
    return bool(points) and points[-1].seconds >= seconds


def table(rows: Sequence[tuple[str, str, Sequence[int | float], Sequence[Curve]]]) -> str:
    """Return a line for each mark of each row, in Markdown.

    Args:
        rows: name, flags, marks in seconds, and a curve for each seed.
    """
    lines = [
        "| row | flags | minutes | median | worst | forward passes (median) | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, flags, marks, curves in rows:
        for mark in marks:
            long = [one for one in curves if lasts(one, mark)]
            found = [point for one in long if (point := at(one, mark)) is not None]
            said = ["-", "-", "-"]
            if found:
                reached = [point.accuracy for point in found]
                passes = median(point.passes for point in found) / 1e6
                said = [f"{100 * median(reached):.1f} %", f"{100 * min(reached):.1f} %"]
                said.append(f"{passes:.2f} million")
            cells = [name, f"`{flags}`" if flags else "", f"{mark / 60:.3g}", *said, len(found)]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def levels(curves: Mapping[str, Sequence[Curve]]) -> str:
    """Return the forward passes until accuracies were first measured, in Markdown.

    Medians of the seeds, where all reached it.
    """
    heads = [f"{100 * level:.0f} %" for level in LEVELS]
    lines = [
        f"| million forward passes until | {' | '.join(heads)} |",
        "|---" * (1 + len(LEVELS)) + "|",
    ]
    for name, some in curves.items():
        cells = []
        for level in LEVELS:
            first = [next((p.passes for p in one if p.accuracy >= level), None) for one in some]
            reached = [passes for passes in first if passes is not None]
            everyone = len(reached) == len(some) > 0
            cells.append(f"{median(reached) / 1e6:.2f}" if everyone else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def median_line(curves: Sequence[Curve], of_passes: bool) -> tuple[list[int | float], list[float]]:
    """Return positions and the median accuracy there, from where all have one to where one ends.

    At a position a run has what it was last measured to have.

    Args:
        curves: of the seeds of a row.
        of_passes: positions are forward passes, not seconds.

    Example:
        >>> early, late = [Point(10, 1.0, 0.5), Point(30, 3.0, 0.9)], [Point(20, 2.0, 0.6)]
        >>> median_line([early, late], of_passes=True)
        ([20], [0.55])
    """
    axis = 0 if of_passes else 1
    known = [one for one in curves if one]
    if not known:
        return [], []
    first, last = max(one[0][axis] for one in known), min(one[-1][axis] for one in known)
    places = sorted({point[axis] for one in known for point in one if first <= point[axis] <= last})
    middle = [
        median([p.accuracy for p in one if p[axis] <= place][-1] for one in known)
        for place in places
    ]
    return places, middle


def draw(curves: Mapping[str, Sequence[Curve]], path: Path) -> Path:
    """Draw the median of each row over minutes and over forward passes; return the picture's path.

    Args:
        curves: of the seeds of each row, by its name.
        path: of the picture.
    """
    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, of_passes, unit, label in (
        (left, False, 60, "minutes"),
        (right, True, 1e6, "forward passes (millions)"),
    ):
        for name, some in curves.items():
            places, middle = median_line(some, of_passes)
            axes.plot([x / unit for x in places], [100 * y for y in middle], label=name)
        # The first minute tells as much as the following ten.
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.set_xlabel(label)
        axes.set_ylim(0, 100)
        axes.set_yticks(range(0, 101, 10))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("test accuracy (%), median of the seeds")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path)
    return path
