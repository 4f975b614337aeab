"""``tinkering evolve --workers N``: the same run, whoever evaluates."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import TINY, quiet
from test_cluster import family

from tinkering.cli import main, workers
from tinkering.cli.workers import MakeTask
from tinkering.errors import ArgumentError, ClusterError

pytestmark = pytest.mark.usefixtures("same_threads")
# 128 images: two parts.
RUN = [*TINY, "--population", "128", "--no-report"]
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""They look after a killed driver only once in a minute or so."""
COUNTED = {"workers", "bytes_sent", "bytes_received", "parts", "parts_repeated", "workers_lost"}


def evolved(digits, out, *words):
    group = ["--group", "2"] if {"weights", "activations"}.intersection(words) else []
    code, printed = quiet(["evolve", "--data", digits, *RUN, *group, *words, "--out", out])
    assert code == 0, printed
    return printed


def summary(out):
    return json.loads((out / "summary.json").read_text())


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, digits):
    """A run of this process."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    evolved(digits, out)
    return out


@pytest.mark.long
class TestSameRun:
    def test_with_workers_as_without(self, cluster, tmp_path, digits, alone):
        assert cluster.is_initialized()
        printed = evolved(digits, tmp_path, "--workers", "2")
        assert "starting workers ...\nworkers: 2, threads of each: 1\n" in printed
        end = r"\d workers, 0 lost; a generation sends [\d.]+ kB to each node and brings [\d.]+ kB"
        assert re.search(end + " back\n", printed)
        assert summary(tmp_path)["centre_sha256"] == summary(alone)["centre_sha256"]
        model = "model.safetensors"
        assert (tmp_path / model).read_bytes() == (alone / model).read_bytes()
        lines = metrics(tmp_path)
        before = metrics(alone)
        assert not COUNTED & before[0].keys()
        for line, other in zip(lines, before, strict=True):
            assert line.keys() - other.keys() == COUNTED
            assert 0 < line["bytes_sent"] < 200_000
            assert (line["parts"], line["workers_lost"]) == (2, 0)
            same = ("generation", "evaluations", "fitness_mean", "fitness_best", "fitness_low")
            assert [line[name] for name in same] == [other[name] for name in same]

    def test_of_a_genetic_algorithm(self, cluster, tmp_path, digits):
        assert cluster.is_initialized()
        flags = ["--strategy", "genetic", "--parents", "4", "--images", "128"]
        for out, more in (("alone", []), ("with", ["--workers", "2"])):
            evolved(digits, tmp_path / out, *flags, *more)
        model = "model.safetensors"
        alone, beside = ((tmp_path / out / model).read_bytes() for out in ("alone", "with"))
        assert alone == beside
        assert metrics(tmp_path / "with")[0]["parts"] > 1

    def test_of_a_network_that_grows(self, cluster, tmp_path, digits):
        assert cluster.is_initialized()
        flags = ["--width", "4", "--grow-from", "2", "--grow-every", "1"]
        for out, more in (("alone", []), ("with", ["--workers", "2"])):
            evolved(digits, tmp_path / out, "--strategy", "weights", *flags, *more)
        for name in ("alone", "with"):
            assert [line["width"] for line in metrics(tmp_path / name)] == [2, 4, 4]
        model = "model.safetensors"
        alone, beside = ((tmp_path / out / model).read_bytes() for out in ("alone", "with"))
        assert alone == beside

    def test_begun_without_and_resumed_with_workers(self, cluster, tmp_path, digits, alone):
        assert cluster.is_initialized()
        evolved(digits, tmp_path, "--generations", "1")
        words = ["evolve", "--resume", tmp_path, "--generations", "3", "--workers", "2"]
        assert quiet(words)[0] == 0
        assert summary(tmp_path)["centre_sha256"] == summary(alone)["centre_sha256"]
        assert [line.keys() >= COUNTED for line in metrics(tmp_path)] == [False, True, True]


class TestRefused:
    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (
                ("--gpus-per-worker", "0.5"),
                "gpus_per_worker: needed workers to give it to, got 0.5. Say --workers N.",
            ),
            (
                ("--threads-per-worker", "2"),
                "threads_per_worker: needed workers to give it to, got 2. Say --workers N.",
            ),
            (("--workers", "-1"), "workers: needed an integer of at least 1, got -1."),
            (("--workers", "0"), "workers: needed an integer of at least 1, got 0."),
        ],
    )
    def test_flags(self, tmp_path, digits, capsys, flags, said):
        words = ["evolve", "--data", digits, *RUN, *flags, "--out", tmp_path]
        assert main([str(word) for word in words]) == 2
        assert capsys.readouterr().err == f"tinkering: {said}\n"
        assert not (tmp_path / "config.json").exists()

    def test_without_ray(self, tmp_path, digits, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "ray", None)
        said = (
            "workers: needed the package ray, got a Python without it. "
            "pip install 'tinkering[ray]' installs it."
        )
        self.test_flags(tmp_path, digits, capsys, ("--workers", "2"), said)

    def test_a_resume_without_a_cluster_leaves_the_run_as_it_was(
        self, tmp_path, digits, capsys, monkeypatch
    ):
        def none(*_, **__):
            raise ClusterError("a cluster at 127.0.0.1:1", "none")

        monkeypatch.setattr(workers, "RayEvaluator", none)
        evolved(digits, tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        words = ["evolve", "--resume", str(tmp_path), "--generations", "9"]
        assert main([*words, "--ray-address", "127.0.0.1:1"]) == 2
        assert "needed a cluster at 127.0.0.1:1" in capsys.readouterr().err
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before

    def test_other_images_on_a_worker(self, digits):
        flags = {"data": digits, "validation": 0}
        with pytest.raises(ArgumentError) as caught:
            MakeTask(flags, {}, "0" * 64)()
        assert re.fullmatch(
            rf"data: needed the images that the run was begun with \(SHA-256 {'0' * 64}\), "
            r"got others on \S+ \([0-9a-f]{64}\)\.",
            str(caught.value),
        )


class Started:
    """The command as a process with a group of its own, of which some generations are done."""

    def __init__(self, digits, out, generations):
        self.out = out
        words = ["evolve", "--data", digits, *RUN, "--generations", generations]
        words += ["--workers", "1", "--out", out]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tinkering", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=kept,
            start_new_session=True,
        )
        path, until = out / "metrics.jsonl", time.monotonic() + 100
        while not (path.exists() and path.read_bytes().count(b"\n") >= 2):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)
        found = {pid: born(pid) for pid in family(self.process.pid)}
        self.family = {pid: told for pid, told in found.items() if told[0] is not None}
        assert len(self.family) >= 4  # Ray's own, and the worker

    def left(self, seconds, but=()):
        """Names of what is left of it after that long at most."""
        until = time.monotonic() + seconds
        while True:
            left = [name for pid, (when, name) in self.family.items() if born(pid)[0] == when]
            left = [name for name in left if name not in but]
            if not left or time.monotonic() > until:
                return left
            time.sleep(0.1)


def born(pid):
    """When a process was started, as the kernel counts, and its name; None where it has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        name = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
    except OSError:
        return None, ""
    return (None if words[0] == "Z" else words[19]), name


@pytest.mark.long
class TestProcess:
    def test_ctrl_c_ends_it_well_and_leaves_nothing_behind(self, tmp_path, digits):
        run = Started(digits, tmp_path / "run", 1_000_000)
        try:
            os.killpg(run.process.pid, signal.SIGINT)
            printed, errors = run.process.communicate(timeout=60)
        finally:
            run.process.kill()
        assert (run.process.returncode, errors) == (130, "")
        assert "Ended by Ctrl-C after " in printed
        assert summary(run.out)["outcome"] == "interrupted"
        assert len(metrics(run.out)) == summary(run.out)["generations"] >= 2
        assert run.left(seconds=10) == []

    def test_killed_and_resumed_with_workers(self, cluster, tmp_path, digits):
        assert cluster.is_initialized()
        generations = 40
        run = Started(digits, tmp_path / "run", generations)
        run.process.kill()
        run.process.communicate(timeout=60)
        assert run.left(seconds=20, but=AGENTS) == []
        done = len(metrics(run.out))
        assert 2 <= done < generations
        evolved(digits, tmp_path / "calm", "--generations", generations)
        assert quiet(["evolve", "--resume", run.out, "--workers", "2"])[0] == 0
        assert summary(run.out)["centre_sha256"] == summary(tmp_path / "calm")["centre_sha256"]
        assert [line["generation"] for line in metrics(run.out)] == [*range(1, generations + 1)]
