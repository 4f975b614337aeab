"""Forward passes a second, over the time of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from tinkering.runs.report.canvas import new_figure, stroke, tidy
from tinkering.runs.report.curves import SECONDS
from tinkering.runs.report.reading import Run

_WINDOWS = 100


def rates(
    seconds: Float64[np.ndarray, " n"], evaluations: Float64[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " edges"], Float64[np.ndarray, " windows"]]:
    """Return windows of equal length, and the forward passes a second in each.

    A generation that lies in two windows counts in both, with its share.

    Args:
        seconds: when each generation ended.
        evaluations: forward passes up to then.

    Example:
        >>> edges, rate = rates(np.array([1.0, 2.0]), np.array([50.0, 150.0]))
        >>> edges, rate
        (array([0., 1., 2.]), array([ 50., 100.]))
    """
    known = np.isfinite(seconds) & np.isfinite(evaluations)
    seconds, evaluations = seconds[known], evaluations[known]
    if not len(seconds) or seconds[-1] <= 0:
        return np.zeros(1), np.zeros(0)
    edges = np.linspace(0.0, seconds[-1], min(_WINDOWS, len(seconds)) + 1)
    total = np.interp(edges, [0.0, *seconds], [0.0, *evaluations])
    return edges, np.diff(total) / np.diff(edges)


def draw(runs: Sequence[Run]) -> Figure:
    """Return the rate of each run as steps, and for one run its average as a line."""
    figure = new_figure(6.4, 2.6)
    axes = figure.subplots()
    tidy(axes)
    steps = [rates(run.column("seconds"), run.column("evaluations")) for run in runs]
    size, label = SECONDS.unit(max(edges[-1] for edges, _ in steps))
    for index, (edges, rate) in enumerate(steps):
        look = stroke(index)
        axes.stairs(rate, edges / size, color=look.colour, linestyle=look.dashes, linewidth=1.4)
    if len(runs) == 1 and np.isfinite(runs[0].rate):
        axes.axhline(runs[0].rate, color="#777777", linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlabel(label)
    axes.set_ylabel("forward passes a second")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure
