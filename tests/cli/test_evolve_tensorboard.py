"""``tinkering evolve --tensorboard``."""

import json
import sys

import pytest
from commands import TINY, quiet, refused

pytestmark = pytest.mark.usefixtures("same_threads")


def test_event_files_say_what_the_metrics_say(tmp_path, digits):
    pytest.importorskip("tensorboard", reason="the extra tinkering[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["evolve", "--data", digits, *TINY, "--tensorboard", "--out", tmp_path]
    assert quiet(words)[0] == 0
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    names = {"fitness/mean": "fitness_mean", "test/accuracy": "test_accuracy"}
    for name, key in names.items():
        seen = [(event.step, event.value) for event in events.Scalars(name)]
        known = [(line["generation"], line[key]) for line in lines if key in line]
        assert seen == [(step, pytest.approx(value, rel=1e-5)) for step, value in known]
    assert set(events.Tags()["scalars"]) == {
        *("evaluations", "seconds", "fitness/mean", "fitness/best", "fitness/low"),
        *("fitness/high", "test/accuracy", "test/loss"),
    }


def test_without_the_package_no_run_begins(tmp_path, digits, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = tmp_path / "run"
    message = refused(["evolve", "--data", digits, *TINY, "--tensorboard", "--out", out], capsys)
    assert message == (
        "tensorboard: needed the package tensorboard, got a Python without it. "
        "pip install 'tinkering[tensorboard]' installs it."
    )
    assert not out.exists()


def test_no_event_file_without_the_flag(run):
    assert not list(run[0].glob("events*"))
