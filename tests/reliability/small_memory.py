"""A run with half of the memory that all its members at once would need.

    python tests/reliability/small_memory.py

``RLIMIT_AS`` leaves half of what evaluating a generation in one piece would take. The run plans
smaller tiles, completes, and its summary says what was planned.
"""

import argparse
import json
import resource
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))

import torch
from commands import TINY, quiet

from tinkering.data import load
from tinkering.engines.network import look
from tinkering.graph.signature import sign
from tinkering.models import BasicBlock, SimpleResNet

MIB = 1 << 20
STRATEGIES = ("feedback", "activations", "weights")


def in_one_piece(width, population):
    """Bytes of all values of a generation's forward passes, evaluated at once."""
    model = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=width).eval()
    network = look(model, *sign((load().test.images()[:2],), {}))
    return population * network.footprint.peak


def complete(width, population, strategy):
    """Run under the limit; return it, what one piece would need, and the plan."""
    with tempfile.TemporaryDirectory() as where:
        # What is loaded and compiled on the way is there before the limit is set.
        words = ["evolve", *TINY, "--strategy", strategy, "--out", Path(where) / "before"]
        assert quiet(words)[0] == 0
        needed = in_one_piece(width, population)
        has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (has + needed // 2, hard))
        out = Path(where) / "run"
        words = ["evolve", "--width", width, "--population", population, "--strategy", strategy]
        assert quiet([*words, "--generations", "2", "--threads", "1", "--out", out])[0] == 0
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        summary = json.loads((out / "summary.json").read_text())
    assert summary["generations"] == 2
    return needed // 2, needed, summary["plan"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--population", type=int, default=8192)
    parser.add_argument("--strategy", choices=STRATEGIES, default="weights")
    given = parser.parse_args()
    torch.set_num_threads(1)
    left, needed, plan = complete(given.width, given.population, given.strategy)
    print(f"in one piece: {needed / MIB:.0f} MiB, left: {left / MIB:.0f} MiB\n{plan}")  # noqa: T201
