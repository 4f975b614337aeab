"""``tinkering evolve --resume``: as if the run had never ended, or a clear no."""

import json
import os
import re
import shlex
import shutil
import signal
import time

import pytest
from commands import TINY, WITHOUT_REPORT, contents, plain_module, quiet, refused, write_digits
from safetensors.torch import load_file
from test_cli_process import start

from tinkering.cli import main
from tinkering.runs import folder

pytestmark = pytest.mark.usefixtures("same_threads")
FLAGS = {
    "feedback": [],
    "feedback, accuracy": ["--fitness", "accuracy"],
    "activations": ["--strategy", "activations"],
    "activations, accuracy": ["--strategy", "activations", "--fitness", "accuracy"],
    "weights": ["--strategy", "weights"],
    "genetic": ["--strategy", "genetic", "--parents", "2", "--elites", "1", "--images", "4"],
    "weights, pairs, renewed": [
        *("--strategy", "weights", "--antithetic", "--group", "2", "--statistics", "renewed"),
        *("--rank", "2", "--shaping", "rank", "--shift", "1"),
    ],
}


def evolved(out, digits, *flags, code=0):
    """What a run printed."""
    words = ["evolve", "--data", digits, *TINY, *flags, "--out", out]
    got, printed = quiet(words)
    assert got == code, printed
    return printed


def resumed(out, *flags):
    code, printed = quiet(["evolve", "--resume", out, "--no-report", *flags])
    assert code == 0, printed
    return printed


def json_of(path, name):
    return json.loads((path / name).read_text())


def generations_in(out):
    return [json.loads(line)["generation"] for line in (out / "metrics.jsonl").open()]


def newest(out):
    return max((out / "checkpoints").glob("*.safetensors"))


def require_same_end(a, b):
    """The same network, and the same place to go on from, to the last bit."""
    for name in ("model.safetensors", "predictions.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    kept = [load_file(newest(path)) for path in (a, b)]
    assert newest(a).name == newest(b).name
    assert kept[0].keys() == kept[1].keys()
    for name, tensor in kept[0].items():
        assert tensor.numpy().tobytes() == kept[1][name].numpy().tobytes(), name
    summaries = [json_of(path, "summary.json") for path in (a, b)]
    for name in ("centre_sha256", "evaluations", "generations", "test_accuracy", "test_loss"):
        assert summaries[0][name] == summaries[1][name], name
    assert generations_in(a) == generations_in(b) == [*range(1, summaries[0]["generations"] + 1)]


@pytest.fixture
def copy(run, tmp_path):
    """A run of three generations that a test may change."""
    path = tmp_path / "copy"
    shutil.copytree(run[0], path)
    return path


class TestSameEnd:
    @pytest.mark.parametrize("name", FLAGS)
    def test_in_two_parts_as_in_one(self, tmp_path, digits, name):
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        evolved(whole, digits, *FLAGS[name], "--generations", "4")
        evolved(parts, digits, *FLAGS[name], "--generations", "1")
        printed = resumed(parts, "--generations", "4")
        assert printed.startswith("resumed after generation 1, ")
        require_same_end(whole, parts)
        assert sorted(path.name for path in parts.iterdir()) == WITHOUT_REPORT

    def test_the_same_command_and_seed_twice(self, run, tmp_path, digits):
        evolved(tmp_path, digits, "--seed", "1", "--measure-every", "0")
        require_same_end(run[0], tmp_path)

    def test_a_folder_that_was_moved(self, run, copy):
        other = copy.with_name("moved")
        copy.rename(other)
        resumed(other, "--generations", "4")
        assert json_of(other, "config.json")["out"] == str(other)
        assert json_of(run[0], "summary.json")["generations"] == 3

    def test_killed_between_a_line_and_its_checkpoint(self, run, copy):
        newest(copy).unlink()
        (copy / "checkpoints" / "00000003.safetensors.part").write_bytes(b"a part of it")
        with (copy / "metrics.jsonl").open("a") as file:
            file.write('{"generation": 4, "eval')
        printed = resumed(copy)
        assert printed.startswith("resumed after generation 2, ")
        require_same_end(run[0], copy)
        assert not list(copy.rglob("*.part"))

    @pytest.mark.parametrize("lost", ["model.safetensors", "predictions.safetensors"])
    def test_killed_after_the_last_generation(self, run, copy, lost):
        for name in {lost, "predictions.safetensors", "report.html", "summary.json"}:
            (copy / name).unlink()
        resumed(copy)
        require_same_end(run[0], copy)

    def test_killed_before_the_first_generation_was_over(self, run, copy):
        shutil.rmtree(copy / "checkpoints")
        for name in ("metrics.jsonl", "summary.json", "report.html", "model.safetensors"):
            (copy / name).unlink()
        resumed(copy)
        require_same_end(run[0], copy)

    def test_a_damaged_checkpoint_is_passed_over_and_the_user_is_told(self, run, copy):
        path = newest(copy)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        printed = resumed(copy)
        assert printed.splitlines()[0] == (
            f"note: {path}: expected the SHA-256 that the file names, found another. The file was "
            "damaged, or cut off. An older one is tried."
        )
        assert "resumed after generation 2, " in printed
        require_same_end(run[0], copy)

    def test_lost_metrics_are_said(self, copy):
        (copy / "metrics.jsonl").write_text('{"generation": 2}\n')
        assert "note: metrics.jsonl has lost 2 generations\n" in resumed(copy, "--generations", "4")
        assert generations_in(copy) == [2, 4]

    def test_another_version_is_said(self, copy):
        config = json_of(copy, "config.json")
        config["versions"]["torch"] = "1.0"
        (copy / "config.json").write_text(json.dumps(config))
        printed = resumed(copy, "--generations", "4")
        assert printed.startswith("note: torch was 1.0 and is 2.")
        assert "it may not end in the same bits" in printed.splitlines()[0]
        assert json_of(copy, "config.json")["versions"]["torch"] == "1.0"

    def test_what_changes_nothing_may_change(self, copy, tmp_path, digits):
        flags = ["--measure-every", "0", "--checkpoint-every", "2", "--keep-checkpoints", "1"]
        resumed(copy, "--generations", "5", *flags, "--if-disk-full", "go-on")
        assert [path.name for path in (copy / "checkpoints").iterdir()] == ["00000005.safetensors"]
        whole = tmp_path / "whole"
        evolved(whole, digits, "--seed", "1", "--generations", "5", "--measure-every", "0")
        require_same_end(whole, copy)


class TestLimits:
    def test_generations_may_grow(self, copy):
        assert "Ended by --generations after 5" in resumed(copy, "--generations", "5")

    def test_seconds_count_from_the_start_of_the_run(self, copy):
        before = json_of(copy, "summary.json")["seconds"]
        printed = resumed(copy, "--seconds", str(before + 0.5))
        assert "Ended by --seconds" in printed
        assert json_of(copy, "summary.json")["seconds"] >= before + 0.5

    @pytest.mark.parametrize(
        ("flags", "start"),
        [
            (
                ["--generations", "2"],
                "generations: needed more than the 3 that the run has behind it, got 2. "
                "Say how far it shall go on, such as --generations 6.",
            ),
            (["--seconds", "0"], "seconds: needed more than the "),
        ],
        ids=" ".join,
    )
    def test_a_limit_that_lies_behind(self, run, flags, start, capsys):
        before = contents(run[0])
        message = refused(["evolve", "--resume", run[0], *flags], capsys)
        assert message.startswith(start)
        assert contents(run[0]) == before

    def test_a_complete_run_says_so_as_often_as_it_is_resumed(self, run):
        before = contents(run[0])
        for flags in ([], [], ["--generations", "3"]):
            code, printed = quiet(["evolve", "--resume", run[0], *flags])
            assert code == 0
            assert re.fullmatch(
                rf"{run[0]} is complete, with 3 generations in \d+\.\d s; a new limit, such as "
                r"--generations 6, takes it further\.\n",
                printed,
            )
        assert contents(run[0]) == before

    def test_a_run_that_was_interrupted_is_not_complete(self, copy):
        config = json_of(copy, "config.json")
        (copy / "config.json").write_text(json.dumps({**config, "generations": 4}))
        assert "Ended by --generations after 4" in resumed(copy)


class TestRefusals:
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--seed", "2"], "seed: needed 1, as the run was begun, got 2."),
            (["--width", "8"], "width: needed 2, as the run was begun, got 8."),  # the default
            (["--seed", "0"], "seed: needed 1, as the run was begun, got 0."),  # the default
            (["--population=16"], "population: needed 8, as the run was begun, got 16."),
            (["--images", "64"], "images: needed 128, as the run was begun, got 64."),
            (["--cells", "9"], "cells: needed 512, as the run was begun, got 9."),
            (["--sigma", "0.2"], "sigma: needed 0.1, as the run was begun, got 0.2."),
            (["--learning-rate", "1"], "learning_rate: needed 0.004, as the run was begun, got"),
            (["--decay", "9"], "decay: needed 1000.0, as the run was begun, got 9.0."),
            (["--averaging", "0.5"], "averaging: needed 0.99, as the run was begun, got 0.5."),
            (["--strategy", "weights"], "strategy: needed feedback, as the run was begun, got"),
            (["--fitness", "accuracy"], "fitness: needed cross-entropy, as the run was begun"),
            (["--blocks", "1", "1", "1", "2"], "blocks: needed (1, 1, 1, 1), as the run was begun"),
            (["--shift", "0"], "shift: needed 2, as the run was begun, got 0."),
            (["--validation", "4"], "validation: needed 0, as the run was begun, got 4."),
            (["--threads", "2"], "threads: needed 1, as the run was begun, got 2."),
            (["--memory", "999"], "memory: needed "),
            (["--data", "mnist5k"], "data: needed idx:"),
            (["--out", "elsewhere"], "out: needed "),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_a_changed_setting_is_named(self, run, flags, message, capsys):
        before = contents(run[0])
        words = ["evolve", "--resume", run[0], "--generations", "9", *flags]
        found = refused(words, capsys)
        assert found.startswith(message)
        assert found.endswith("A run that is resumed goes on as it was; only limits may change.")
        assert contents(run[0]) == before

    @pytest.mark.parametrize("flags", [["--antithetic"], ["--rank", "1"]], ids=" ".join)
    def test_a_setting_of_another_strategy_says_whose_it_is(self, run, flags, capsys):
        before = contents(run[0])
        message = refused(["evolve", "--resume", run[0], "--generations", "9", *flags], capsys)
        whose = f"{flags[0][2:]}: needed --strategy weights, which it belongs to, got "
        assert message.startswith(whose)
        assert message.endswith(" with --strategy feedback.")
        assert contents(run[0]) == before

    def test_the_same_setting_may_be_given(self, copy):
        resumed(copy, "--generations", "4", "--seed", "1", "--sigma", "0.1", "--width", "2")

    def test_no_run_folder(self, tmp_path, capsys):
        message = refused(["evolve", "--resume", tmp_path / "none"], capsys, code=4)
        assert message == (
            f"{tmp_path}/none/config.json: expected a file of a run folder, found No such file or "
            "directory. Is this a run folder?"
        )
        assert list(tmp_path.iterdir()) == []

    def test_settings_of_another_release(self, copy, capsys):
        config = json_of(copy, "config.json")
        del config["shift"], config["decay"]
        (copy / "config.json").write_text(json.dumps(config))
        message = refused(["evolve", "--resume", copy], capsys, code=4)
        assert message == (
            f"{copy}/config.json: expected the settings of a run, found none for shift, decay. "
            "The run was begun by another release; begin it again."
        )

    def test_other_images(self, tmp_path, capsys):
        digits = write_digits(tmp_path / "digits")
        evolved(tmp_path / "run", digits)
        shutil.rmtree(tmp_path / "digits")
        write_digits(tmp_path / "digits", seed=1)
        before = contents(tmp_path / "run")
        words = ["evolve", "--resume", tmp_path / "run", "--generations", "9"]
        message = refused(words, capsys)
        assert message.startswith("data: needed the images that the run was begun with (SHA-256 ")
        assert contents(tmp_path / "run") == before

    def test_all_checkpoints_damaged(self, copy, capsys):
        for path in (copy / "checkpoints").iterdir():
            path.write_bytes(b"")
        assert main(["evolve", "--resume", str(copy), "--generations", "9"]) == 4
        captured = capsys.readouterr()
        assert captured.out.count("An older one is tried.") == 3
        assert "found damaged ones only. The run cannot be resumed" in captured.err

    def test_a_run_that_another_process_works_on(self, copy, capsys):
        with folder.locked(copy):
            words = ["evolve", "--resume", copy, "--generations", "9"]
            assert refused(words, capsys, code=5) == (
                f"{copy}: another process works on this run. Wait for it, or end it."
            )

    @pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
    def test_a_folder_that_cannot_be_written(self, copy, capsys):
        copy.chmod(0o500)
        try:
            message = refused(["evolve", "--resume", copy, "--generations", "9"], capsys, code=4)
        finally:
            copy.chmod(0o700)
        assert "Permission denied" in message

    def test_debug_adds_the_traceback(self, tmp_path, capsys):
        assert main(["evolve", "--debug", "--resume", str(tmp_path)]) == 4
        errors = capsys.readouterr().err
        assert errors.startswith("Traceback (most recent call last):\n")
        assert errors.splitlines()[-1].startswith(f"tinkering: {tmp_path}/config.json: expected ")


class TestTroubles:
    def test_are_said_once_with_what_to_try(self, tmp_path, digits):
        flags = ["--strategy", "weights", "--sigma", "1e-30", "--shaping", "raw"]
        printed = evolved(tmp_path / "run", digits, *flags)
        said = [line for line in printed.splitlines() if line.startswith("note: ")]
        assert said == [
            "note: generation 1, constant fitness. All members have the same fitness, so there is "
            "nothing to choose between. Try a larger sigma, more images, or a fitness that tells "
            "members apart."
        ]
        assert json_of(tmp_path / "run", "summary.json")["troubles"] == {"constant fitness": 3}

    def test_memory_that_cannot_suffice_is_refused_before_the_first(self, tmp_path, digits, capsys):
        words = ["evolve", "--data", digits, *TINY, "--memory", "1000", "--out", tmp_path / "run"]
        assert refused(words, capsys).startswith("memory: needed at least ")
        assert not (tmp_path / "run").exists()


class TestFullDisk:
    def test_ends_with_the_last_checkpoint_intact_and_says_how_to_go_on(
        self, run, tmp_path, digits, monkeypatch, capsys
    ):
        out, fsync, left = tmp_path / "run", os.fsync, [5]

        def full(descriptor):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        words = ["evolve", "--data", digits, *TINY, "--seed", "1", "--measure-every", "0"]
        assert main([*words, "--out", str(out)]) == 4
        captured = capsys.readouterr()
        assert "found No space left on device. The last checkpoint is that of" in captured.err
        line = captured.out.splitlines()[-1]
        assert line.startswith("to resume: ")
        assert line.endswith(f"tinkering evolve --resume {out}")
        monkeypatch.undo()
        resumed(out)
        require_same_end(run[0], out)


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.long
class TestSignals:
    def test_sigterm_and_the_line_that_resumes(self, tmp_path, digits):
        out = tmp_path / "run"
        process = start("evolve", "--data", digits, *TINY, "--generations", "99999", "--out", out)
        try:
            wait_for(out / "metrics.jsonl", process)
            process.send_signal(signal.SIGTERM)
            printed, errors = process.communicate(timeout=120)
        finally:
            process.kill()
        assert (process.returncode, errors) == (143, "")
        assert "Ended by SIGTERM after " in printed
        line = printed.splitlines()[-1]
        assert line.startswith("to resume: ")
        words = shlex.split(line.removeprefix("to resume: "))
        assert words[1:] == ["evolve", "--resume", str(out)]
        summary = json_of(out, "summary.json")
        assert summary["outcome"] == "terminated"
        done = summary["generations"]
        assert generations_in(out) == [*range(1, done + 1)]
        assert newest(out).name == f"{done:08d}.safetensors"
        plain_module(out)
        # And it does resume, to what it would have come to.
        resumed(out, "--generations", str(done + 2))
        evolved(tmp_path / "whole", digits, "--generations", str(done + 2))
        require_same_end(tmp_path / "whole", out)

    def test_a_second_ctrl_c_stops_at_once(self, tmp_path, digits):
        out = tmp_path / "run"
        words = ["evolve", "--data", digits, *TINY, "--strategy", "weights", "--population"]
        process = start(*words, "20000", "--generations", "99999", "--out", out)
        try:
            wait_for(out / "metrics.jsonl", process)
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            printed, errors = process.communicate(timeout=120)
        finally:
            process.kill()
        assert (process.returncode, errors) == (130, "")
        assert printed.splitlines()[-1].startswith("to resume: ")


def test_the_summary_says_what_the_numbers_depend_on(run):
    summary, config = json_of(run[0], "summary.json"), json_of(run[0], "config.json")
    for name in ("plan", "dtype", "threads", "versions", "processor"):
        assert summary[name] == config[name]
    assert set(summary["versions"]) == {"tinkering", "torch", "python"}
    assert set(summary["processor"]) == {"machine", "capability", "bfloat16"}
    assert "images a run, 1 threads" in summary["plan"]
    assert summary["troubles"] == {}
    assert len(summary["centre_sha256"]) == 64
