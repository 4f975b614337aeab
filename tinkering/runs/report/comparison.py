"""The page of several runs side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinkering.errors import ArgumentError
from tinkering.runs.report import COMPARISON, curves, settings, throughput
from tinkering.runs.report.canvas import Stroke, png, stride_of, stroke
from tinkering.runs.report.page import Picture, check_name, render, write_file
from tinkering.runs.report.reading import Run, read
from tinkering.runs.report.wording import count, duration, ending, percent, plain


def write(paths: Sequence[Path], out: Path | None) -> Path:
    """Write the page and return its path."""
    if out is not None:
        check_name(out)
    _refuse_twice(paths)
    runs = [read(path) for path in paths]
    out = out or paths[0].resolve().parent / COMPARISON
    write_file(
        out, render("comparison.html.jinja", _values(runs)).encode(errors="backslashreplace")
    )
    return out


def _refuse_twice(paths: Sequence[Path]) -> None:
    places = Counter(path.resolve() for path in paths)
    twice = [path for path in paths if places[path.resolve()] > 1]
    if twice:
        raise ArgumentError("runs", "different run folders", f"{twice[0]} more than once")


def _values(runs: Sequence[Run]) -> dict[str, Any]:
    """Return what the template needs."""
    tables = [settings.compared(run.config) for run in runs]
    different = settings.differing([run.config for run in runs])
    names = _names(runs)
    return {
        "names": names,
        "rows": [
            {
                "name": name,
                "look": _css(stroke(index)),
                "figures": _figures(run),
                "ended": run.summary is not None,
                "settings": [table.get(key) for key in different],
            }
            for index, (name, run, table) in enumerate(zip(names, runs, tables, strict=True))
        ],
        "figure_names": list(_figures(runs[0])),
        "different": different,
        "same": {key: value for key, value in tables[0].items() if key not in different},
        "groups": [_group(group, runs, names) for group in settings.repeats(runs)],
        "pictures": _pictures(runs, names),
        "stride": max(stride_of(len(run.records)) for run in runs),
        "legend": len(runs) <= curves.MOST_NAMES,
    }


def _names(runs: Sequence[Run]) -> list[str]:
    """Return the folders' names; with the folder above where two are called the same."""
    often = Counter(run.name for run in runs)
    return [
        run.name if often[run.name] == 1 else str(Path(run.path.resolve().parent.name, run.name))
        for run in runs
    ]


def _figures(run: Run) -> dict[str, str]:
    return {
        "test accuracy": percent(run.final("test_accuracy"), digits=2),
        "test loss": plain(run.final("test_loss"), digits=4),
        "forward passes": count(run.final("evaluations")),
        "time": duration(run.final("seconds")),
        "generations": count(run.final("generations")),
        "a second": count(run.rate),
        "ended by": ending(run.summary),
    }


def _group(group: Sequence[Run], runs: Sequence[Run], names: Sequence[str]) -> Mapping[str, Any]:
    """Return median and range of runs that differ in nothing but the seed."""
    words = {
        "test accuracy": ("test_accuracy", lambda value: percent(value, digits=2)),
        "test loss": ("test_loss", lambda value: plain(value, digits=4)),
        "forward passes": ("evaluations", count),
        "time": ("seconds", duration),
        "generations": ("generations", count),
    }
    rows = []
    for title, (key, worded) in words.items():
        values = np.array([run.final(key) for run in group])
        values = values[np.isfinite(values)]
        if len(values):
            three = (float(np.median(values)), float(values.min()), float(values.max()))
            rows.append((title, *map(worded, three)))
    return {
        "names": [name for name, run in zip(names, runs, strict=True) if run in group],
        "seeds": [run.config.get("seed") for run in group],
        "rows": rows,
    }


def _pictures(runs: Sequence[Run], names: Sequence[str]) -> dict[str, Picture]:
    """Return the curves of all runs that have a generation, on each other."""
    if not any(run.records for run in runs):
        return {}
    ends = "; ".join(
        f"{name} {percent(run.final('test_accuracy'))}"
        for name, run in zip(names, runs, strict=True)
    )
    pictures = {
        over.title: Picture(
            f"{over.title.replace(' ', '-')}.png",
            png(curves.draw(runs, over, names)),
            f"Mean fitness and test accuracy of {len(runs)} runs over {over.title}. "
            f"Test accuracy at last: {ends}.",
            f"Over {over.title}",
        )
        for over in curves.ALL
    }
    rates = "; ".join(f"{name} {count(run.rate)}" for name, run in zip(names, runs, strict=True))
    pictures["throughput"] = Picture(
        "throughput.png",
        png(throughput.draw(runs)),
        f"Forward passes a second over time. On average: {rates}.",
    )
    return pictures


def _css(look: Stroke) -> Mapping[str, str]:
    """Return a line's look for the key of the page: a colour, and SVG's dashes."""
    if isinstance(look.dashes, str):
        return {"colour": look.colour, "dashes": "none"}
    return {"colour": look.colour, "dashes": " ".join(str(2 * part) for part in look.dashes[1])}
