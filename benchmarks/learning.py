"""How far evolution gets in some minutes, for some seeds: a table, and the curves.

    python -m benchmarks.learning --list
    python -m benchmarks.learning --rows width-8,weights --jobs 2

A row is `tinkering evolve` with some flags and seeds. What it reached after several times is read
from one run a seed, at the last measurement before each, so that no setting depends on them. The
test images are looked at for the curve, and nothing is chosen by them. Run it on a machine that
does nothing else. The runs stay in `--out`, where `tinkering report` shows any of them; what is
there is taken, and goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from benchmarks import glyphs
from benchmarks.bench.experiment import matches
from benchmarks.curves import Curve, curve, draw, lasts, levels, table

Flags = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Row:
    """Runs of the same flags that differ by their seeds."""

    name: str
    marks: Mapping[int, int]
    """Seconds at which test accuracy is read, in rising order, and how many seeds run so long."""
    flags: Flags = field(default_factory=dict)
    """Of `tinkering evolve`, beside seed, limits, threads and data."""
    made: tuple[int, int, str] | None = None
    """Training images, test images and classes of glyphs; None for the default data."""

    @property
    def seeds(self) -> range:
        """Of the runs."""
        return range(max(self.marks.values()))

    def limit(self, seed: int) -> int:
        """Return the seconds that a seed's run takes."""
        return max(mark for mark, seeds in self.marks.items() if seed < seeds)

    @property
    def said(self) -> str:
        """The flags as they are typed; of data that is made, how much of what."""
        words = [f"--{name} {value}" for name, value in self.flags.items()]
        if self.made is not None:
            words.append(f"--data idx:GLYPHS ({self.made[0]:,} images, {self.made[2]})")
        return " ".join(words)

    def command(self, folder: Path, seed: int, threads: int) -> list[str]:
        """Return the command of a run, which begins it or goes on with it."""
        flags: dict[str, object] = {"seconds": self.limit(seed)}
        if (folder / "config.json").exists():
            flags |= {"resume": folder}
        else:
            flags |= {"seed": seed, "threads": threads, "out": folder, **self.given(folder.parent)}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        return [sys.executable, "-m", "tinkering", "evolve", "--no-report", *words]

    def given(self, folder: Path) -> Flags:
        """Return the flags, with the data where it is made beside the runs in this folder."""
        if self.made is None:
            return self.flags
        return {**self.flags, "data": f"idx:{folder / 'data'}"}


ROWS = (
    Row("width-8", {120: 10, 300: 5, 900: 3}),
    Row("reference", {300: 3, 900: 3, 1800: 3}, {"width": 64}),
    Row("grown", {300: 3, 600: 3, 1800: 3}, {"width": 64, "grow-from": 8}),
    Row("accuracy", {300: 3, 600: 3}, {"fitness": "accuracy"}),
    Row("weights", {300: 3, 900: 3}, {"strategy": "weights"}),
    Row("activations", {300: 3}, {"strategy": "activations"}),
    Row("glyphs", {300: 3}, made=(14_400, 1_800, "all")),
    Row("full-size", {600: 3}, made=(60_000, 2_000, "digits")),
)


def quick(row: Row) -> Row:
    """Return a row of some seconds, to see whether it works; its figures mean nothing."""
    small = {"width": 2, "population": 8, "measure-every": 0}
    flags = {**row.flags, **small}
    if "grow-from" in flags:
        flags["grow-from"] = 1
    made = None if row.made is None else (100, 50, row.made[2])
    return replace(row, marks={1: 1, 2: 1}, flags=flags, made=made)


def main(words: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--rows", default="", metavar="PATTERN", help="as benchmarks.bench has it")
    flags.add_argument("--list", action="store_true", help="say which rows there are")
    flags.add_argument("--quick", action="store_true", help="see whether it works, in seconds")
    flags.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores")
    flags.add_argument("--out", type=Path, default=Path("runs/learning"))
    given = flags.parse_args(words)
    rows = [quick(row) if given.quick else row for row in ROWS if matches(row.name, given.rows)]
    if not rows:
        flags.error(f"no row is called {given.rows}; --list says which there are")
    if given.list:
        for row in rows:
            runs = ", ".join(f"{seeds} seeds {mark} s" for mark, seeds in row.marks.items())
            print(f"{row.name}: {row.said or 'no flags'}; {runs}")
        return 0
    curves = run_all(rows, given.out, given.jobs)
    print(f"\n{table([(row.name, row.said, [*row.marks], curves[row.name]) for row in rows])}")
    longest = {row.name: [c for c in curves[row.name] if lasts(c, max(row.marks))] for row in rows}
    print(f"\n{levels(longest)}\n\n{draw(longest, given.out / 'learning.png')}")
    return 0 if all(len(curves[row.name]) == len(row.seeds) for row in rows) else 1


def run_all(rows: Sequence[Row], out: Path, jobs: int) -> dict[str, list[Curve]]:
    """Run what is not there yet, some at a time, and return the curves of each row."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    for row in rows:
        data = out / row.name / "data"
        if row.made is not None and not (data / "t10k-labels-idx1-ubyte.gz").exists():
            print(glyphs.write(data, *row.made), flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        runs = {
            row.name: [pool.submit(partial(run, row, out, seed, threads)) for seed in row.seeds]
            for row in rows
        }
        try:
            folders = {name: [one.result() for one in some] for name, some in runs.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {
        name: [curve(folder) for folder in some if folder is not None]
        for name, some in folders.items()
    }


def run(row: Row, out: Path, seed: int, threads: int) -> Path | None:
    """Run a seed of a row, or take what is there; return its folder, or None where it failed."""
    folder = out / row.name / f"seed{seed}"
    if (folder / "config.json").exists():
        require_same(row, folder)
    if not is_complete(folder, row.limit(seed)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.with_suffix(".log")
        code = call(row.command(folder, seed, threads), log)
        if code or not is_complete(folder, row.limit(seed)):
            print(f"{folder} did not come to its end, see {log}", flush=True)
            return None
    print(folder, flush=True)
    return folder


def call(command: Sequence[str], log: Path) -> int:
    """Run a command, add what it says to a file, and return its exit code."""
    with log.open("a") as said:
        return subprocess.run(command, stdout=said, stderr=subprocess.STDOUT).returncode


def is_complete(folder: Path, seconds: int) -> bool:
    """Return whether a run ended after so much time."""
    summary = folder / "summary.json"
    return summary.exists() and json.loads(summary.read_text())["seconds"] >= seconds


def require_same(row: Row, folder: Path) -> None:
    """Refuse to take a run for one of a row with other flags."""
    settings = json.loads((folder / "config.json").read_text())
    for name, value in row.given(folder.parent).items():
        found = settings.get(name.replace("-", "_"))
        if found != value:
            has = f"{folder} has --{name} {found}"
            raise SystemExit(f"{has}, and {row.name} --{name} {value}; name another --out")


if __name__ == "__main__":
    sys.exit(main())
