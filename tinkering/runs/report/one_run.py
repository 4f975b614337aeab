"""The page of one run: its figures, pictures and words, and where they go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tinkering.runs import folder
from tinkering.runs.predictions import PREDICTIONS
from tinkering.runs.report import REPORT, confusion, curves, settings, throughput, tiles
from tinkering.runs.report.canvas import image_png, png, stride_of
from tinkering.runs.report.page import Picture, check_name, render, write_file
from tinkering.runs.report.reading import Run, read
from tinkering.runs.report.wording import count, duration, ending, percent, plain

_MOST_MEASUREMENTS = 24
"""Rows of the table of measurements, at most."""


def write(path: Path, out: Path | None) -> Path:
    """Write the page, and its pictures beside it where it lies in the run folder."""
    if out is not None:
        check_name(out)
    run = read(path)
    values = _values(run)
    if out is None:
        out = path / REPORT
        for picture in values["pictures"].values():
            write_file(path / picture.name, picture.png)
        if run.records:
            write_file(path / "curves.png", png(curves.draw_wide(run)))
        if run.predictions is not None and len(run.predictions.mistakes):
            drawn = tiles.draw_mistakes(run.predictions, run.classes)
            write_file(path / "mistakes.png", png(drawn))
    write_file(out, render("run.html.jinja", values).encode())
    return out


def _values(run: Run) -> dict[str, Any]:
    """Return what the template needs."""
    return {
        "name": run.name,
        "run": run,
        "figures": _figures(run),
        "pictures": _pictures(run),
        "stride": stride_of(len(run.records)),
        "has_band": curves.has_band(run),
        "measured": _measured(run),
        "measurements": int(np.isfinite(run.column("test_accuracy")).sum()),
        "matrix": _matrix(run),
        "mistakes": _mistakes(run),
        "predictions_file": PREDICTIONS,
        "model_file": folder.MODEL,
        "settings": settings.rows(run.config),
        "versions": settings.versions(run.config),
        **_commands(run),
    }


def _figures(run: Run) -> list[tuple[str, str, str]]:
    """Return the figures at the top: what, how much, and a note."""
    said = run.predictions
    of_images = f"{said.right:,} of {len(said):,} images" if said is not None else ""
    if run.summary is None and np.isfinite(run.final("test_accuracy")):
        of_images = "so far, when last measured"
    return [
        ("Test accuracy", percent(run.final("test_accuracy"), digits=2), of_images),
        ("Test loss", plain(run.final("test_loss"), digits=4), "cross-entropy, nats"),
        ("Forward passes", count(run.final("evaluations")), f"{count(run.rate)} a second"),
        ("Time", duration(run.final("seconds")), "measurements included"),
        ("Generations", count(run.final("generations")), ""),
        ("Ended by", ending(run.summary), ""),
    ]


def _pictures(run: Run) -> dict[str, Picture]:
    """Return the pictures that can be drawn of what there is."""
    pictures: dict[str, Picture] = {}
    if run.records:
        for over in curves.ALL:
            pictures[over.title] = Picture(
                f"curves-{over.title.replace(' ', '-')}.png",
                png(curves.draw([run], over)),
                f"Two charts over {over.title}. {_in_words(run)}",
                f"Over {over.title}",
            )
        pictures["throughput"] = Picture(
            "throughput.png",
            png(throughput.draw([run])),
            f"Forward passes a second over time; {count(run.rate)} on average.",
        )
    if run.predictions is not None and len(run.predictions):
        counts = confusion.count_pairs(run.predictions, len(run.classes))
        pictures["confusion"] = Picture(
            "confusion.png",
            png(confusion.draw(counts, run.classes)),
            f"Confusion matrix of {len(run.classes)} classes, {run.predictions.right:,} of "
            f"{len(run.predictions):,} images on its diagonal; the tables hold all its figures.",
        )
    if run.filters is not None:
        filters, channels, height, width = run.filters.shape
        pictures["filters"] = Picture(
            "filters.png",
            png(tiles.draw_filters(run.filters)),
            f"{filters * channels} filters of {height} x {width} weights each, as coloured tiles; "
            f"the largest weight is {np.abs(run.filters).max():.2f}.",
        )
    return pictures


def _in_words(run: Run) -> str:
    """Return what the curves show, for those who do not see them."""
    mean, accuracy = run.column("fitness_mean"), run.column("test_accuracy")
    mean, accuracy = mean[np.isfinite(mean)], accuracy[np.isfinite(accuracy)]
    above = "no finite fitness"
    if len(mean):
        above = f"mean fitness, {plain(mean[0])} at first and {plain(mean[-1])} at last"
    below = "test accuracy, not measured yet"
    if len(accuracy):
        first, last = percent(accuracy[0]), percent(accuracy[-1])
        below = f"test accuracy, {first} when first measured and {last} when last measured"
    return f"Above: {above}. Below: {below}."


def _measured(run: Run) -> list[dict[str, float]]:
    """Return the held-out measurements: all, or some at even distances, the last among them."""
    keys = ("seconds", "generation", "evaluations", "test_accuracy", "test_loss")
    columns = {key: run.column(key) for key in keys}
    known = np.flatnonzero(np.isfinite(columns["test_accuracy"]))
    if len(known) > _MOST_MEASUREMENTS:
        known = known[np.linspace(0, len(known) - 1, _MOST_MEASUREMENTS).round().astype(int)]
    return [{key: float(columns[key][row]) for key in keys} for row in known]


def _matrix(run: Run) -> Mapping[str, Any] | None:
    """Return the tables of the confusion matrix."""
    if run.predictions is None or not len(run.predictions):
        return None
    counts = confusion.count_pairs(run.predictions, len(run.classes))
    return {
        "names": run.classes,
        "counts": counts.tolist(),
        "shares": confusion.shares(counts).tolist(),
        "classes": [asdict(figures) for figures in confusion.class_figures(counts, run.classes)],
    }


def _mistakes(run: Run) -> list[Mapping[str, Any]]:
    """Return the wrong images that were kept, each with what was said of it."""
    if run.predictions is None:
        return []
    return [
        {
            "picture": Picture("", image_png(image), f"An image of {label}, taken for {said}."),
            "said": said,
            "label": label,
            "sure": sure,
        }
        for image, said, label, sure in tiles.mistakes(run.predictions, run.classes)
    ]


def _commands(run: Run) -> dict[str, str]:
    """Return the command that began the run, and the one that ends where it ended."""
    began = run.config.get("command")
    if not isinstance(began, str):
        return {"began": "", "exact": ""}
    generations = run.final("generations")
    if run.summary is None or not np.isfinite(generations):
        return {"began": began, "exact": ""}
    try:
        exact = settings.exact_command(began, int(generations))
    except ValueError:  # a quotation that is not closed: no command of ours
        return {"began": began, "exact": ""}
    return {"began": "" if exact == began else began, "exact": exact}
