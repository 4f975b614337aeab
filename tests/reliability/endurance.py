"""A long run of small generations: memory, file handles and speed stay as they are.

    python tests/reliability/endurance.py --generations 20000

Resident memory of the last tenth is within 5 % of that of the second tenth, the number of open
files is the same, and the last thousand generations take no more than a tenth longer than the
first thousand (medians, so that what else the machine does counts less).
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))

import itertools

from commands import quiet, write_digits

from tinkering.runs.recorder import Recorder

PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20
STRATEGIES = ("feedback", "activations", "weights")


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def handles():
    return len(list(Path("/proc/self/fd").iterdir()))


def endure(generations, strategy):
    """Run; return for each generation memory, open files, and its seconds: all, and computing."""
    seen, keep = [], Recorder.keep

    def watched(recorder, progress, state):
        keep(recorder, progress, state)
        seen.append((resident(), handles(), time.process_time()))

    Recorder.keep = watched
    try:
        with tempfile.TemporaryDirectory() as where:
            digits = write_digits(Path(where) / "digits")
            words = ["evolve", "--data", digits, "--width", "2", "--population", "8"]
            words += [
                "--strategy",
                strategy,
                "--generations",
                generations,
                "--threads",
                "1",
                "--no-report",
            ]
            assert quiet([*words, "--out", Path(where) / "run"])[0] == 0
            lines = (Path(where) / "run" / "metrics.jsonl").read_text().splitlines()
    finally:
        Recorder.keep = keep
    memory, files, computed = map(list, zip(*seen, strict=True))
    ended = [json.loads(line)["seconds"] for line in lines]
    assert len(ended) == len(seen) == generations
    return memory, files, between(ended), between(computed)


def between(moments):
    return [after - before for before, after in itertools.pairwise(moments)]


def judge(memory, files, seconds, computed, slower):
    """Return a line for each promise, and whether all are kept.

    Speed is judged by the processor's seconds: another process takes some of the others.
    """
    tenth = max(1, len(memory) // 10)
    portion = min(1000, len(seconds) // 3)
    early, late = statistics.mean(memory[tenth : 2 * tenth]), statistics.mean(memory[-tenth:])
    # The first few capture the network and warm up.
    (took, takes), (first, last) = [
        [statistics.median(part) for part in (each[5:portion], each[-portion:])]
        for each in (seconds, computed)
    ]
    # A checkpoint is being written at some of these moments, so at others there are fewer.
    opened = min(files[tenth : 2 * tenth]), min(files[-tenth:])
    lines = [
        f"resident memory: {early / MIB:.1f} MiB, then {late / MIB:.1f} MiB "
        f"({100 * (late / early - 1):+.1f} %)",
        f"open files between two checkpoints: {opened[0]}, then {opened[1]}",
        f"a generation computes {1e3 * first:.2f} ms, then {1e3 * last:.2f} ms "
        f"({100 * (last / first - 1):+.1f} %)",
        f"and takes {1e3 * took:.2f} ms, then {1e3 * takes:.2f} ms "
        f"({100 * (takes / took - 1):+.1f} %)",
    ]
    return lines, late <= 1.05 * early and opened[1] <= opened[0] and last <= slower * first


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=20_000)
    parser.add_argument("--strategy", choices=STRATEGIES, default="feedback")
    parser.add_argument("--slower", type=float, default=1.1, help="times as slow, at most")
    given = parser.parse_args()
    lines, kept = judge(*endure(given.generations, given.strategy), given.slower)
    print("\n".join(lines))  # noqa: T201
    sys.exit(0 if kept else 1)
