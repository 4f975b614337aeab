"""Folders and flags that were made to do harm, or by mistake: one line, at once."""

import contextlib
import io
import json
import os
import re
import shutil
import threading
import time

import pytest
import torch
from commands import TINY, contents, quiet, refused, write_digits
from safetensors.torch import load_file, save_file

from tinkering.cli import main, network, room
from tinkering.cli.room import shortage
from tinkering.runs.checkpoint import Checkpoints, Progress
from tinkering.strategies.activations import Activations
from tinkering.strategies.evolution_strategy import EvolutionStrategy

pytestmark = pytest.mark.usefixtures("same_threads")
LIMIT = 10
"""Seconds for what takes a fraction of one, on a machine that is busy."""


@pytest.fixture
def copy(run, tmp_path):
    """A run of three generations that a test may change."""
    path = tmp_path / "copy"
    shutil.copytree(run[0], path)
    return path


@pytest.fixture
def at_once():
    start = time.monotonic()
    yield
    assert time.monotonic() - start < LIMIT


def edit(path, **changes):
    config = {**json.loads((path / "config.json").read_text()), **changes}
    (path / "config.json").write_text(json.dumps(config))


@contextlib.contextmanager
def pipe_at(path):
    """A named pipe in the place of a file; who waits for it is let go, too late."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)

    def let_go():
        while not over.wait(LIMIT):
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))

    over = threading.Event()
    watcher = threading.Thread(target=let_go)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


@pytest.mark.usefixtures("at_once")
class TestSettingsOfAFolder:
    """They are checked as flags are, before anything is built of them."""

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"population": 8 * 10**12}, "for population about "),
            ({"population": 7}, "for population a multiple of the 128 images, or a part of "),
            ({"population": None}, "a usable population, found None."),
            ({"blocks": [1, 1, 1, 10**9]}, "for blocks fewer, of a network that "),
            ({"blocks": [1, 1, 0, 1]}, "for blocks four numbers of at least 1, one a stage, found"),
            ({"width": 10**6}, "for width an integer from 1 to "),
            ({"width": 0}, "for width an integer of at least 1, found 0."),
            ({"threads": 10**6}, "for threads an integer from 1 to "),
            ({"shift": 10**6}, "for shift an integer from 0 to 8, the side of an image, found"),
            ({"learning_rate": 1e300}, "for learning_rate a number of at most 3.778e+22"),
            ({"sigma": float("nan")}, "for sigma a finite number above 0, found nan."),
            ({"seed": -1}, "for seed an integer from 0 to 2^64 - 1, found -1."),
            ({"generations": -1}, "for generations a finite number of at least 0, found -1."),
            ({"generations": 10**30}, "for generations an integer of at most 2^64 - 1, found"),
            ({"seconds": 10**400}, "a usable seconds, found one of 401 digits."),
            ({"measure_every": -1}, "for measure_every a finite number of at least 0, found -1"),
            ({"checkpoint_every": 0}, "for checkpoint_every an integer of at least 1, found 0."),
            ({"memory": 0}, "for memory an integer of at least 1, found 0."),
            ({"worker_timeout": 0}, "for worker_timeout a finite number of seconds above 0"),
            ({"validation": 10**9}, "for validation an integer from 0 to 39, found 1000000000."),
            ({"data": "mnits"}, "for name one of mnist5k, "),
            ({"versions": "x"}, "versions as a JSON object, found 'x'."),
            ({"processor": None}, "processor as a JSON object, found None."),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
    )
    def test_are_refused_by_name_when_a_run_is_resumed(self, copy, changes, said, capsys):
        edit(copy, **changes)
        if "data" in changes:  # what is wrong with the images themselves comes first
            assert changes["data"] != "mnist5k"
        before = contents(copy)
        message = refused(["evolve", "--resume", copy, "--no-report"], capsys, code=4)
        assert message.startswith(f"{copy}/config.json: expected {said}")
        assert contents(copy) == before

    @pytest.mark.parametrize(
        "changes",
        [
            {"versions": "x"},
            {"processor": None},
            {"data": 5},
            {"data": "mnits"},
            {"pixels": {"mean": "x", "std": 1.0}},
            {"pixels": {"mean": 0.5, "std": 0}},
            {"pixels": {"mean": 10**400, "std": 1.0}},
            {"network": {"blocks": [1, 1, 1, 10**9], "width": 10**6, "classes": 3}},
        ],
        ids=str,
    )
    def test_are_refused_when_it_is_evaluated(self, copy, changes, capsys):
        edit(copy, **changes)
        message = refused(["evaluate", copy], capsys, code=4)
        assert message.startswith(f"{copy}/{'model' if 'network' in changes else 'config'}.")

    @pytest.mark.parametrize(
        "changes",
        [
            {
                **{"versions": "x", "processor": None, "width": 10**6, "blocks": [1, 1, 1, 10**9]},
                **{"classes": ["\ud800", 5, None], "data": "\ud800", "not_compared": [[]]},
            },
            {
                "network": {"blocks": [1, 1, 1, 10**9], "width": 10**6, "classes": 10**12},
                "command": "tinkering evolve --data 'not closed",
            },
        ],
        ids=str,
    )
    def test_are_shown_as_they_are_in_a_report(self, copy, changes):
        edit(copy, **changes)
        assert quiet(["report", copy])[0] == 0

    def test_a_checkpoint_says_how_much_was_done_in_numbers(self, copy, capsys):
        start = EvolutionStrategy(Activations()).init({"w": torch.zeros(1)})
        for path in (copy / "checkpoints").iterdir():
            path.unlink()
        Checkpoints(copy, start).save(Progress(9, seconds=-1.0), start)
        assert main(["evolve", "--resume", str(copy), "--generations", "20"]) == 4
        captured = capsys.readouterr()
        assert "expected progress in numbers of at least 0, found Progress(" in captured.out


class TestPipes:
    """Only regular files are opened; a pipe would be waited for."""

    @pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "lock"])
    @pytest.mark.usefixtures("at_once")
    def test_refused_when_a_run_is_resumed(self, copy, name, capsys):
        with pipe_at(copy / name):
            words = ["evolve", "--resume", copy, "--generations", "4", "--no-report"]
            assert main(list(map(str, words))) == 4
        assert "found a named pipe, which is no regular file." in capsys.readouterr().err

    @pytest.mark.usefixtures("at_once")
    def test_a_checkpoint_is_passed_over(self, copy):
        with pipe_at(copy / "checkpoints" / "00000009.safetensors"):
            words = ["evolve", "--resume", copy, "--generations", "4", "--no-report"]
            code, printed = quiet(words)
        assert code == 0
        assert "found a named pipe, which is no regular file. An older one is tried." in printed

    @pytest.mark.parametrize("name", ["config.json.part", "checkpoints/00000004.safetensors.part"])
    @pytest.mark.usefixtures("at_once")
    def test_what_was_left_half_written_is_removed(self, copy, name):
        with pipe_at(copy / name):
            assert quiet(["evolve", "--resume", copy, "--generations", "4", "--no-report"])[0] == 0
        assert not list(copy.rglob("*.part"))

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    @pytest.mark.usefixtures("at_once")
    def test_refused_when_it_is_evaluated(self, copy, name, capsys):
        with pipe_at(copy / name):
            message = refused(["evaluate", copy], capsys, code=4)
        assert message.startswith(f"{copy / name}: expected ")
        assert "a named pipe" in message

    @pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "summary.json"])
    @pytest.mark.usefixtures("at_once")
    def test_refused_in_a_report(self, copy, name, capsys):
        with pipe_at(copy / name):
            message = refused(["report", copy], capsys, code=4)
        assert message.startswith(f"{copy / name}: expected ")

    @pytest.mark.parametrize("name", ["model.safetensors", "predictions.safetensors"])
    @pytest.mark.usefixtures("at_once")
    def test_what_cannot_be_drawn_is_said_in_a_report(self, copy, name):
        with pipe_at(copy / name):
            assert quiet(["report", copy])[0] == 0
        assert "a named pipe, which is no regular file" in (copy / "report.html").read_text()

    @pytest.mark.usefixtures("at_once")
    def test_a_page_is_not_written_into_one(self, copy):
        with pipe_at(copy / "report.html.part"):
            assert quiet(["report", copy])[0] == 0

    @pytest.mark.usefixtures("at_once")
    def test_in_a_folder_of_images(self, tmp_path, capsys):
        digits = write_digits(tmp_path / "digits")
        with pipe_at(tmp_path / "digits" / "train-images-idx3-ubyte"):
            words = ["evolve", "--data", digits, *TINY, "--out", tmp_path / "run"]
            message = refused(words, capsys, code=3)
        assert message.endswith(
            "train-images-idx3-ubyte: expected a regular file, found a pipe, a device or something "
            "else."
        )


@pytest.mark.usefixtures("at_once")
class TestFlags:
    @pytest.mark.parametrize(
        ("flags", "start"),
        [
            (["--threads", "1000000"], "threads: needed an integer from 1 to "),
            (["--learning-rate", "1e300"], "learning_rate: needed a number of at most 3.778e+22"),
            (["--population", "1000000000000"], "population: needed about "),
            (["--width", "1000000"], "width: needed an integer from 1 to "),
            (["--blocks", "1", "1", "1", "1000000000"], "blocks: needed fewer, of a network that "),
            (["--shift", "1000000"], "shift: needed an integer from 0 to 8, the side of an image"),
            (["--strategy", "weights", "--images", "1000000000000"], "images: needed an integer "),
            (["--strategy", "weights", "--images", "0"], "images: needed an integer of at least 1"),
            (
                ["--strategy", "weights", "--sigma", "1e300"],
                "sigma: needed a number above 0 and at most 3.403e+38, got 1e+300.",
            ),
            (["--blur", "1e300"], "blur: needed a number above 0 and at most 3.403e+38"),
            (["--memory", "-5"], "memory: needed an integer of at least 1, got -5."),
            (["--workers", "1000000"], "workers: needed an integer from 1 to "),
            (
                ["--workers", "1", "--threads-per-worker", "1000000"],
                "threads_per_worker: needed an integer from 1 to ",
            ),
            (["--generations", str(10**30)], "generations: needed an integer of at most 2^64 - 1"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_out_of_range(self, flags, start, digits, capsys, tmp_path):
        out = tmp_path / "run"
        message = refused(["evolve", "--data", digits, *TINY, *flags, "--out", out], capsys)
        assert message.startswith(start)
        assert not out.exists()

    def test_of_another_strategy(self, digits, capsys, tmp_path):
        out = tmp_path / "run"
        words = ["evolve", "--data", digits, *TINY, "--strategy", "weights", "--blur", "0"]
        assert refused([*words, "--out", out], capsys) == (
            "blur: needed --strategy feedback or activations, which it belongs to, got 0.0 with "
            "--strategy weights."
        )
        assert not out.exists()


class TestRoom:
    @pytest.mark.parametrize("blocks", [(1, 1, 1, 1), (2, 2, 2, 2), (1, 3, 2, 4)])
    @pytest.mark.parametrize(("width", "classes"), [(1, 2), (8, 10), (5, 47)])
    def test_parameters_are_counted_as_they_are_built(self, blocks, width, classes):
        shape = {"blocks": blocks, "width": width, "classes": classes}
        built = sum(p.numel() for p in network.build(shape).parameters())
        assert network.count_parameters(blocks, width, classes) == built

    @pytest.mark.parametrize("free", [10**6, 10**8, 10**10, 10**13])
    def test_the_width_that_is_said_to_fit_does_and_the_next_does_not(self, monkeypatch, free):
        monkeypatch.setattr(room, "free_memory", lambda: free)
        with pytest.raises(ValueError, match="width: needed an integer from 1 to ") as caught:
            room.require_room_for_network((1, 1, 1, 1), 10**9, 10)
        most = int(caught.value.args[1].split()[5].replace(",", ""))
        room.require_room_for_network((1, 1, 1, 1), most, 10)
        with pytest.raises(ValueError, match="width: "):
            room.require_room_for_network((1, 1, 1, 1), most + 1, 10)

    def test_large_runs_that_fit_are_not_refused(self, monkeypatch):
        """Hundreds of billions of parameters, where there are as many bytes as they take."""
        monkeypatch.setattr(room, "free_memory", lambda: 10**14)
        room.require_room_for_network((3, 4, 6, 3), 10_000, 47)

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (MemoryError(), "memory: needed room for what was asked for, got less (no reason"),
            (
                RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't\n"),
                "memory: needed room for what was asked for, got less ([enforce fail",
            ),
            (RuntimeError("can't start new thread"), "threads: needed as many as the system"),
            (RuntimeError("another"), "None"),
        ],
    )
    def test_a_lack_that_is_met_later_is_one_line_too(self, error, said):
        assert str(shortage(error)).startswith(said)

    def test_and_the_program_says_it(self, digits, tmp_path, monkeypatch, capsys):
        def fail(*_, **__):
            raise MemoryError("Unable to allocate 9 TiB")

        monkeypatch.setattr(network, "initialise", fail)
        words = ["evolve", "--data", digits, *TINY, "--out", tmp_path / "run"]
        assert "got less (Unable to allocate 9 TiB)." in refused(words, capsys)


class Written(io.TextIOWrapper):
    """A file with an encoding, as standard output is one."""

    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict")

    def bytes(self):
        self.flush()
        return self.buffer.getvalue()


class TestNames:
    """Names of folders that are no UTF-8, and outputs that take no more than ASCII."""

    @pytest.fixture
    def odd(self, tmp_path):
        path = tmp_path / os.fsdecode(b"caf\xe9")
        try:
            path.mkdir()
        except OSError:
            pytest.skip("a file system that takes only UTF-8")
        path.rmdir()
        return path

    def run_in(self, out, digits, encoding):
        with contextlib.redirect_stdout(Written(encoding)) as said:
            code = main(["evolve", "--data", digits, *TINY, "--out", str(out)])
        return code, said.bytes()

    def test_a_folder_that_is_not_utf_8(self, odd, digits):
        code, said = self.run_in(odd, digits, "utf-8")
        assert code == 0
        assert b"run folder: " + os.fsencode(odd) + b"\n" in said  # it can be copied
        for command in ("evaluate", "report"):
            with contextlib.redirect_stdout(Written("utf-8")):
                assert main([command, str(odd)]) == 0
        assert "caf\\udce9" in (odd / "report.html").read_text()
        with contextlib.redirect_stdout(Written("utf-8")):
            assert main(["evolve", "--resume", str(odd), "--generations", "4", "--no-report"]) == 0
            shutil.copytree(odd, odd.with_name("b"))
            assert main(["report", str(odd), str(odd.with_name("b"))]) == 0

    def test_an_output_of_ascii(self, tmp_path, digits):
        code, said = self.run_in(tmp_path / "café", digits, "ascii")
        assert code == 0
        assert b"caf\\xe9" in said

    @pytest.mark.parametrize("words", [["--help"], ["evolve", "--help"], ["data", "list"]])
    def test_help_in_ascii(self, words):
        with contextlib.redirect_stdout(Written("ascii")) as said, contextlib.suppress(SystemExit):
            main(words)
        assert said.bytes().isascii()
        assert said.bytes()

    def test_an_error_names_the_bytes(self, odd):
        with contextlib.redirect_stderr(Written("utf-8")) as said:
            assert main(["evaluate", str(odd)]) == 4
        assert said.bytes().startswith(b"tinkering: " + os.fsencode(odd) + b"/config.json: ")


class TestLimits:
    """A limit that a run has passed is no limit, whether it had come to its end or not."""

    @pytest.fixture(params=["ended", "killed"])
    def stopped(self, copy, request):
        if request.param == "killed":
            for name in ("report.html", "predictions.safetensors", "summary.json"):
                (copy / name).unlink()
        return copy

    def test_generations(self, stopped, capsys):
        before = contents(stopped)
        words = ["evolve", "--resume", stopped, "--generations", "2"]
        assert refused(words, capsys) == (
            "generations: needed more than the 3 that the run has behind it, got 2. Say how far "
            "it shall go on, such as --generations 6."
        )
        assert contents(stopped) == before

    def test_seconds(self, stopped, capsys):
        message = refused(["evolve", "--resume", stopped, "--seconds", "0.0001"], capsys)
        assert message.startswith("seconds: needed more than the ")
        assert float(message.split()[5]) >= 0
        assert int(message.split()[-1].rstrip(".")) >= 1  # a limit that can be given

    def test_the_report_says_what_it_was_begun_with(self, copy):
        assert quiet(["evolve", "--resume", copy, "--generations", "5"])[0] == 0
        config = json.loads((copy / "config.json").read_text())
        assert config["generations"] == 5
        assert re.fullmatch(
            r"tinkering evolve --data idx:\S+ --width 2 --blocks 1 1 1 1 --strategy feedback "
            r"--population 8 --sigma 0\.1 --fitness cross-entropy --shift 2 --generations 3 "
            r"--measure-every 0\.0 --validation 0 --seed 1 --threads 1 --dtype \w+ "
            r"--learning-rate 0\.004 --decay 1000\.0 --averaging 0\.99 --shaping raw --blur 0\.0 "
            r"--readings 64 --cells 512 --images 128 --statistics renewed",
            config["command"],
        )
        page = (copy / "report.html").read_text()
        began = page[page.index("It was begun with a limit of its own") :]
        assert "--generations 3<" in began
        assert "--generations 5<" in page[: -len(began)]


class TestNotTogether:
    def test_a_checkpoint_of_another_network(self, copy, capsys):
        edit(copy, width=3)
        before = contents(copy)
        words = ["evolve", "--resume", copy, "--generations", "9"]
        newest = copy / "checkpoints" / "00000003.safetensors"
        assert main(list(map(str, words))) == 4
        message = capsys.readouterr().err
        assert message == (
            f"tinkering: {newest}: expected the parameters that config.json leads to: conv1.weight "
            "of shape [3, 1, 3, 3], found one of shape [2, 1, 3, 3]. The file and config.json do "
            "not belong together.\n"
        )
        assert contents(copy) == before

    @pytest.mark.parametrize(
        ("shape", "said"),
        [
            ({"width": 3}, "conv1.weight of shape [3, 1, 3, 3], found one of shape [2, 1, 3, 3]."),
            ({"classes": 4}, "linear.weight of shape [4, 16], found one of shape [3, 16]."),
            (
                {"blocks": [1, 1, 2, 1]},
                "layer3.1.conv1.weight of shape [8, 8, 3, 3], found none of that name.",
            ),
        ],
    )
    def test_a_model_of_another_network(self, copy, shape, said, capsys):
        config = json.loads((copy / "config.json").read_text())
        edit(copy, network={**config["network"], **shape})
        assert refused(["evaluate", copy], capsys, code=4) == (
            f"{copy}/model.safetensors: expected the parameters that config.json describes: {said} "
            "The file and config.json do not belong together."
        )

    def test_a_model_with_more_in_it(self, copy, capsys):
        model = copy / "model.safetensors"
        save_file({**load_file(model), "more": torch.zeros(1)}, model)
        message = refused(["evaluate", copy], capsys, code=4)
        assert "describes: none called 'more', found it." in message


def test_evaluate_notes_another_version_as_resume_does(copy):
    config = json.loads((copy / "config.json").read_text())
    config["versions"]["torch"] = "1.0"
    config["processor"]["machine"] = "abacus"
    edit(copy, **config)
    first = quiet(["evaluate", copy])
    assert first[0] == 0
    notes = [line for line in first[1].splitlines() if line.startswith("note: ")]
    assert [note[:21] for note in notes] == ["note: torch was 1.0 a", "note: machine was aba"]
    resumed = quiet(["evolve", "--resume", copy, "--generations", "4", "--no-report"])[1]
    assert resumed.splitlines()[:2] == notes
