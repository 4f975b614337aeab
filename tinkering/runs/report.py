"""A picture of a run, drawn from its run folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinkering.errors import RunFolderError
from tinkering.runs import folder

CURVES = "curves.png"


def draw_curves(run: Path) -> Path:
    """Write ``curves.png`` into a run folder and return its path.

    Left: fitness of the members over model-images, mean and best of each generation.
    Right: accuracy of the centre on held-out images.

    Raises:
        RunFolderError: the folder has no metrics yet, or they cannot be read.
    """
    # Imported here: most uses of this package draw nothing. And not pyplot, which would
    # choose a backend for the whole process.
    from matplotlib.figure import Figure

    records = folder.read_metrics(run / folder.METRICS)
    if not records:
        raise RunFolderError(run / folder.METRICS, "at least one generation", "none")
    figure = Figure(figsize=(9, 3.4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.set_xlabel("model-images (thousands)")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)

    left.set_ylabel("fitness")
    for key, label in (("fitness_mean", "mean of the members"), ("fitness_best", "best")):
        left.plot(*_curve(records, key), label=label, linewidth=1)
    left.legend(frameon=False)

    right.set_ylabel("test accuracy (%)")
    images, accuracy = _curve(records, "test_accuracy")
    percent = [100 * value for value in accuracy]
    right.plot(images, percent, marker=".", color="tab:green")
    right.set_ylim(0, 100)
    if percent:
        last = records[-1]
        right.annotate(
            f"{percent[-1]:.1f} % after {last['seconds']:.0f} s",
            (images[-1], percent[-1]),
            xytext=(-4, 8),
            textcoords="offset points",
            ha="right",
        )
    path = run / CURVES
    figure.savefig(path)
    return path


def _curve(records: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return model-images in thousands, and the values of `key` where there are any."""
    points = [(r["evaluations"] / 1000, r[key]) for r in records if r.get(key) is not None]
    return [x for x, _ in points], [y for _, y in points]
