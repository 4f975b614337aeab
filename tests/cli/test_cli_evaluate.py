"""``tinkering evaluate``: a run folder, whole or damaged, on its own data or on others."""

import json
import shutil

import pytest
from commands import contents, measured, plain_module, quiet, refused, write_digits
from safetensors.torch import load_file, save_file

from tinkering.cli import main
from tinkering.data import load

pytestmark = pytest.mark.usefixtures("same_threads")


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
        before = contents(run[0])
        quiet(["evaluate", run[0]])
        assert contents(run[0]) == before


class TestMistakes:
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
            (
                lambda p: TestMistakes.edit(
                    p, network={"blocks": [1, 1, 1, 1], "width": 200_000, "classes": 3}
                ),
                "model.safetensors",
                "the parameters that config.json describes",
            ),
            (
                lambda p: TestMistakes.edit(
                    p, network={"blocks": [1, -(10**9), 1, 10**9], "width": 2, "classes": 3}
                ),
                "model.safetensors",
                "the parameters that config.json describes",
            ),
            (
                lambda p: TestMistakes.edit(
                    p, network={"blocks": [1, 1, 1, 1], "width": -2, "classes": 3}
                ),
                "config.json",
                "the settings of a run",
            ),
            (
                lambda p: save_file(
                    {n: v.double() for n, v in load_file(p / "model.safetensors").items()},
                    p / "model.safetensors",
                ),
                "model.safetensors",
                "conv1.weight in torch.float32",
            ),
        ],
    )
    def test_a_damaged_run_folder(self, run, tmp_path, change, file, expected, capsys):
        path = self.damage(run, tmp_path, change)
        assert main(["evaluate", str(path)]) == 4
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"tinkering: {path / file}: expected {expected}")
        assert "Traceback" not in captured.err

    def test_a_folder_that_is_not_there(self, tmp_path, capsys):
        message = refused(["evaluate", tmp_path / "none"], capsys, code=4)
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
