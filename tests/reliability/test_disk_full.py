"""A disk that fills up: a small tmpfs of the test's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))

from commands import TINY, quiet, write_digits

from tinkering.runs import checkpoint

pytestmark = pytest.mark.long
WORDS = [
    *TINY,
    "--no-report",
    "--generations",
    "12",
    "--keep-checkpoints",
    "100",
    "--checkpoint-every",
    "1",
]


def mount(folder, *options):
    return subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)],
        capture_output=True,
    ).returncode


@pytest.fixture
def disk(tmp_path):
    """A folder with room for half a megabyte: four or five checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.name != "posix" or mount(folder, "size=512k"):
        pytest.skip("no disk may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def digits(tmp_path):
    return write_digits(tmp_path / "digits")


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tinkering", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def whole(out):
    """The generations of the checkpoints; each is whole, and nothing lies beside them."""
    paths = sorted((out / checkpoint.FOLDER).iterdir())
    assert {path.suffix for path in paths} == {".safetensors"}
    for path in paths:
        checkpoint._require_whole(path)
    return [int(path.stem) for path in paths]


def centre_of(out):
    return json.loads((out / "summary.json").read_text())["centre_sha256"]


def lines_of(out):
    return [json.loads(line)["generation"] for line in (out / "metrics.jsonl").open()]


@pytest.fixture
def undisturbed(tmp_path, digits):
    out = tmp_path / "undisturbed"
    assert quiet(["evolve", "--data", digits, *WORDS, "--out", out])[0] == 0
    return centre_of(out)


def test_ends_and_is_resumed_where_there_is_room_again(disk, digits, undisturbed):
    out = disk / "run"
    process = start("evolve", "--data", digits, *WORDS, "--out", out)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 4
    assert errors.startswith(f"tinkering: {out}: expected room to write, found No space left on ")
    assert errors.count("\n") == 1
    assert printed.splitlines()[-1].startswith("to resume: ")
    done = whole(out)
    assert done == [*range(1, len(done) + 1)]
    assert 1 <= len(done) < 12
    assert f"The last checkpoint is that of generation {len(done)}." in errors
    assert mount(disk, "remount", "size=64m") == 0
    assert quiet(["evolve", "--resume", out])[0] == 0
    assert centre_of(out) == undisturbed
    assert lines_of(out) == [*range(1, 13)]


def test_goes_on_by_choice_and_writes_when_there_is_room(disk, digits, undisturbed):
    out = disk / "run"
    process = start("evolve", "--data", digits, *WORDS, "--if-disk-full", "go-on", "--out", out)
    said = []
    for line in process.stdout:
        said.append(line)
        if "The run goes on" in line:
            assert mount(disk, "remount", "size=64m") == 0
    process.wait(timeout=300)
    assert (process.returncode, process.stderr.read()) == (0, "")
    assert sum("The run goes on" in line for line in said) == 1
    assert "note: The run folder can be written again.\n" in said
    assert centre_of(out) == undisturbed
    assert lines_of(out) == [*range(1, 13)]
    assert whole(out)[-1] == 12
