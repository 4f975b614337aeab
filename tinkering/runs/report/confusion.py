"""The confusion matrix of a run: counted, drawn, and class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from matplotlib.figure import Figure

from tinkering.runs.predictions import Predictions
from tinkering.runs.report.canvas import new_figure
from tinkering.runs.report.wording import shortened

_MOST_WITH_FIGURES = 16
"""Classes up to which a cell has room for its count and its percentage."""


def count_pairs(predictions: Predictions, classes: int) -> Int64[np.ndarray, "classes classes"]:
    """Return how often an image of a class (row) was said to be of a class (column)."""
    pairs = predictions.labels.astype(np.int64) * classes + predictions.predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def shares(counts: Int64[np.ndarray, "classes classes"]) -> np.ndarray:
    """Return each count as a share of its row, 0 to 1; of an empty row, 0.

    Example:
        >>> shares(np.array([[3, 1], [0, 0]])).tolist()
        [[0.75, 0.25], [0.0, 0.0]]
    """
    return np.asarray(counts / np.maximum(counts.sum(1, keepdims=True), 1))


@dataclass(frozen=True)
class ClassFigures:
    """How one class fared."""

    name: str
    images: int
    recall: float
    """Share of its images that were recognised; NaN without images."""
    precision: float
    """Share of the images said to be it that are; NaN where none was said to be."""
    mistaken_for: str
    """What its images were most often said to be instead; empty where they never were."""


def class_figures(
    counts: Int64[np.ndarray, "classes classes"], names: Sequence[str]
) -> list[ClassFigures]:
    """Return the figures of each class.

    Example:
        >>> class_figures(np.array([[3, 1], [0, 0]]), ["cat", "dog"])[0]
        ClassFigures(name='cat', images=4, recall=0.75, precision=1.0, mistaken_for='dog (1)')
    """
    rows, columns, right = counts.sum(1), counts.sum(0), counts.diagonal()
    wrong = counts - np.diag(right)
    return [
        ClassFigures(
            name=name,
            images=int(rows[label]),
            recall=_share(right[label], rows[label]),
            precision=_share(right[label], columns[label]),
            mistaken_for=_worst(wrong[label], names),
        )
        for label, name in enumerate(names)
    ]


def draw(counts: Int64[np.ndarray, "classes classes"], names: Sequence[str]) -> Figure:
    """Return the matrix as coloured cells; with counts and percentages where they have room."""
    size = 5.6 if len(names) <= _MOST_WITH_FIGURES else 7.5
    figure = new_figure(size, size)
    axes = figure.subplots()
    part = shares(counts)
    axes.imshow(part, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("said")
    axes.set_ylabel("is")
    shown = [shortened(name, most=12) for name in names]
    small = 9 if len(names) <= _MOST_WITH_FIGURES else max(5, 260 // len(names))
    turned = 90 if max(map(len, shown), default=0) > 3 else 0
    ticks = range(len(names))
    axes.set_xticks(ticks, shown, fontsize=small, rotation=turned, parse_math=False)
    axes.set_yticks(ticks, shown, fontsize=small, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(names) <= _MOST_WITH_FIGURES:
        for row, column in zip(*np.nonzero(counts), strict=True):
            share = part[row, column]
            axes.text(
                column,
                row,
                f"{counts[row, column]:,}\n{100 * share:.0f} %",
                ha="center",
                va="center",
                fontsize=8 if len(names) <= 11 else 6,
                linespacing=1.05,
                color="white" if share > 0.55 else "#222222",
            )
    return figure


def _share(part: int | np.integer, whole: int | np.integer) -> float:
    return float(part / whole) if whole else float("nan")


def _worst(wrong: Int64[np.ndarray, " classes"], names: Sequence[str]) -> str:
    most = int(wrong.argmax())
    return f"{names[most]} ({wrong[most]:,})" if wrong[most] else ""
