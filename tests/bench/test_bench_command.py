"""``make bench``, from the words to the table and the file."""

import contextlib
import functools
import io
import json
import multiprocessing
import sys

import pytest
import torch

from benchmarks.bench import centred, command, experiment, explicit, generations, networks
from benchmarks.bench.judge import Figure, Row, Target
from benchmarks.bench.settings import QUICK
from benchmarks.bench.suite import rows_of

pytestmark = pytest.mark.usefixtures("same_threads")
PARTS = (
    *("call", "fp32", "bf16", "factored", "shared", "vgg", "preact"),
    *("evolve", "update", "net", "noise", "memory", "peer", "pure"),
    *("stacked", "perturbed", "gru", "dense", "python", "causal", "vit"),
)
"""All but the cold start, which takes a compiler's time."""


def called(*words):
    """Exit code, standard output and standard error of a command."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = command.main([str(word) for word in words])
    return code, out.getvalue(), error.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a quick run of everything printed, its mistakes, and its file."""
    out = tmp_path_factory.mktemp("bench") / "all.json"
    words = ["--quick", "--rounds", 1, "--threads", 1, "--out", out, "--rows", ",".join(PARTS)]
    # What a process starts from is there already: each of four would import it for seconds.
    multiprocessing.set_forkserver_preload(["torch._dynamo", "benchmarks.bench.processes"])
    with pytest.MonkeyPatch.context() as patched:
        kept = functools.cache(networks.network)  # each is captured once, not in every experiment
        for room in (centred, experiment, explicit, generations):
            patched.setattr(room, "network", kept)
        patched.setattr(sys, "argv", ["bench", *map(str, words)])
        code, printed, error = called(*words)
    assert code == 0, error
    return printed, error, json.loads(out.read_text())


@pytest.mark.long
class TestEverything:
    def test_every_row_is_in_the_file(self, whole):
        names = [row["name"] for row in whole[2]["rows"]]
        assert len(set(names)) == len(names)
        pure = {name for name in rows_of(QUICK) if name.startswith("pure-")}
        cold = {"cold-start-empty", "cold-start-warm"}
        assert set(rows_of(QUICK)) - pure - cold <= set(names)
        for name in pure:
            assert {f"{name}-eager-32", f"{name}-packed-32"} <= set(names)

    def test_every_row_has_a_figure_or_a_reason(self, whole):
        for row in whole[2]["rows"]:
            figure = row["measured"] or row["judged"]
            assert row["note"] if figure is None else figure["value"] > 0
            assert (row["must_met"] is None) == (row["must"] is None or row["judged"] is None)

    def test_noise_is_a_share_that_should_be_small(self, whole):
        (row,) = (row for row in whole[2]["rows"] if row["name"] == "noise-w2")
        assert row["at_most"] is True
        assert row["judged"]["value"] > 0

    def test_the_file_says_where_it_comes_from(self, whole):
        held = whole[2]
        assert held["threads"] == 1
        assert held["flags"]["quick"] is True
        assert held["command"][:2] == ["bench", "--quick"]
        assert held["versions"]["torch"] == torch.__version__
        assert held["machine"]["processor"]
        assert held["sizes"]["wide"] == QUICK.wide

    def test_a_line_a_row_and_a_table_that_fits(self, whole):
        lines = whole[0].splitlines()
        for name in ("call-vs-vmap", "factored-w8", "memory-growth", "peer-evox"):
            assert any(line.startswith(f"{name}: ") for line in lines)
        table = lines[next(i for i, line in enumerate(lines) if line.startswith("row  ")) :]
        assert max(map(len, table)) <= command.WIDTH
        assert all(len(line.split()) > 1 for line in table)  # no name is broken in two
        assert lines[-1].endswith("all.json")
        assert whole[1] == ""


class TestSomeRows:
    def test_only_they_are_measured(self, tmp_path):
        out = tmp_path / "b.json"
        words = ("--quick", "--rounds", 1, "--rows", "call-vs-*", "--out", out)
        code, printed, _ = called(*words)
        held = json.loads(out.read_text())
        assert code == 0
        assert [row["name"] for row in held["rows"]] == ["call-vs-vmap", "call-vs-loop"]
        assert "call-vs-vmap: " in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rows", "nothing"), "rows: needed a pattern that fits a row, got 'nothing'."),
        (("--rounds", 0), "rounds: needed an integer of at least 1, got 0."),
        (("--threads", 0), "threads: needed an integer from 1 to "),
        (("--threads", 1000000), "threads: needed an integer from 1 to "),
        (("--memory-members", 0), "memory_members: needed an integer of at least 1, got 0."),
        (("--memory-members", 3), "memory_members: needed an even number, got 3."),
    ],
)
def test_a_mistake_is_said_and_nothing_is_written(tmp_path, words, said):
    out = tmp_path / "b.json"
    code, printed, error = called("--quick", "--out", out, *words)
    assert (code, printed) == (2, "")
    assert error.startswith(f"bench: {said}")
    assert not out.exists()


def test_a_file_in_no_folder_is_refused_before_anything_is_measured(tmp_path):
    code, _, error = called("--quick", "--out", tmp_path / "none" / "b.json")
    assert code == 2
    assert "out: needed a file in a folder that exists" in error


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            Row("a", "", Figure(500.0, "img/s"), Figure(2.6, "x vmap"), Target(2.5, 2.8)),
            "a: 500 img/s, 2.60 x vmap, must met (must 2.50, goal 2.80)",
        ),
        (
            Row("b", "", None, Figure(0.12, "%"), Target(must=0.1, at_most=True)),
            "b: 12.0 %, missed (must <= 10.0 %)",
        ),
        (Row("c", "", note="not installed"), "c: not installed"),
    ],
)
def test_a_line_says_what_was_met(row, said):
    assert command.line(row) == said
