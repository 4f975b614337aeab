"""The command as a process of its own: exit codes, both outputs, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from commands import FILES, TINY, WITHOUT_REPORT, measured, plain_module

from tinkering.cli import main
from tinkering.data import load


def start(*words, **settings):
    """The command as a process of its own, without a terminal."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE")
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tinkering", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **settings,
    )


@pytest.mark.long
class TestProcess:
    def test_the_embedded_digits_from_end_to_end(self, tmp_path):
        process = start("evolve", *TINY, "--out", "run", cwd=tmp_path)
        printed, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
        assert printed.startswith("mnist5k: 4,000 training images, 1,000 held out, 10 classes\n")
        assert "\x1b" not in printed
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == WITHOUT_REPORT
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        test = load("mnist5k").test
        pixels = {"mean": test.mean, "std": test.std}
        accuracy, loss = measured(
            plain_module(tmp_path / "run"), test.pixels, test.labels, **pixels
        )
        assert summary["test_accuracy"] == pytest.approx(accuracy)
        assert summary["test_loss"] == pytest.approx(loss, rel=1e-4)

    def test_ctrl_c_leaves_a_complete_run_folder(self, tmp_path, digits):
        out = tmp_path / "run"
        words = ["evolve", "--data", digits, *TINY, "--report", "--generations", "1000000"]
        process = start(*words, "--out", out)
        try:
            metrics = out / "metrics.jsonl"
            deadline = time.monotonic() + 60
            while not (metrics.exists() and metrics.stat().st_size):
                assert time.monotonic() < deadline
                assert process.poll() is None, process.communicate()
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            printed, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert (process.returncode, errors) == (130, "")
        assert "Ended by Ctrl-C after " in printed
        assert sorted(path.name for path in out.iterdir()) == FILES
        summary = json.loads((out / "summary.json").read_text())
        assert summary["outcome"] == "interrupted"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert len(lines) == summary["generations"] > 0
        assert lines[-1]["test_loss"] == summary["test_loss"]
        plain_module(out)

    def test_a_mistake_is_a_paragraph_and_no_traceback(self, tmp_path):
        process = start("evolve", "--data", "mnits5k", cwd=tmp_path)
        printed, errors = process.communicate(timeout=60)
        assert (process.returncode, printed) == (2, "")
        assert errors.startswith("tinkering: name: needed one of mnist5k, ")
        assert errors.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("begin", ["tinkering", "tinkering.__main__"])
    @pytest.mark.parametrize("during", ["torch", "tyro", "tinkering.cli.evolve"])
    def test_ctrl_c_while_libraries_are_imported(self, begin, during):
        """Also where the exception would be swallowed, as in a callback."""
        code = f"""
import signal, sys

class Finder:
    def find_spec(name, *_):
        if name == {during!r}:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                print("swallowed", file=sys.stderr)

sys.meta_path.insert(0, Finder)
sys.argv = ["tinkering", "--help"]
import runpy
if {begin!r} == "tinkering":  # as the script of this name does
    from tinkering.cli import main
    sys.exit(main())
runpy.run_module({begin!r}, run_name="__main__")
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "")

    def test_ctrl_c_while_flags_are_read(self, monkeypatch):
        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("tinkering.cli.program.tyro.cli", interrupted)
        assert main(["data", "list"]) == 130

    def test_a_ctrl_c_that_is_ignored_stays_ignored(self):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            main(["data", "list"])
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGINT, before)
