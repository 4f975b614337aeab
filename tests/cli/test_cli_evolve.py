"""``tinkering evolve``, from the words to the exit code and what is left on disk."""

import io
import json
import re
import shlex
import time

import matplotlib.image
import pytest
import torch
from commands import FILES, TINY, contents, measured, plain_module, quiet, refused
from rich.console import Console

from tinkering.cli import main
from tinkering.cli.evolve import Evolve
from tinkering.cli.flag import facts, values, with_values
from tinkering.cli.flags import Flags
from tinkering.data import load
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.tasks.classification import Classification

pytestmark = pytest.mark.usefixtures("same_threads")
SHORT = ["--generations", "30", "--averaging", "0.6"]
"""Enough for those that learn fast."""
FEW = ["--generations", "8", "--population", "64"]
"""A member is rebuilt from its chain in every generation: later ones take longer."""


class TestEvolve:
    def test_leaves_the_documented_files(self, run):
        assert sorted(path.name for path in run[0].iterdir()) == FILES
        height, width = matplotlib.image.imread(run[0] / "curves.png").shape[:2]
        assert min(height, width) > 100

    def test_metrics_have_a_line_a_generation(self, run):
        lines = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
        keys = {"generation", "evaluations", "seconds", "fitness_mean", "fitness_best"}
        keys |= {"fitness_low", "fitness_high"}
        assert [set(line) for line in lines] == [keys | {"test_accuracy", "test_loss"}] * 3
        assert [line["generation"] for line in lines] == [1, 2, 3]
        assert [line["evaluations"] for line in lines] == [192, 320, 448]
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
        assert (summary["evaluations"], summary["generations"]) == (
            3 * 128 + 64,  # images; and members of the one layer that was tried, in one part
            3,
        )
        assert summary["outcome"] == "generations"
        last = json.loads((run[0] / "metrics.jsonl").read_text().splitlines()[-1])
        assert {k: last[k] for k in ("test_accuracy", "test_loss")} == {
            k: summary[k] for k in ("test_accuracy", "test_loss")
        }
        assert summary["seconds"] >= last["seconds"] > 0

    def test_config_repeats_the_run(self, run, digits, tmp_path):
        config = json.loads((run[0] / "config.json").read_text())
        fields = {*values(Evolve())} - {"resume", "debug"}
        assert set(config) >= fields | {"network", "pixels", "versions"}
        assert config["network"] == {"blocks": [1, 1, 1, 1], "width": 2, "classes": 3}
        dataset = load(digits)
        assert config["pixels"] == {"mean": dataset.mean, "std": dataset.std}
        fields -= {"tensorboard", "antithetic", "report"}  # flags without a value
        given = {name: config[name] for name in fields if config[name] is not None}
        words = ["evolve"]
        for name, value in {**given, "out": tmp_path}.items():
            words += [f"--{name.replace('_', '-')}"]
            words += value if isinstance(value, list) else [value]
        assert quiet(words)[0] == 0
        ours, theirs = (path / "model.safetensors" for path in (run[0], tmp_path))
        assert ours.read_bytes() == theirs.read_bytes()

    def test_a_seed_gives_the_same_bytes_and_another_gives_others(self, run, tmp_path, digits):
        models = [(run[0] / "model.safetensors").read_bytes()]
        for name, seed in (("a", 1), ("b", 2)):
            words = ["evolve", "--data", digits, *TINY, "--seed", seed, "--out", tmp_path / name]
            assert quiet(words)[0] == 0
            models.append((tmp_path / name / "model.safetensors").read_bytes())
        assert models[0] == models[1] != models[2]

    @pytest.mark.parametrize("strategy", ["activations", "weights"])
    def test_the_seed_decides_the_first_weights_the_noise_and_the_images(
        self, tmp_path, digits, monkeypatch, strategy
    ):
        seen = {}

        class Spy(Classification):
            def __init__(self, model, dataset, seed, **settings):
                seen["images"] = seed
                seen["weights"] = model.linear.weight.tolist()
                super().__init__(model, dataset, seed=seed, **settings)

            def evaluate(self, population, generation):
                seen["noise"] = population.stream.seed
                return super().evaluate(population, generation)

        monkeypatch.setattr("tinkering.cli.recipes.Classification", Spy)
        words = ["evolve", "--data", digits, *TINY, "--strategy", strategy]
        quiet([*words, "--seed", "9", "--out", tmp_path])
        torch.manual_seed(9)
        model = SimpleResNet(BasicBlock, [1, 1, 1, 1], num_classes=3, width=2)
        assert seen == {"images": 9, "noise": 9, "weights": model.linear.weight.tolist()}

    @pytest.mark.parametrize(
        "flags",
        [
            ["--strategy", "activations", *SHORT],
            ["--strategy", "activations", "--fitness", "accuracy", *SHORT],
            ["--strategy", "weights", "--sigma", "0.02"],
            ["--strategy", "weights", "--antithetic", "--group", "2", "--sigma", "0.02"],
            ["--strategy", "weights", "--group", "128", "--images", "16", *SHORT],  # one batch
            ["--strategy", "weights", "--statistics", "renewed", "--learning-rate", "0.05"],
            ["--strategy", "genetic", "--sigma", "0.03", "--parents", "8", *FEW],
        ],
        ids=" ".join,
    )
    def test_it_does_evolve(self, tmp_path, digits, flags):
        """Three classes, each with a bright row of its own: far above a third is learnt."""
        words = ["evolve", "--data", digits, *TINY, "--width", "2", "--population", "128"]
        # In one dtype, whichever this machine is faster at: so few images are a close call.
        words += ["--generations", "60"]
        if "genetic" not in flags:
            words += ["--learning-rate", "0.02", "--averaging", "0.8"]
        words += ["--shift", "0", "--dtype", "float32", *flags]
        assert quiet([*words, "--out", tmp_path])[0] == 0
        assert json.loads((tmp_path / "summary.json").read_text())["test_accuracy"] > 0.6

    @pytest.mark.parametrize("strategy", ["activations", "weights"])
    def test_a_fitness_may_have_defaults_of_its_own(self, strategy, digits, tmp_path):
        seen = {}
        for fitness in ("cross-entropy", "accuracy"):
            words = ["evolve", "--data", digits, *TINY, "--strategy", strategy]
            words += ["--fitness", fitness, "--decay", "7", "--out", tmp_path / fitness]
            assert quiet(words)[0] == 0
            seen[fitness] = json.loads((tmp_path / fitness / "config.json").read_text())
        for name, known in facts(Flags).items():
            if name in ("population", "decay"):
                assert {seen[fitness][name] for fitness in seen} == {8 if name != "decay" else 7}
            elif strategy in known.defaults:
                for fitness, config in seen.items():
                    assert config[name] == known.default(strategy, fitness, 2, config)
            elif known.defaults:  # of another strategy
                assert seen["accuracy"][name] in (None, False)

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["--parents", "9"], "parents: needed an integer from 1 to population, 8, got 9."),
            (
                ["--parents", "2", "--elites", "3"],
                "elites: needed an integer from 0 to 2, because ",
            ),
            (["--parents", "2", "--images", "0"], "images: needed an integer of at least 1, got 0"),
            (
                ["--parents", "2", "--statistics", "renewed"],
                'statistics: needed "fixed" for members that share no centre, got "renewed".',
            ),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_what_a_genetic_algorithm_cannot_have(self, tmp_path, digits, capsys, flags, said):
        words = ["evolve", "--data", digits, *TINY, "--strategy", "genetic", *flags]
        assert refused([*words, "--out", tmp_path], capsys).startswith(said)

    def test_relative_shaping_is_for_fitness_that_is_not_negative(self, digits, tmp_path, capsys):
        words = ["evolve", "--data", digits, *TINY, "--shaping", "relative", "--out", tmp_path]
        assert refused(words, capsys) == (
            "shaping: needed raw, or --fitness accuracy (relative is for a fitness of at least 0), "
            "got relative."
        )

    def test_validation_images_come_out_of_the_training_images(self, tmp_path, digits):
        words = ["evolve", "--data", digits, *TINY, "--validation", "12", "--out", tmp_path]
        code, printed = quiet(words)
        assert code == 0
        assert printed.splitlines()[0].endswith("28 training images, 12 held out, 3 classes")

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
                r"[\d,]+ passes/s  \d+:\d\d left",
                line,
            ), line
        summary = json.loads((out / "summary.json").read_text())
        assert lines[-4].startswith(
            "Ended by --generations after 3 generations, 448 forward passes, "
        )
        assert lines[-4].endswith(
            f"test accuracy {100 * summary['test_accuracy']:.2f} %, "
            f"test loss {summary['test_loss']:.4f}"
        )
        assert lines[-3] == f"run folder: {out}"
        assert lines[-2] == f"report: {out / 'report.html'}"
        assert lines[-1].startswith("next: ")
        assert lines[-1].endswith(f"tinkering evaluate {shlex.quote(str(out))}")

    def test_shows_a_bar_in_a_terminal(self, tmp_path, digits):
        file = io.StringIO()
        console = Console(file=file, force_terminal=True, width=100)
        command = Evolve(data=digits, width=2, population=8, generations=3)
        command = with_values(command, {"out": tmp_path, "report": False})
        assert command.run(console) == 0
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
        assert quiet(["evolve", "--data", digits, *TINY, "--report", "--seed", "7"])[0] == 0
        (path,) = (tmp_path / "runs").iterdir()
        assert re.fullmatch(r"[\w.-]+-w2-s7-\d{8}-\d{6}", path.name)
        assert sorted(entry.name for entry in path.iterdir()) == FILES


class TestMistakes:
    def test_a_run_folder_that_is_there_is_left_alone(self, run, digits, capsys):
        before = contents(run[0])
        message = refused(["evolve", "--data", digits, *TINY, "--out", run[0]], capsys, code=4)
        assert message == (
            f"{run[0]}: expected a new or empty folder, found one that holds checkpoints, "
            "config.json, confusion.png, .... Nothing was overwritten; choose another "
            "folder with --out."
        )
        assert contents(run[0]) == before

    @pytest.mark.parametrize(
        ("flags", "start"),
        [
            (
                ["--strategy", "activations", "--population", "7"],
                "population: needed a multiple of the group of 8, got 7.",
            ),
            (
                ["--strategy", "activations", "--group", "1"],
                "group: needed an integer of at least 2, got 1.",
            ),
            (["--validation", "40"], "validation: needed an integer from 0 to 39, got 40."),
            (
                ["--strategy", "weights", "--antithetic"],
                "group: needed 2, because pairs are antithetic, got 8.",
            ),
            (["--sigma", "0"], "sigma: needed a finite number above 0, got 0.0."),
            (["--learning-rate", "nan"], "learning_rate: needed a finite number above 0"),
            (["--averaging", "1"], "averaging: needed a number from 0 to below 1, got 1.0."),
            (
                ["--strategy", "weights", "--rank", "0"],
                "rank: needed an integer of at least 1, got 0.",
            ),
            (["--width", "0"], "width: needed an integer of at least 1, got 0."),
            (["--blocks", "1", "1", "0", "1"], "blocks: needed four numbers of at least 1"),
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
