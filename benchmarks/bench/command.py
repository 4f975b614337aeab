"""The command: the benchmark's rows as they are measured, a table, and a file."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.live import Live
from rich.table import Table

import tinkering
from benchmarks.bench.experiment import Bench as Context
from benchmarks.bench.experiment import Experiment
from benchmarks.bench.judge import Figure, Row, bare
from benchmarks.bench.settings import QUICK, Sizes
from benchmarks.bench.suite import selected
from tinkering.errors import ArgumentError

WIDTH = 110
"""Columns of the table, at most."""
_MET = {"goal": "goal met", "must": "must met", "missed": "missed"}


def main(args: Sequence[str] | None = None) -> int:
    """Measure as the words say, those of the process by default, and return an exit code.

    0: done. 2: something was asked for that cannot be done, and the message says what.
    130: ended by Ctrl-C.
    """
    try:
        command = tyro.cli(Bench, prog="python -m benchmarks.bench", args=args)
        return command.run(Console(markup=False, highlight=False))
    except ArgumentError as error:
        Console(stderr=True, markup=False, highlight=False, soft_wrap=True).print(f"bench: {error}")
        return 2
    except KeyboardInterrupt:
        return 130


@dataclass(frozen=True)
class Bench:
    """Measure evaluation beside plain vmap, pure inference and peers; a quarter of an hour."""

    rows: Annotated[str, tyro.conf.arg(metavar="PATTERN")] = ""
    """Only rows with this in their name, or with one of several between commas; * and ? are as
    in file names. All by default."""
    quick: bool = False
    """Small sizes, to see whether it works: under a minute, and the figures mean nothing."""
    rounds: int = 5
    """Readings of each row; the median counts."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Processor threads; all cores by default."""
    memory_members: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Members whose evaluation's memory is measured: 100,000 by default, 2,000 if --quick."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.json")] = Path("bench.json")
    """The file that holds everything; it is overwritten."""

    def run(self, console: Console) -> int:
        """Measure, print the rows as they come and then a table, and write the file."""
        sizes = self._sizes()
        experiments = selected(sizes, self.rows)
        if not self.out.parent.is_dir():
            raise ArgumentError("out", "a file in a folder that exists", self.out)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        context = Context(sizes, self.rounds, self.rows, 0.0 if self.quick else 0.2)
        console.print(_heading(), soft_wrap=True)
        rows: list[Row] = []
        start = time.perf_counter()
        try:
            _measure(console, experiments, context, rows)
        finally:  # what was measured before Ctrl-C is worth keeping
            held = self._file(sizes, rows, time.perf_counter() - start)
            self.out.write_text(json.dumps(held, indent=1) + "\n")
        if not console.is_terminal:  # a file has no 80 columns
            console.width = WIDTH
        console.print(table(rows), width=WIDTH)
        if self.quick:
            console.print("Small sizes: the figures say that it works, and nothing else.")
        console.print(f"{len(rows)} rows in {held['seconds']:.0f} s: {self.out}", soft_wrap=True)
        return 0

    def _sizes(self) -> Sizes:
        cores = os.cpu_count() or 1
        if self.threads is not None and not 1 <= self.threads <= cores:
            raise ArgumentError("threads", f"an integer from 1 to {cores}", self.threads)
        for name in ("rounds", "memory_members"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(name, "an integer of at least 1", value)
        sizes = QUICK if self.quick else Sizes()
        if self.memory_members is None:
            return sizes
        if self.memory_members % 2:
            raise ArgumentError("memory_members", "an even number", self.memory_members)
        return replace(sizes, many_members=self.memory_members)

    def _file(self, sizes: Sizes, rows: Sequence[Row], seconds: float) -> dict[str, Any]:
        """Return what the file holds."""
        return {
            "rows": [row.as_json() for row in rows],
            "command": sys.argv,
            "flags": {**asdict(self), "out": str(self.out)},
            "sizes": asdict(sizes),
            "threads": torch.get_num_threads(),
            "machine": machine(),
            "versions": versions(),
            "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": seconds,
        }


def table(rows: Sequence[Row]) -> Table:
    """Return the rows as a table that fits `WIDTH` columns."""
    made = Table(box=None, pad_edge=False)
    made.add_column("row", overflow="fold")
    for column in ("measured", "judged by"):
        made.add_column(column, justify="right", no_wrap=True)
    for column in ("must", "goal"):
        made.add_column(column, justify="right", no_wrap=True)
    made.add_column("met", no_wrap=True)
    for row in filter(_belongs, rows):
        short = row.note if len(row.note) <= 14 else ""
        made.add_row(
            row.name,
            _said(row.measured),
            _said(row.judged),
            _limit(row, row.target.must),
            _limit(row, row.target.goal),
            row.verdict or short,
        )
    return made


def _belongs(row: Row) -> bool:
    """Return whether a row is in the table: of pure inference, the fastest is enough there."""
    return bool(row.judged or row.note or not row.name.startswith("pure-"))


def machine() -> dict[str, Any]:
    """Return what is known of the processor."""
    told: dict[str, str] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "backslashreplace").splitlines()
        told = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in lines)}
    except OSError:  # another system
        pass
    can: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "processor": told.get("model name") or platform.processor() or platform.machine(),
        "flags": told.get("flags", "").split(),
        "instructions": sorted(name for name, there in can.items() if there is True),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Return the releases of everything that was measured."""
    found = {
        "tinkering": tinkering.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for name in ("numpy", "evox", "evotorch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _measure(
    console: Console, experiments: Sequence[Experiment], context: Context, rows: list[Row]
) -> None:
    """Add the rows as they are measured, and print a line for each."""
    # Refreshed by hand: a spinner's thread would take time from what is measured.
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for index, experiment in enumerate(experiments, 1):
            names = shorten(
                ", ".join(filter(context.wants, experiment.rows)), 60, placeholder=" ..."
            )
            live.update(f"{index} of {len(experiments)}: {names}", refresh=True)
            for row in experiment.run(context):
                rows.append(row)
                console.print(line(row), soft_wrap=True)


def line(row: Row) -> str:
    """Return a row as it is shown when it was measured."""
    parts = [_said(row.measured), _said(row.judged)]
    if row.verdict:
        limits = [
            f"{word} {_limit(row, limit)}"
            for word, limit in (("must", row.target.must), ("goal", row.target.goal))
            if limit is not None
        ]
        parts.append(f"{_MET[row.verdict]} ({', '.join(limits)})")
    return f"{row.name}: {', '.join(part for part in [*parts, row.note] if part)}"


def _heading() -> str:
    return (
        f"tinkering {tinkering.__version__}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {machine()['processor']}"
    )


def _said(figure: object) -> str:
    return "" if figure is None else str(figure)


def _limit(row: Row, limit: float | None) -> str:
    if limit is None:
        return ""
    unit = "" if row.judged is None else row.judged.unit
    said = str(Figure(limit, unit)) if unit in ("%", "GB", "s") else bare(limit, unit)
    return f"{'<= ' if row.target.at_most else ''}{said}"
