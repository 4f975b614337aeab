"""What is written after a generation, and what becomes of a run that cannot write."""

import errno
import os
import time

import pytest
import torch

from tinkering.errors import RunFolderError
from tinkering.runs import checkpoint, folder
from tinkering.runs.checkpoint import Checkpoints, Progress
from tinkering.runs.recorder import Recorder


class Disk:
    """Refuses what is written, while it is full."""

    def __init__(self, monkeypatch):
        self.full, self.only = False, ""
        for name in ("write", "fsync"):
            monkeypatch.setattr(os, name, self.unless_full(name, getattr(os, name)))

    def unless_full(self, name, function):
        def call(*words):
            if self.full and self.only in name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*words)

        return call


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


class Run:
    """A recorder, with what it said and what is on disk."""

    def __init__(self, path, **settings):
        self.path, self.said = path, []
        self.checkpoints = Checkpoints(path, {}, keep=100)
        self.recorder = Recorder(path, self.checkpoints, say=self.said.append, **settings)

    def generation(self, number):
        self.recorder.record({"generation": number})
        self.recorder.keep(Progress(number), {"centre": torch.tensor(number)})
        self.recorder._settle()  # as the next generation's record does

    def lines(self):
        metrics = self.path / folder.METRICS
        if not metrics.exists():
            return []
        return [record["generation"] for record in folder.read_metrics(metrics)]


def test_a_line_and_a_checkpoint_a_generation(tmp_path):
    run = Run(tmp_path)
    for number in (1, 2, 3):
        run.generation(number)
        assert run.lines() == run.checkpoints.generations() == list(range(1, number + 1))
    run.recorder.finish()
    assert run.checkpoints.generations() == [1, 2, 3]
    assert run.said == []


def test_a_line_comes_before_its_checkpoint_and_after_the_checkpoint_before(tmp_path, monkeypatch):
    """So that a run that is killed has never more than one line without a checkpoint."""
    run, steps = Run(tmp_path), []
    append, replace = folder.append_lines, checkpoint.replace_durably

    def appended(path, records):
        steps.append(("line", records[0]["generation"]))
        append(path, records)

    def replaced(path, content):
        time.sleep(0.05)
        replace(path, content)
        steps.append(("checkpoint", int(path.stem)))

    monkeypatch.setattr(folder, "append_lines", appended)
    monkeypatch.setattr(checkpoint, "replace_durably", replaced)
    for number in (1, 2, 3):
        run.recorder.record({"generation": number})
        run.recorder.keep(Progress(number), {"centre": torch.tensor(number)})
    run.recorder.finish()
    assert steps == [(kind, g) for g in (1, 2, 3) for kind in ("line", "checkpoint")]


def test_what_is_written_is_the_state_as_it_was(tmp_path):
    """Though the next generation is under way."""
    run, centre = Run(tmp_path), torch.zeros(1000)
    run.recorder.keep(Progress(1), {"centre": centre})
    centre += 1
    run.recorder.finish()
    assert not run.checkpoints.newest(pytest.fail).state["centre"].any()


def test_closing_waits_for_what_is_being_written(tmp_path):
    run = Run(tmp_path)
    run.recorder.keep(Progress(1), {"centre": torch.zeros(1000)})
    run.recorder.close()
    assert run.checkpoints.newest(pytest.fail).progress.generation == 1


@pytest.mark.parametrize(
    ("every", "last", "expected"), [(1, 4, [1, 2, 3, 4]), (3, 7, [3, 6, 7]), (3, 6, [3, 6])]
)
def test_checkpoints_at_their_interval_and_at_the_end(tmp_path, every, last, expected):
    run = Run(tmp_path, every=every)
    for number in range(1, last + 1):
        run.generation(number)
    run.recorder.finish()
    assert run.checkpoints.generations() == expected


def test_a_run_of_no_generations_writes_nothing(tmp_path):
    Run(tmp_path).recorder.finish()
    assert list(tmp_path.iterdir()) == []


class TestFullDisk:
    def test_ends_the_run_with_the_last_checkpoint_intact(self, tmp_path, disk):
        run = Run(tmp_path)
        run.generation(1)
        disk.full = True
        with pytest.raises(RunFolderError) as caught:
            run.generation(2)
        assert str(caught.value) == (
            f"{tmp_path}: expected room to write, found No space left on device. "
            "The last checkpoint is that of generation 1."
        )
        assert run.checkpoints.newest(pytest.fail).progress.generation == 1
        assert run.lines() == [1]

    def test_names_the_last_checkpoint_of_a_run_that_was_resumed(self, tmp_path, disk):
        Run(tmp_path).generation(7)
        disk.full = True
        with pytest.raises(RunFolderError, match="that of generation 7"):
            Run(tmp_path).generation(8)

    def test_by_choice_it_goes_on_and_writes_later_what_it_could_not(self, tmp_path, disk):
        run = Run(tmp_path, go_on=True)
        run.generation(1)
        disk.full = True
        for number in (2, 3, 4):
            run.generation(number)
        assert (run.lines(), run.checkpoints.generations()) == ([1], [1])
        disk.full = False
        run.generation(5)
        assert (run.lines(), run.checkpoints.generations()) == ([1, 2, 3, 4, 5], [1, 5])
        assert run.said == [
            f"{tmp_path}: expected room to write, found No space left on device. The last "
            "checkpoint is that of generation 1. The run goes on; it is written again when there "
            "is room.",
            "The run folder can be written again.",
        ]

    def test_by_choice_and_full_to_the_end(self, tmp_path, disk):
        run = Run(tmp_path, go_on=True)
        run.generation(1)
        disk.full = True
        run.generation(2)
        run.recorder.finish()
        assert (run.lines(), run.checkpoints.generations()) == ([1], [1])
        assert len(run.said) == 1

    def test_room_for_lines_alone_is_said_once(self, tmp_path, disk):
        run = Run(tmp_path, go_on=True)
        disk.only = "fsync"
        disk.full = True
        for number in (1, 2, 3):
            run.generation(number)
        assert (run.lines(), run.checkpoints.generations()) == ([1, 2, 3], [])
        assert len(run.said) == 1
        disk.full = False
        run.generation(4)
        assert run.said[1:] == ["The run folder can be written again."]

    def test_room_at_the_very_end(self, tmp_path, disk):
        run = Run(tmp_path, go_on=True)
        disk.full = True
        run.generation(1)
        run.generation(2)
        disk.full = False
        run.recorder.finish()
        assert (run.lines(), run.checkpoints.generations()) == ([1, 2], [2])

    def test_other_mistakes_are_not_taken_for_a_full_disk(self, tmp_path):
        run = Run(tmp_path, go_on=True)
        with pytest.raises(ValueError, match="needed"):
            run.recorder.keep(Progress(1), {"centre": object()})
