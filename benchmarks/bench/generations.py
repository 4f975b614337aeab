"""Experiments with whole generations: ``tinkering evolve``, and the share of its update."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench.centred import evolving
from benchmarks.bench.clock import Contender, Rates, compare
from benchmarks.bench.experiment import DTYPE, Bench, Comparison, Experiment, quotient
from benchmarks.bench.judge import Figure, Row, Target
from benchmarks.bench.networks import images, network
from benchmarks.bench.settings import Sizes
from tinkering.evaluation.entry import evaluate
from tinkering.strategies.evolution_strategy import EvolutionStrategy
from tinkering.strategies.weights import Weights

_GROUP = 8
"""Members that are compared with each other, where they come in no pairs: as in the command."""


def rate_of_command(width: int, generations: int, folder: Path) -> float:
    """Return the images a second of ``tinkering evolve --strategy weights``, without its start.

    It is the median over generations, each from the end of one to the end of the next: checkpoint,
    metrics and display are in it.

    Args:
        width: of the network.
        generations: that it runs, at least two.
        folder: an empty one, for what it leaves.
    """
    flags = {
        "strategy": "weights",
        "width": width,
        "generations": generations,
        "threads": torch.get_num_threads(),
        "out": folder / "run",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "tinkering", "evolve", *words, "--no-report"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return rate_of_records([json.loads(line) for line in lines])


def rate_of_records(records: Sequence[Mapping[str, Any]]) -> float:
    """Return the images a second of generations, of which the first does not count.

    Example:
        >>> times = [1.0, 1.5, 2.0, 4.0]
        >>> rate_of_records([{"evaluations": 10 * i, "seconds": t} for i, t in enumerate(times)])
        20.0
    """
    rates: Iterator[float] = (
        (after["evaluations"] - before["evaluations"]) / (after["seconds"] - before["seconds"])
        for before, after in pairwise(records)
    )
    return statistics.median(rates)


def _command(target: Target, width: int, bench: Bench) -> Iterator[Row]:
    count = bench.sizes.other_members
    generations = max(3, bench.sizes.generations * 64 // width)
    pure = yield from bench.pure("resnet", width, count)
    readings: dict[str, list[float]] = {"evolve": [], **{way.name: [] for way in pure}}
    for _ in range(bench.rounds):
        with tempfile.TemporaryDirectory(prefix="tinkering-bench-") as folder:
            readings["evolve"].append(rate_of_command(width, generations, Path(folder)))
        for name, beside in compare(pure, 1, bench.shortest).readings.items():
            readings[name] += beside
    rates = Rates(readings)
    yield Row(
        f"evolve-w{width}",
        f"tinkering evolve --strategy weights, whole generations, width {width}",
        Figure(rates.median("evolve"), "img/s"),
        Figure(quotient(rates, "evolve", "pure"), "of pure"),
        target,
        readings=tuple(readings["evolve"]),
    )


def _update(width: int, bench: Bench) -> Iterator[Row]:
    """Yield the share of a generation's time that is left when its members are evaluated."""
    count, name = bench.sizes.members, f"update-w{width}"
    ways = {
        "": (Weights(count), "pairs", Target(must=0.05, goal=0.02, at_most=True)),
        "-alone": (Weights(count, antithetic=False, group=_GROUP), "noise of its own", Target()),
    }
    for way, (perturb, whose, target) in ways.items():
        contenders = _generation(perturb, width)
        comparison = Comparison(name + way, "", "generation", "update", "%")
        rows, _ = bench.compared(contenders, [comparison])
        for row in rows:
            what = f"the update by its generation: {count:,} members, {whose}, width {width}"
            share = row.judged and Figure(row.judged.value, "%")
            yield Row(row.name, what, row.measured, share, target, readings=row.readings)


def _generation(perturb: Weights, width: int) -> list[Contender]:
    """Return a whole generation, and the update alone."""
    count = perturb.population
    model, x = network("resnet", width), images(count, 1)
    y = torch.arange(count).remainder(10).unsqueeze(1)
    strategy = EvolutionStrategy(perturb)
    state = strategy.init(evolving(model))
    # The update is that of another generation, whose members live on: their noise is there, as it
    # is in a run.
    other = replace(state, generation=1)
    living = strategy.ask(other)
    told = evaluate(model, living, x, y, in_dims=(0, 0), dtype=DTYPE)

    def generation() -> None:
        members = strategy.ask(state)
        strategy.tell(state, evaluate(model, members, x, y, in_dims=(0, 0), dtype=DTYPE))

    def update() -> object:
        strategy.tell(other, told)
        return living

    return [Contender("generation", generation, count), Contender("update", update, count)]


def experiments(sizes: Sizes) -> list[Experiment]:
    """Return the experiments of this file."""
    targets = {
        sizes.wide: Target(0.70, 0.85),
        sizes.middle: Target(0.50, 0.75),
        sizes.narrow: Target(0.50, 0.75),
    }
    found = [
        Experiment((f"evolve-w{width}",), partial(_command, target, width))
        for width, target in targets.items()
    ]
    ends = (sizes.wide, sizes.narrow)
    return found + [
        Experiment((f"update-w{width}", f"update-w{width}-alone"), partial(_update, width))
        for width in ends
    ]
