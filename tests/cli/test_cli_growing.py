"""``tinkering evolve --grow-from``: a network that is widened while it evolves."""

import json
import shutil

import pytest
import torch
from commands import TINY, measured, plain_module, quiet, refused
from safetensors.torch import load_file
from test_cli_resume import evolved, newest, require_same_end, resumed

from tinkering.cli import network
from tinkering.cli.growing import width
from tinkering.data import load

pytestmark = pytest.mark.usefixtures("same_threads")
GROW = ["--width", "4", "--grow-from", "1", "--grow-every", "2", "--generations", "6"]
FLAGS = {
    "feedback": ["--images", "8", "--cells", "64"],
    "activations": ["--strategy", "activations"],
    "weights": ["--strategy", "weights"],
}


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").open()]


def widths_of(out):
    return {
        path.name: len(load_file(path)["state.state.params.conv1.weight"])
        for path in sorted((out / "checkpoints").glob("*.safetensors"))
    }


@pytest.fixture(scope="module")
def grown(tmp_path_factory, digits):
    """A run of each strategy, in one go, with all of its checkpoints."""
    found = {}
    for name, flags in FLAGS.items():
        found[name] = tmp_path_factory.mktemp("growing") / name
        evolved(found[name], digits, *GROW, *flags, "--keep-checkpoints", "9")
    return found


class TestGrown:
    @pytest.mark.parametrize("name", FLAGS)
    def test_widths_follow_from_the_generation(self, grown, name):
        assert [line["width"] for line in lines(grown[name])] == [1, 1, 2, 2, 4, 4]
        # A checkpoint stands before the next generation.
        assert list(widths_of(grown[name]).values()) == [1, 2, 2, 4, 4, 4]
        summary = json.loads((grown[name] / "summary.json").read_text())
        assert summary["width"] == 4
        assert not summary["troubles"]

    @pytest.mark.parametrize("name", FLAGS)
    def test_the_wide_network_is_what_the_narrow_one_was(self, tmp_path, digits, name):
        """Of a run that ended just after that, and of one that never grows."""
        narrow, wide = tmp_path / "narrow", tmp_path / "wide"
        flags = [*FLAGS[name], "--generations", "2"]
        evolved(narrow, digits, *flags, "--width", "2")
        if name == "feedback":  # those of the last width
            flags += ["--cells", "128"]
        evolved(wide, digits, *flags, "--width", "4", "--grow-from", "2", "--grow-every", "2")
        assert plain_module(wide).conv1.out_channels == 4
        images = load(digits).test.images(torch.arange(30))
        with torch.no_grad():
            came, expected = (plain_module(run)(images) for run in (wide, narrow))
        assert float(expected.std()) > 1e-3
        torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-4)

    def test_the_saved_network_has_the_figures_of_the_summary(self, grown, digits):
        run, test = grown["feedback"], load(digits).test
        pixels = json.loads((run / "config.json").read_text())["pixels"]
        accuracy, loss = measured(plain_module(run), test.pixels, test.labels, **pixels)
        summary = json.loads((run / "summary.json").read_text())
        assert summary["test_accuracy"] == pytest.approx(accuracy)
        assert summary["test_loss"] == pytest.approx(loss, abs=1e-4)


class TestResumed:
    @pytest.mark.parametrize("name", FLAGS)
    def test_from_any_generation_to_the_same_bits(self, grown, tmp_path, name):
        """As a run that was killed before or after it was widened."""
        for stood in (1, 2, 3, 4):
            part = tmp_path / str(stood)
            shutil.copytree(grown[name], part)
            for path in (part / "checkpoints").iterdir():
                if int(path.stem) > stood:
                    path.unlink()
            for left in ("model.safetensors", "predictions.safetensors", "summary.json"):
                (part / left).unlink()
            printed = resumed(part)
            assert printed.startswith(f"resumed after generation {stood}, ")
            require_same_end(grown[name], part)

    def test_a_checkpoint_of_another_width_is_refused(self, grown, tmp_path, capsys):
        part = tmp_path / "part"
        shutil.copytree(grown["feedback"], part)
        config = json.loads((part / "config.json").read_text())
        config["grow_every"] = 4
        (part / "config.json").write_text(json.dumps(config))
        message = refused(["evolve", "--resume", part, "--generations", "9"], capsys, code=4)
        assert "conv1.weight of shape [2, 1, 3, 3], found one of shape [4, 1, 3, 3]" in message


class TestEndedEarly:
    @pytest.fixture
    def early(self, tmp_path, digits):
        out = tmp_path / "early"
        printed = evolved(out, digits, *GROW, *FLAGS["feedback"], "--generations", "3")
        said = "note: it ended before it had grown: the network has width 2 of 4"
        assert said in printed.splitlines()
        return out

    def test_is_evaluated_with_the_width_that_it_had(self, early):
        summary = json.loads((early / "summary.json").read_text())
        assert summary["width"] == 2
        assert len(network.load(early)[0].conv1.weight) == 2
        code, printed = quiet(["evaluate", early])
        assert code == 0
        assert f"test loss {summary['test_loss']:.4f}" in printed
        assert quiet(["report", early])[0] == 0

    def test_goes_on_as_if_it_had_not(self, early, grown):
        resumed(early, "--generations", "6")
        require_same_end(grown["feedback"], early)
        assert newest(early).name == "00000006.safetensors"


class TestFlags:
    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (
                ["--grow-from", "8"],
                "grow_from: needed --width of 12 halved once or more: 6 or 3, got 8.",
            ),
            (
                ["--grow-from", "24"],
                "grow_from: needed --width of 12 halved once or more: 6 or 3, got 24.",
            ),
            (
                ["--width", "7", "--grow-from", "7"],
                "grow_from: needed a --width that can be halved, which 7 cannot, got 7.",
            ),
            (["--grow-from", "0"], "grow_from: needed an integer of at least 1, got 0."),
            (
                ["--grow-from", "6", "--grow-every", "0"],
                "grow_every: needed an integer of at least 1, got 0.",
            ),
            (
                ["--grow-every", "3"],
                "grow_every: needed --grow-from, which it belongs to, got 3 without it.",
            ),
            (
                ["--strategy", "genetic", "--grow-from", "6"],
                "grow_from: needed --strategy feedback or activations or weights, which have a "
                "centre to widen, got 6 with --strategy genetic.",
            ),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_what_cannot_grow(self, tmp_path, digits, capsys, flags, said):
        words = ["evolve", "--data", digits, *TINY, "--width", "12", *flags]
        assert refused([*words, "--out", tmp_path / "run"], capsys) == said
        assert not (tmp_path / "run").exists()

    def test_width_of_a_generation(self):
        flags = {"width": 32, "grow_from": 8, "grow_every": 10}
        assert [width(flags, at) for at in (0, 9, 10, 19, 20, 10**6)] == [8, 8, 16, 16, 32, 32]
        assert width({"width": 5, "grow_from": None, "grow_every": None}, 10) == 5
