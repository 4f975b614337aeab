"""All experiments, in the order in which they are measured."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.bench import (
    attention,
    centred,
    explicit,
    generations,
    peers,
    policies,
    processes,
    vision_rows,
)
from benchmarks.bench.experiment import Bench, Experiment, matches, pure_name
from benchmarks.bench.judge import Row
from benchmarks.bench.networks import NETWORKS
from benchmarks.bench.settings import Sizes
from tinkering.errors import ArgumentError


def suite(sizes: Sizes) -> list[Experiment]:
    """Return all experiments of the benchmark."""
    found = [
        Experiment((pure_name(name, width),), partial(_pure, name, width))
        for name in NETWORKS
        for width in sizes.widths
        if name == "resnet" or width != sizes.middle
    ]
    for room in (
        explicit,
        centred,
        policies,
        attention,
        generations,
        vision_rows,
        processes,
        peers,
    ):
        found += room.experiments(sizes)
    return found


def rows_of(sizes: Sizes) -> list[str]:
    """Return the names of the rows that can be asked for.

    Example:
        >>> "factored-w64" in rows_of(Sizes())
        True
    """
    return [row for experiment in suite(sizes) for row in experiment.rows]


def selected(sizes: Sizes, pattern: str) -> list[Experiment]:
    """Return the experiments that have a row of the pattern; all for "".

    Raises:
        ArgumentError: (a ``ValueError``) no row matches; it says which rows there are.
    """
    found = [
        experiment
        for experiment in suite(sizes)
        if any(matches(row, pattern) for row in experiment.rows)
    ]
    if not found:
        raise ArgumentError(
            "rows",
            "a pattern that fits a row",
            repr(pattern),
            f"The rows are {', '.join(rows_of(sizes))}.",
        )
    return found


def _pure(name: str, width: int, bench: Bench) -> Iterator[Row]:
    yield from bench.pure(name, width, 1)
