"""The command line, from the words to the exit code and what is left on disk."""

import ast
import contextlib
import dataclasses
import inspect
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file

from tinkering.cli import main
from tinkering.cli.data import Get, Show
from tinkering.cli.evaluate import Evaluate
from tinkering.cli.evolve import Evolve
from tinkering.data import load
from tinkering.evaluation.classification import Classification
from tinkering.models import BasicBlock, SimpleResNet

FILES = ["config.json", "curves.png", "metrics.jsonl", "model.safetensors", "summary.json"]
TINY = ["--width", "2", "--population", "8", "--generations", "3", "--threads", "1"]


def write_digits(folder, classes=3, train=40, test=30, seed=0, brightness=100):
    """A folder in MNIST's naming: a bright row for each class, in noise."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for half, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % classes).astype(np.uint8)
        images = rng.integers(0, brightness, (count, 8, 8), dtype=np.uint8)
        images[np.arange(count), 2 * labels] += 100
        header = struct.pack(">4I", 2051, count, 8, 8)
        (folder / f"{half}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">2I", 2049, count)
        (folder / f"{half}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return f"idx:{folder}"


@pytest.fixture(scope="module", autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


def quiet(words):
    """Exit code and standard output of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main([str(word) for word in words])
    return code, out.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """The folder of a finished run, and what it printed. Tests must not change it."""
    out = tmp_path_factory.mktemp("runs") / "a run"
    words = ["evolve", "--data", digits, *TINY, "--seed", "1", "--measure-every", "0"]
    code, printed = quiet([*words, "--out", out])
    assert code == 0
    return out, printed


def plain_module(run):
    """The saved network as a user would load it: nothing of ours but the architecture."""
    settings = json.loads((run / "config.json").read_text())["network"]
    model = SimpleResNet(
        BasicBlock, settings["blocks"], settings["classes"], width=settings["width"]
    )
    model.load_state_dict(load_file(run / "model.safetensors"), strict=True)
    return model.eval()


@torch.no_grad()
def measured(model, pixels, labels, mean, std):
    logits = model(((pixels / 255 - mean) / std).float().unsqueeze(1))
    loss = F.cross_entropy(logits.double(), labels).item()
    return (logits.argmax(1) == labels).double().mean().item(), loss


class TestEvolve:
    def test_leaves_the_documented_files(self, run):
        assert sorted(path.name for path in run[0].iterdir()) == FILES
        height, width = matplotlib.image.imread(run[0] / "curves.png").shape[:2]
        assert min(height, width) > 100

    def test_metrics_have_a_line_a_generation(self, run):
        lines = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
        keys = {"generation", "evaluations", "seconds", "fitness_mean", "fitness_best"}
        assert [set(line) for line in lines] == [keys | {"test_accuracy", "test_loss"}] * 3
        assert [line["generation"] for line in lines] == [1, 2, 3]
        assert [line["evaluations"] for line in lines] == [8, 16, 24]
        assert sorted(line["seconds"] for line in lines) == [line["seconds"] for line in lines]
        assert all(line["fitness_mean"] <= line["fitness_best"] <= 0 for line in lines)

    def test_held_out_figures_stand_only_where_they_were_measured(self, tmp_path, digits):
        assert quiet(["evolve", "--data", digits, *TINY, "--out", tmp_path])[0] == 0
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert ["test_accuracy" in line for line in lines] == [False, False, True]

    def test_summary_and_last_line_agree(self, run):
        summary = json.loads((run[0] / "summary.json").read_text())
        assert set(summary) >= {
            "test_accuracy",
            "test_loss",
            "evaluations",
            "seconds",
            "generations",
            "outcome",
        }
        assert (summary["evaluations"], summary["generations"]) == (24, 3)
        assert summary["outcome"] == "generations"
        last = json.loads((run[0] / "metrics.jsonl").read_text().splitlines()[-1])
        assert {k: last[k] for k in ("test_accuracy", "test_loss")} == {
            k: summary[k] for k in ("test_accuracy", "test_loss")
        }
        assert summary["seconds"] >= last["seconds"] > 0

    def test_config_repeats_the_run(self, run, digits, tmp_path):
        config = json.loads((run[0] / "config.json").read_text())
        fields = {field.name for field in dataclasses.fields(Evolve)}
        assert set(config) >= fields | {"network", "pixels", "versions"}
        assert config["network"] == {"blocks": [1, 1, 1, 1], "width": 2, "classes": 3}
        dataset = load(digits)
        assert config["pixels"] == {"mean": dataset.mean, "std": dataset.std}
        given = {name: config[name] for name in fields if config[name] is not None}
        words = ["evolve"]
        for name, value in {**given, "out": tmp_path}.items():
            words += [f"--{name.replace('_', '-')}"]
            words += value if isinstance(value, list) else [value]
        assert quiet(words)[0] == 0
        ours, theirs = (path / "model.safetensors" for path in (run[0], tmp_path))
        assert ours.read_bytes() == theirs.read_bytes()

    def test_a_seed_gives_the_same_bytes_and_another_gives_others(self, tmp_path, digits):
        models = []
        for name, seed in (("a", 4), ("b", 4), ("c", 5)):
            words = ["evolve", "--data", digits, *TINY, "--seed", seed, "--out", tmp_path / name]
            assert quiet(words)[0] == 0
            models.append((tmp_path / name / "model.safetensors").read_bytes())
        assert models[0] == models[1] != models[2]

    def test_the_seed_decides_the_first_weights_the_noise_and_the_images(
        self, tmp_path, digits, monkeypatch
    ):
        seen = {}

        class Spy(Classification):
            def __init__(self, model, dataset, seed, **settings):
                seen["images"] = seed
                seen["weights"] = model.linear.weight.tolist()
                super().__init__(model, dataset, seed, **settings)

            def fitness(self, population, generation):
                seen["noise"] = population.stream.seed
                return super().fitness(population, generation)

        monkeypatch.setattr("tinkering.cli.evolve.Classification", Spy)
        quiet(["evolve", "--data", digits, *TINY, "--seed", "9", "--out", tmp_path])
        torch.manual_seed(9)
        model = SimpleResNet(BasicBlock, [1, 1, 1, 1], num_classes=3, width=2)
        assert seen == {"images": 9, "noise": 9, "weights": model.linear.weight.tolist()}

    def test_it_does_evolve(self, tmp_path, digits):
        """Three classes, each with a bright row of its own: far above a third is learnt."""
        words = ["evolve", "--data", digits, *TINY, "--width", "2", "--population", "128"]
        words += ["--generations", "60", "--learning-rate", "0.05", "--averaging", "0.8"]
        assert quiet([*words, "--out", tmp_path])[0] == 0
        assert json.loads((tmp_path / "summary.json").read_text())["test_accuracy"] > 0.6

    def test_the_saved_network_is_a_plain_module(self, run, digits):
        """No name of this package's evaluation is needed to get the summary's figures."""
        test = load(digits).test
        pixels = json.loads((run[0] / "config.json").read_text())["pixels"]
        accuracy, loss = measured(plain_module(run[0]), test.pixels, test.labels, **pixels)
        summary = json.loads((run[0] / "summary.json").read_text())
        assert summary["test_accuracy"] == pytest.approx(accuracy)
        assert summary["test_loss"] == pytest.approx(loss, rel=1e-4)

    def test_prints_plain_lines_where_there_is_no_terminal(self, run, digits):
        out, printed = run
        assert "\x1b" not in printed
        assert "\r" not in printed
        lines = printed.splitlines()
        assert lines[0] == f"{digits}: 40 training images, 30 held out, 3 classes"
        progress = [line for line in lines if line.startswith("gen ")]
        assert len(progress) == 3
        for number, line in enumerate(progress, 1):
            assert re.fullmatch(
                rf"gen {number}  fitness -\d+\.\d{{3}}  accuracy \d+\.\d %  "
                r"[\d,]+ img/s  \d+:\d\d left",
                line,
            ), line
        summary = json.loads((out / "summary.json").read_text())
        assert lines[-3].startswith("Ended by --generations after 3 generations, 24 model-images, ")
        assert lines[-3].endswith(
            f"test accuracy {100 * summary['test_accuracy']:.2f} %, "
            f"test loss {summary['test_loss']:.4f}"
        )
        assert lines[-2] == f"run folder: {out}"
        assert lines[-1].startswith("next: ")
        assert lines[-1].endswith(f"tinkering evaluate {out}")

    def test_shows_a_bar_in_a_terminal(self, tmp_path, digits):
        file = io.StringIO()
        console = Console(file=file, force_terminal=True, width=100)
        settings = Evolve(data=digits, width=2, population=8, generations=3, out=tmp_path)
        assert settings.run(console) == 0
        assert "\x1b" in file.getvalue()
        assert "gen 3" in file.getvalue()
        assert "accuracy" in file.getvalue()
        # The bar instead of the lines, not above them.
        visible = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]|\r", "\n", file.getvalue())
        assert not [line for line in visible.splitlines() if line.startswith("gen ")]

    def test_a_time_limit(self, tmp_path, digits):
        words = ["evolve", "--data", digits, *TINY, "--generations", "100000"]
        start = time.monotonic()
        code, printed = quiet([*words, "--seconds", "0.5", "--out", tmp_path])
        assert time.monotonic() - start < 10
        assert code == 0
        assert "Ended by --seconds" in printed
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert summary["outcome"] == "seconds"
        assert summary["seconds"] >= 0.5

    def test_a_run_of_no_generations_measures_the_start(self, tmp_path, digits):
        words = ["evolve", "--data", digits, *TINY, "--generations", "0", "--out", tmp_path]
        assert quiet(words)[0] == 0
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert summary["generations"] == summary["evaluations"] == 0
        assert 0 <= summary["test_accuracy"] <= 1
        assert (tmp_path / "model.safetensors").exists()

    def test_without_out_it_makes_a_folder_in_runs(self, tmp_path, digits, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert quiet(["evolve", "--data", digits, *TINY, "--seed", "7"])[0] == 0
        (path,) = (tmp_path / "runs").iterdir()
        assert re.fullmatch(r"[\w.-]+-w2-s7-\d{8}-\d{6}", path.name)
        assert sorted(entry.name for entry in path.iterdir()) == FILES


class TestEvaluate:
    def test_prints_the_figures_of_the_summary(self, run, digits):
        summary = json.loads((run[0] / "summary.json").read_text())
        code, printed = quiet(["evaluate", run[0]])
        assert code == 0
        assert printed == (
            f"{digits}: test accuracy {100 * summary['test_accuracy']:.2f} %, "
            f"test loss {summary['test_loss']:.4f} (30 images)\n"
        )

    def test_on_another_data_set_with_the_runs_normalisation(self, run, tmp_path):
        other = write_digits(tmp_path / "other", classes=2, test=50, seed=1, brightness=30)
        test = load(other).test
        pixels = json.loads((run[0] / "config.json").read_text())["pixels"]
        assert abs(test.mean - pixels["mean"]) > 0.05
        accuracy, loss = measured(plain_module(run[0]), test.pixels, test.labels, **pixels)
        code, printed = quiet(["evaluate", run[0], "--data", other])
        assert code == 0
        assert printed == (
            f"{other}: test accuracy {100 * accuracy:.2f} %, test loss {loss:.4f} (50 images)\n"
        )

    def test_changes_nothing(self, run):
        before = {path.name: path.read_bytes() for path in run[0].iterdir()}
        quiet(["evaluate", run[0]])
        assert {path.name: path.read_bytes() for path in run[0].iterdir()} == before


def refused(words, capsys):
    """The one paragraph on standard error of a command that ends with exit code 2."""
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("tinkering: ")
    assert captured.err.count("\n") == 1
    assert captured.err[-2:] in (".\n", "?\n")
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert "\x1b" not in captured.err
    return captured.err[len("tinkering: ") : -1]


class TestMistakes:
    def test_a_run_folder_that_is_there_is_left_alone(self, run, digits, capsys):
        before = {path.name: path.read_bytes() for path in run[0].iterdir()}
        message = refused(["evolve", "--data", digits, *TINY, "--out", run[0]], capsys)
        assert message == (
            f"{run[0]}: expected a new or empty folder, found one that holds config.json, "
            "curves.png, metrics.jsonl, .... Nothing was overwritten; choose another folder with "
            "--out."
        )
        assert {path.name: path.read_bytes() for path in run[0].iterdir()} == before

    @pytest.mark.parametrize(
        "command", [["evolve", "--data"], ["data", "get"], ["data", "show"]], ids=" ".join
    )
    def test_an_unknown_data_set(self, command, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        message = refused([*command, "mnist5"], capsys)
        assert message.startswith("name: needed one of mnist5k, emnist-byclass, ")
        assert message.endswith("got 'mnist5'. Did you mean mnist5k?")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("flags", "start"),
        [
            (["--population", "7"], "population: needed an even number of members"),
            (["--sigma", "0"], "sigma: needed a finite number above 0, got 0.0."),
            (["--learning-rate", "nan"], "learning_rate: needed a finite number above 0"),
            (["--averaging", "1"], "averaging: needed a number from 0 to below 1, got 1.0."),
            (["--rank", "0"], "rank: needed an integer of at least 1, got 0."),
            (["--width", "0"], "width: needed an integer of at least 1, got 0."),
            (["--blocks", "1", "1", "0", "1"], "num_blocks_per_stage: needed four numbers"),
            (["--seconds", "-1"], "seconds: needed a finite number of at least 0, got -1.0."),
            (["--generations", "-1"], "generations: needed a finite number of at least 0, got -1."),
            (["--threads", "0"], "threads: needed an integer of at least 1, got 0."),
            (["--seed", "-1"], "seed: needed an integer from 0 to 2^64 - 1, got -1."),
            (["--seed", str(2**64)], "seed: needed an integer from 0 to 2^64 - 1, got "),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_a_flag_out_of_range_leaves_no_folder(self, flags, start, digits, capsys, tmp_path):
        out = tmp_path / "run"
        message = refused(["evolve", "--data", digits, *TINY, *flags, "--out", out], capsys)
        assert message.startswith(start)
        assert not out.exists()

    def test_a_flag_that_does_not_exist(self, capsys):
        with pytest.raises(SystemExit) as caught:
            main(["evolve", "--wdith", "2"])
        assert caught.value.code == 2
        assert "--wdith" in capsys.readouterr().err

    def damage(self, run, tmp_path, change):
        path = tmp_path / "run"
        shutil.copytree(run[0], path)
        change(path)
        return path

    @staticmethod
    def edit(path, **changes):
        config = {**json.loads((path / "config.json").read_text()), **changes}
        kept = {name: value for name, value in config.items() if value is not ...}
        (path / "config.json").write_text(json.dumps(kept))

    @pytest.mark.parametrize(
        ("change", "file", "expected"),
        [
            (lambda p: (p / "config.json").unlink(), "config.json", "a file of a run folder"),
            (lambda p: (p / "config.json").write_text("{"), "config.json", "a JSON object"),
            (
                lambda p: (p / "config.json").write_text("{}"),
                "config.json",
                "the settings of a run",
            ),
            (lambda p: TestMistakes.edit(p, network=...), "config.json", "the settings of a run"),
            (lambda p: TestMistakes.edit(p, network=[1]), "config.json", "the settings of a run"),
            (lambda p: TestMistakes.edit(p, data=...), "config.json", "the settings of a run"),
            (lambda p: TestMistakes.edit(p, pixels=...), "config.json", "the settings of a run"),
            (lambda p: TestMistakes.edit(p, pixels={}), "config.json", "the settings of a run"),
            (
                lambda p: (p / "model.safetensors").unlink(),
                "model.safetensors",
                "a saved model (safetensors)",
            ),
            (
                lambda p: (p / "model.safetensors").write_bytes(b"x" * 50),
                "model.safetensors",
                "a saved model (safetensors)",
            ),
            (
                lambda p: TestMistakes.edit(
                    p, network={"blocks": [1, 1, 1, 1], "width": 3, "classes": 3}
                ),
                "model.safetensors",
                "the parameters that config.json describes",
            ),
        ],
    )
    def test_a_damaged_run_folder(self, run, tmp_path, change, file, expected, capsys):
        path = self.damage(run, tmp_path, change)
        assert main(["evaluate", str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"tinkering: {path / file}: expected {expected}")
        assert "Traceback" not in captured.err

    def test_a_folder_that_is_not_there(self, tmp_path, capsys):
        message = refused(["evaluate", tmp_path / "none"], capsys)
        assert message == (
            f"{tmp_path}/none/config.json: expected a file of a run folder, found No such file or "
            "directory. Is this a run folder?"
        )

    def test_more_classes_than_the_network_has(self, run, tmp_path, capsys):
        other = write_digits(tmp_path / "other", classes=4)
        message = refused(["evaluate", run[0], "--data", other], capsys)
        assert message == (
            f"data: needed a data set of at most 3 classes, as the network has, got {other} with 4."
        )


class TestData:
    @pytest.mark.parametrize("columns", ["30", "80", "300"])
    def test_list(self, columns, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["data", "list"]) == 0
        printed = capsys.readouterr().out
        names = [line.split()[0] for line in printed.splitlines()]
        assert names[:2] == ["name", "mnist5k"]
        assert "idx:FOLDER" in printed.splitlines()[-1]
        assert len([name for name in names if name.startswith("emnist-")]) == 6
        row = next(line for line in printed.splitlines() if line.startswith("mnist5k")).split()
        assert row[1:4] == ["10", "4,000", "1,000"]
        assert Path(row[4]).is_dir()
        assert "\x1b" not in printed

    def test_get_the_embedded_digits(self, capsys):
        assert main(["data", "get", "mnist5k"]) == 0
        path = Path(capsys.readouterr().out.strip())
        assert path.is_dir()
        assert (path / "README.md").exists()

    def test_get_a_folder(self, digits, capsys):
        assert main(["data", "get", digits]) == 0
        assert capsys.readouterr().out == digits.removeprefix("idx:") + "\n"

    @pytest.mark.parametrize("half", ["train", "test"])
    def test_show(self, tmp_path, capsys, half):
        out = tmp_path / "grid.png"
        words = ["data", "show", "mnist5k", "--out", str(out), "--half", half, "--count", "30"]
        assert main(words) == 0
        assert capsys.readouterr().out == f"{out}\n"
        pixels = matplotlib.image.imread(out)
        assert min(pixels.shape[:2]) >= 3 * 28
        assert pixels.std() > 0.05

    def test_show_refuses_another_half(self, tmp_path, capsys):
        words = ["data", "show", "--half", "both", "--out", tmp_path / "a.png"]
        assert refused(words, capsys).startswith("half: needed ")
        assert list(tmp_path.iterdir()) == []


def documented(command):
    """The fields of a command and the text under each, from its source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(command))).body
    texts = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            texts[field.target.id] = " ".join(ast.literal_eval(text.value).split())
    return texts


class TestHelp:
    @pytest.mark.parametrize(
        ("words", "command"),
        [
            (["evolve"], Evolve),
            (["evaluate"], Evaluate),
            (["data", "get"], Get),
            (["data", "show"], Show),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_lists_every_flag_with_its_text(self, words, command, capsys):
        with pytest.raises(SystemExit) as caught:
            main([*words, "--help"])
        assert caught.value.code == 0
        printed = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
        texts = documented(command)
        for field in dataclasses.fields(command):
            assert len(texts[field.name]) > 10
            assert texts[field.name] in printed
            if "Positional" not in str(field.type):
                assert f"--{field.name.replace('_', '-')} " in printed
        assert " ".join(inspect.getdoc(command).split()) in printed

    @pytest.mark.parametrize(
        ("words", "commands"),
        [([], ["evolve", "evaluate", "data"]), (["data"], ["list", "get", "show"])],
        ids=["tinkering", "data"],
    )
    def test_lists_the_commands(self, words, commands, capsys):
        with pytest.raises(SystemExit) as caught:
            main([*words, "--help"])
        assert caught.value.code == 0
        printed = capsys.readouterr().out
        for command in commands:
            assert re.search(rf"^[│•\s]+{command}\s+[A-Z]\w+", printed, re.MULTILINE), command


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


class TestProcess:
    def test_the_embedded_digits_from_end_to_end(self, tmp_path):
        process = start("evolve", *TINY, "--out", "run", cwd=tmp_path)
        printed, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
        assert printed.startswith("mnist5k: 4,000 training images, 1,000 held out, 10 classes\n")
        assert "\x1b" not in printed
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES
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
        words = ["evolve", "--data", digits, *TINY, "--generations", "1000000", "--out", out]
        process = start(*words)
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
