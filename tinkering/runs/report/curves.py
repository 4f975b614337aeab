"""Fitness and held-out accuracy of runs, as lines over generations, forward passes or time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tinkering.runs.report.canvas import Stroke, new_figure, stroke, thin, tidy
from tinkering.runs.report.reading import Run
from tinkering.runs.report.wording import percent, shortened

MOST_NAMES = 8
"""Runs that a legend inside a picture names, at most."""
_GREEN = "#009e73"
_BAND = "#a9cfe6"
_FEW = 40
"""Points up to which each is marked, so that a lone one is seen."""


@dataclass(frozen=True)
class Over:
    """What curves are drawn over.

    Args:
        key: the name in the records.
        title: what the page calls it.
        units: what an axis may count in, the largest first: from where on, how much, its name.
    """

    key: str
    title: str
    units: tuple[tuple[float, float, str], ...]

    def unit(self, largest: float) -> tuple[float, str]:
        """Return what to divide by, and the label of an axis that goes up to `largest`.

        Example:
            >>> SECONDS.unit(90.0), SECONDS.unit(900.0)
            ((1.0, 'time (s)'), (60.0, 'time (min)'))
        """
        for start, size, label in self.units:
            if largest >= start:
                return size, label
        _, size, label = self.units[-1]
        return size, label


GENERATIONS = Over("generation", "generations", ((0.0, 1.0, "generations"),))
PASSES = Over(
    "evaluations",
    "forward passes",
    (
        (2e9, 1e9, "forward passes (billions)"),
        (2e6, 1e6, "forward passes (millions)"),
        (2e3, 1e3, "forward passes (thousands)"),
        (0.0, 1.0, "forward passes"),
    ),
)
SECONDS = Over(
    "seconds",
    "time",
    ((10800.0, 3600.0, "time (h)"), (600.0, 60.0, "time (min)"), (0.0, 1.0, "time (s)")),
)
ALL = (GENERATIONS, PASSES, SECONDS)


def draw(runs: Sequence[Run], over: Over, names: Sequence[str] = ()) -> Figure:
    """Return fitness above accuracy, over one axis; several runs lie on each other.

    Args:
        runs: whose curves.
        over: what the axis counts.
        names: what a legend calls the runs; their folders' names by default.
    """
    figure = new_figure(4.8, 5.6)
    above, below = figure.subplots(2, 1, sharex=True)
    _panels(above, below, runs, over, names or [run.name for run in runs])
    below.set_xlabel(_unit(runs, over)[1])
    return figure


def draw_wide(run: Run) -> Figure:
    """Return fitness beside accuracy over forward passes: the one picture for a README."""
    figure = new_figure(9, 3.4)
    left, right = figure.subplots(1, 2)
    _panels(left, right, [run], PASSES, [run.name])
    for axes in (left, right):
        axes.set_xlabel(_unit([run], PASSES)[1])
    return figure


def has_band(run: Run) -> bool:
    """Return whether the records tell how far the members' fitness spreads."""
    return bool(np.isfinite(run.column("fitness_low")).any())


def _panels(
    fitness: Axes, accuracy: Axes, runs: Sequence[Run], over: Over, names: Sequence[str]
) -> None:
    size, _ = _unit(runs, over)
    for axes in (fitness, accuracy):
        tidy(axes)
        axes.set_xlim(0, max(_largest(runs, over) / size, 1e-9) * 1.02)
    fitness.set_ylabel("fitness of the members")
    accuracy.set_ylabel("test accuracy (%)")
    accuracy.set_ylim(0, 100)
    if len(runs) == 1:
        _spread(fitness, runs[0], over, size)
        _accuracy(accuracy, runs[0], over, size, Stroke(_GREEN, "solid"), finish=True)
    else:
        for index, (run, name) in enumerate(zip(runs, names, strict=True)):
            look = stroke(index)
            _line(fitness, run, over, size, "fitness_mean", look, shortened(name))
            _accuracy(accuracy, run, over, size, look, finish=False)
    for chance in {100 / len(run.classes) for run in runs if run.classes}:
        accuracy.axhline(chance, color="#777777", linewidth=1, linestyle=(0, (2, 2)))
        # Across the axes, whatever they count; up as the accuracy goes.
        place = accuracy.get_yaxis_transform()
        accuracy.text(
            0.99,
            chance,
            "chance",
            transform=place,
            ha="right",
            va="top",
            fontsize=8,
            color="#666666",
        )
    _keep_outliers_out(fitness, runs)
    if len(runs) <= MOST_NAMES:
        # A name is a name: no formula in dollars, and a leading underscore hides nothing.
        labels = [f" {line.get_label()}" for line in fitness.lines]
        legend = fitness.legend(fitness.lines, labels, frameon=False, fontsize=9)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _spread(axes: Axes, run: Run, over: Over, size: float) -> None:
    """Draw mean and best of one run, and the band in which most members lie."""
    if has_band(run):
        low, high = (thin(run.column(f"fitness_{end}")) for end in ("low", "high"))
        along = thin(run.column(over.key) / size)
        axes.fill_between(along, low, high, color=_BAND, alpha=0.55, linewidth=0)
        if np.isfinite(low).sum() <= 2:  # too few for an area
            axes.vlines(along, low, high, color=_BAND, linewidth=5)
    for index, (key, label) in enumerate((("fitness_best", "best"), ("fitness_mean", "mean"))):
        _line(axes, run, over, size, key, stroke(1 - index), label)


def _line(
    axes: Axes, run: Run, over: Over, size: float, key: str, look: Stroke, label: str
) -> None:
    along, values = thin(run.column(over.key) / size), thin(run.column(key))
    few = np.isfinite(values).sum() <= _FEW
    axes.plot(
        along,
        values,
        label=label,
        color=look.colour,
        linestyle=look.dashes,
        linewidth=1.3,
        marker="." if few else None,
    )


def _accuracy(axes: Axes, run: Run, over: Over, size: float, look: Stroke, *, finish: bool) -> None:
    """Draw what was measured on held-out images, and write the last figure beside it."""
    along, values = run.column(over.key) / size, 100 * run.column("test_accuracy")
    known = np.isfinite(along) & np.isfinite(values)
    # Only where it was measured, so that the points are joined.
    along, values = thin(along[known]), thin(values[known])
    marker = "o" if len(values) <= _FEW else None
    axes.plot(
        along, values, color=look.colour, linestyle=look.dashes, marker=marker, markersize=3.5
    )
    if finish and len(values):
        axes.annotate(
            percent(values[-1] / 100),
            (along[-1], values[-1]),
            xytext=(0, 8 if values[-1] < 90 else -16),
            textcoords="offset points",
            ha="right",
            color=look.colour,
            fontweight="bold",
        )


def _keep_outliers_out(axes: Axes, runs: Sequence[Run]) -> None:
    """Cut a fitness axis where a few far values would press everything else flat."""
    keys = ("fitness_mean", "fitness_best", "fitness_low", "fitness_high")
    shown = keys if len(runs) == 1 else keys[:1]
    values = np.concatenate([thin(run.column(key)) for run in runs for key in shown])
    values = values[np.isfinite(values)]
    if len(values) < 20:
        return
    low, high = np.percentile(values, (2, 98))
    room = 2 * (high - low)
    lowest = float(values.min())
    if room > 0 and lowest < low - room:
        bottom, highest = low - room / 8, float(values.max())
        axes.set_ylim(bottom, highest + 0.05 * (highest - bottom))
        axes.annotate(
            f"lowest: {lowest:.4g}",
            (0.02, 0.02),
            xycoords="axes fraction",
            fontsize="small",
            color="#666666",
        )


def _largest(runs: Sequence[Run], over: Over) -> float:
    values: Float64[np.ndarray, " n"] = np.concatenate([run.column(over.key) for run in runs])
    values = values[np.isfinite(values)]
    return float(values.max()) if len(values) else 0.0


def _unit(runs: Sequence[Run], over: Over) -> tuple[float, str]:
    return over.unit(_largest(runs, over))
