"""The commands of this folder, each for a moment: their long forms stand in docs/reliability.md."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
HERE = Path(__file__).parent


def printed(script, *words):
    """What a script prints, that finds what it promises."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(HERE / script), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_kills():
    said = printed("kills.py", "--kills", 10, "--strategies", "feedback")
    assert re.search(r"^all +10$", said, re.MULTILINE)
    assert "checkpoints that could not be read: 0" in said
    (again,) = re.findall(r"computed again after a kill: at most (\d+)", said)
    assert int(again) <= 1


def test_changed_run_folders():
    said = printed("fuzz_checkpoints.py", "--files", 300)
    assert "other exceptions: 0, outside the folder: 0" in said
    assert sum(map(int, re.findall(r"(\d+) tried", said))) == 300


def test_changed_data_files():
    said = printed("fuzz_idx.py", "--files", 300)
    assert "other exceptions: 0, files written: 0" in said
    assert sum(map(int, re.findall(r"(\d+) tried", said))) == 300


def test_endurance():
    # So short a run says little about speed, on a machine that does other things.
    said = printed("endurance.py", "--generations", 120, "--slower", 3)
    assert "resident memory: " in said


def test_small_memory():
    said = printed("small_memory.py", "--population", 4096)
    needed, left, planned = map(int, re.findall(r"(\d+) MiB", said)[:3])
    assert planned < left <= (needed + 1) / 2
