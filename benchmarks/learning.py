"""How far evolution gets in some minutes, for some seeds: a table, and the curves.

    python benchmarks/learning.py --seconds 120 300 --seeds 0 1 2
    python benchmarks/learning.py --seconds 600 --flags "--fitness accuracy"

Every run is `tinkering evolve` with these flags and a time limit; the test images are looked at
for the curve, and nothing is chosen by them. Run it on a machine that does nothing else. The runs
stay in `--out`, where `tinkering report` shows any of them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

LEVELS = (0.65, 0.8, 0.88, 0.9, 0.93, 0.96)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--seconds", type=float, nargs="+", default=[120.0])
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--flags", default="", help="of tinkering evolve, in one word")
    flags.add_argument("--out", type=Path, default=Path("runs/learning"))
    given = flags.parse_args()
    runs = {
        (seconds, seed): evolve(given.out / f"{seconds:g}s-seed{seed}", seconds, seed, given.flags)
        for seconds in given.seconds
        for seed in given.seeds
    }
    print(f"\ntinkering evolve {given.flags}".rstrip())
    print("| seconds | seed | test accuracy | generations | forward passes |")
    print("|---|---|---|---|---|")
    for (seconds, seed), run in runs.items():
        summary = json.loads((run / "summary.json").read_text())
        print(
            f"| {seconds:g} | {seed} | {100 * summary['test_accuracy']:.1f} % | "
            f"{summary['generations']:,} | {summary['evaluations']:,} |"
        )
    print("\nforward passes until a test accuracy was first measured (the longest runs, median):")
    longest = [run for (seconds, _), run in runs.items() if seconds == max(given.seconds)]
    for level in LEVELS:
        first = [images for run in longest if (images := images_until(run, level)) is not None]
        if len(first) == len(longest):
            print(f"  {100 * level:.0f} %: {median(first):,.0f}")
    print(draw(longest, given.out / "learning.png"))


def evolve(out: Path, seconds: float, seed: int, flags: str) -> Path:
    """Run `tinkering evolve`, or take the run that is there."""
    if not (out / "summary.json").exists():
        command = [sys.executable, "-m", "tinkering", "evolve", "--seconds", f"{seconds:g}"]
        command += ["--seed", str(seed), "--out", str(out), *shlex.split(flags)]
        subprocess.run(command, check=True)
    return out


def curve(run: Path) -> list[tuple[int, float, float]]:
    """Return forward passes, seconds and test accuracy wherever it was measured."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        (record["evaluations"], record["seconds"], record["test_accuracy"])
        for record in records
        if record.get("test_accuracy") is not None
    ]


def images_until(run: Path, level: float) -> int | None:
    return next((images for images, _, accuracy in curve(run) if accuracy >= level), None)


def draw(runs: list[Path], path: Path) -> Path:
    figure = Figure(figsize=(9, 3.4), dpi=120, layout="constrained")
    for axes, at, label, unit in zip(
        figure.subplots(1, 2, sharey=True),
        (0, 1),
        ("forward passes (millions)", "minutes"),
        (1e6, 60),
        strict=True,
    ):
        for run in runs:
            points = curve(run)
            axes.plot([p[at] / unit for p in points], [100 * p[2] for p in points], label=run.name)
        axes.set_xlabel(label)
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("test accuracy (%)")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path)
    return path


if __name__ == "__main__":
    main()
