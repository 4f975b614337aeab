"""``tinkering report``, and the report that ``tinkering evolve`` leaves."""

import json
import re
import shlex
import shutil
from html import unescape

import numpy as np
import pytest
from commands import TINY, contents, plain_module, quiet, refused
from safetensors.numpy import load_file

from tinkering.data import load

pytestmark = pytest.mark.usefixtures("same_threads")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, digits, run):
    """Two runs that differ in their seeds, in one folder."""
    above = tmp_path_factory.mktemp("two")
    shutil.copytree(run[0], above / run[0].name)
    words = ["evolve", "--data", digits, *TINY, "--seed", "2", "--measure-every", "0", "--report"]
    assert quiet([*words, "--out", above / "s2"])[0] == 0
    return above / run[0].name, above / "s2"


class TestOne:
    def test_prints_the_path_of_the_page(self, run, tmp_path):
        out = tmp_path / "page.html"
        assert quiet(["report", run[0], "--out", out]) == (0, f"{out}\n")
        assert out.read_text().startswith("<!DOCTYPE html>")

    def test_draws_what_evolve_drew(self, seeds):
        page = seeds[0] / "report.html"
        before = contents(page.parent)
        assert quiet(["report", page.parent]) == (0, f"{page}\n")
        assert contents(page.parent) == before

    def test_predictions_are_those_of_the_saved_network(self, run, digits):
        test = load(digits).test
        pixels = json.loads((run[0] / "config.json").read_text())["pixels"]
        x = ((test.pixels / 255 - pixels["mean"]) / pixels["std"]).float().unsqueeze(1)
        probability, said = plain_module(run[0])(x).detach().softmax(1).max(1)
        kept = load_file(run[0] / "predictions.safetensors")
        np.testing.assert_array_equal(kept["labels"], test.labels)
        np.testing.assert_array_equal(kept["predicted"], said)
        np.testing.assert_allclose(kept["confidence"], probability, rtol=1e-4)
        summary = json.loads((run[0] / "summary.json").read_text())
        right = (kept["predicted"] == kept["labels"]).mean()
        assert right == pytest.approx(summary["test_accuracy"])
        shown = kept["mistakes"]
        assert sorted(shown) == np.flatnonzero(kept["predicted"] != kept["labels"]).tolist()
        assert (np.diff(kept["confidence"][shown]) <= 0).all()
        np.testing.assert_array_equal(kept["images"], test.pixels.numpy()[shown])

    def test_config_names_the_classes_and_the_command(self, run, digits):
        config = json.loads((run[0] / "config.json").read_text())
        assert config["classes"] == list(load(digits).classes)
        words = shlex.split(config["command"])
        assert words[:4] == ["tinkering", "evolve", "--data", digits]
        assert "--out" not in words

    def test_the_command_on_the_page_gives_the_same_network(self, tmp_path, digits):
        """Also where a time limit ended the run."""
        words = ["evolve", "--data", digits, *TINY[:4], "--threads", "1", "--seconds", "0.3"]
        assert quiet([*words, "--out", tmp_path / "a"])[0] == 0
        page = (tmp_path / "a" / "report.html").read_text()
        code = re.search("<pre[^>]*><code>(.*?)</code></pre>", page)[1]
        command = shlex.split(unescape(re.sub("<[^>]*>", "", code)))
        assert command[0] == "tinkering"
        assert "--seconds" not in command
        assert quiet([*command[1:], "--no-report", "--out", tmp_path / "b"])[0] == 0
        models = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
        assert models[0] == models[1]


class TestSeveral:
    def test_writes_one_page_beside_the_first(self, seeds):
        out = seeds[0].parent / "comparison.html"
        assert quiet(["report", *seeds]) == (0, f"{out}\n")
        page = out.read_text()
        assert "Repeats with other seeds" in page
        assert "a run, s2 (seeds 1, 2)" in page

    def test_out(self, seeds, tmp_path):
        out = tmp_path / "both.html"
        assert quiet(["report", *seeds, "--out", out]) == (0, f"{out}\n")
        assert [path.name for path in tmp_path.iterdir()] == ["both.html"]


class TestRefusals:
    def test_no_run_folder_named(self, capsys):
        assert refused(["report"], capsys) == "runs: needed at least one run folder, got none."

    def test_no_run_folder(self, tmp_path, capsys):
        assert refused(["report", tmp_path], capsys, code=4) == (
            f"{tmp_path}/config.json: expected a file of a run folder, found No such file or "
            "directory. Is this a run folder?"
        )

    def test_out_in_a_folder_that_does_not_exist(self, run, tmp_path, capsys):
        out = tmp_path / "none" / "page.html"
        message = refused(["report", run[0], "--out", out], capsys, code=4)
        assert message.startswith(f"{out}: expected a place that can be written, found ")
        assert list(tmp_path.iterdir()) == []

    def test_out_that_is_no_page(self, run, tmp_path, capsys):
        message = refused(["report", run[0], "--out", tmp_path], capsys)
        assert message.startswith("out: needed a file name that ends in .html, got ")

    def test_the_same_run_twice(self, run, capsys):
        message = refused(["report", run[0], run[0]], capsys)
        assert message.startswith("runs: needed different run folders, got ")
