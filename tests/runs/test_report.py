"""The page and the pictures of one run, of every shape a run folder can have."""

import io
import itertools
import json
import shlex
import time

import matplotlib.image
import numpy as np
import pytest
from page_reader import Page
from run_folders import write_metrics, write_predictions, write_run, write_summary

from tinkering.errors import ArgumentError, RunFolderError
from tinkering.runs import folder
from tinkering.runs.report import write_report

PICTURES = {
    "confusion.png",
    "curves-forward-passes.png",
    "curves-generations.png",
    "curves-time.png",
    "curves.png",
    "filters.png",
    "mistakes.png",
    "throughput.png",
}


def page_of(run):
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path)


def change(run, **values):
    config = {**folder.read_json(run / folder.CONFIG), **values}
    folder.write_json(run / folder.CONFIG, {k: v for k, v in config.items() if v is not ...})


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "a run")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of that run, for those who only read it."""
    return page_of(write_run(tmp_path_factory.mktemp("read") / "a run"))


class TestPage:
    def test_is_whole_and_asks_for_nothing(self, page):
        assert page.source.startswith("<!DOCTYPE html>\n<html lang=")
        assert "script" not in page.tags
        assert all(address.startswith("data:") for address in page.addresses)
        assert not [name for name, _ in page.attributes if name.startswith("on")]
        assert "url(" not in page.source
        assert "@import" not in page.source
        for picture in page.pictures():
            assert min(matplotlib.image.imread(io.BytesIO(picture)).shape[:2]) > 5

    def test_headings_are_in_order_and_pictures_have_a_text(self, page):
        levels = [level for level, _ in page.headings]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
        assert [text for _, text in page.headings] == [
            "a run",
            "Fitness and test accuracy",
            "Measured on held-out images",
            "Confusion matrix",
            "Wrong predictions",
            "Filters of the first layer",
            "Throughput",
            "Repeat this run",
            "Settings",
        ]
        assert len({image["alt"] for image in page.images}) == len(page.images) == 8
        assert all(len(image["alt"]) > 20 for image in page.images)
        assert page.source.count("<caption>") == page.tags.count("table") == 5

    def test_says_what_the_run_came_to(self, page):
        text = page.text
        assert "Test accuracy 19.00 % 4 of 6 images Test loss 1.0000" in text
        assert "Forward passes 576 128 a second Time 4.5 s measurements included" in text
        assert "Generations 9 Ended by time limit" in text
        assert "Still going on" not in text
        assert "3 of 3 measurements" in text
        for row in ("1.5 s 3 192 13.00 %", "3.0 s 6 384 16.00 %", "4.5 s 9 576 19.00 %"):
            assert row in text

    def test_confusion_and_mistakes_bear_the_names_of_the_classes(self, page):
        assert "class images recognised right when said most often taken for" in page.text
        assert "cat 2 50.0 % 50.0 % dog (1)" in page.text
        assert "dog 2 100.0 % 66.7 % owl 2 50.0 % 100.0 % cat (1)" in page.text
        assert "cat dog owl cat 1 50 % 1 50 %" in page.text  # the whole table
        assert "2 of 6 predictions are wrong, the surest first" in page.text
        first = page.text.index("said dog , is cat 82 %")
        assert first < page.text.index("said cat , is owl 50 %")
        shown = [image for image in page.images if image["alt"].startswith("An image of")]
        assert [image["alt"] for image in shown] == [
            "An image of cat, taken for dog.",
            "An image of owl, taken for cat.",
        ]

    def test_a_mistakes_picture_is_its_image_as_ink_on_paper(self, page):
        pixels = [
            matplotlib.image.imread(io.BytesIO(picture))
            for image, picture in zip(page.images, page.pictures(), strict=True)
            if image["alt"].startswith("An image of")
        ]
        assert [p.shape[:2] for p in pixels] == [(6, 6)] * 2
        grey = [np.unique(np.round(255 * p[..., :3])).tolist() for p in pixels]
        assert grey == [[254.0], [250.0]]

    def test_settings_versions_and_command(self, page):
        text = page.text
        for row in ("width 4", "blocks 1, 1, 1, 1", "network.classes 3", "torch 2.13.0"):
            assert row in text
        exact = "tinkering evolve --data mnist5k --seed 0 --generations 9"
        assert exact in text
        assert text.index(exact) < text.index("--seconds 30.0")

    def test_every_text_is_escaped(self, tmp_path):
        nasty = "<img src=x onerror=alert(1)>&\"'$\\frac"
        run = write_run(
            tmp_path / nasty.replace("/", ""),
            config={
                "classes": [nasty, "_b", "犬"],
                "data": nasty,
                "command": f"tinkering evolve --data {shlex.quote(nasty)}",
                nasty: nasty,
                "versions": {nasty: nasty},
            },
        )
        page = page_of(run)
        assert [tag for tag in page.tags if tag == "img"] == ["img"] * len(page.images)
        assert not [name for name, _ in page.attributes if name == "onerror"]
        assert nasty in page.text
        assert any(nasty in image["alt"] for image in page.images)
        assert page.text.count("犬") > 2


class TestFiles:
    def test_pictures_lie_beside_the_page(self, run):
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        page_of(run)
        after = {path.name: path for path in run.iterdir()}
        assert set(after) - set(before) == PICTURES | {"report.html"}
        assert {name: after[name].read_bytes() for name in before} == before
        for name in PICTURES:
            height, width = matplotlib.image.imread(after[name]).shape[:2]
            assert 600 <= width <= 1400, name
            assert 150 <= height <= 1200, name

    def test_a_second_report_replaces_the_first(self, run):
        assert "Generations 9" in page_of(run).text
        names = sorted(path.name for path in run.iterdir())
        write_summary(run, 8)
        assert "Generations 8" in page_of(run).text
        assert sorted(path.name for path in run.iterdir()) == names

    def test_elsewhere_the_page_comes_alone(self, run, tmp_path):
        before = sorted(run.iterdir())
        out = tmp_path / "elsewhere.HTML"
        assert write_report(run, out) == out
        assert len(Page(out).images) == 8
        assert sorted(run.iterdir()) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a run", "elsewhere.HTML"]


class TestWhatIsMissing:
    def test_a_run_that_goes_on(self, run):
        for name in ("summary.json", "model.safetensors", "predictions.safetensors"):
            (run / name).unlink()
        page = page_of(run)
        assert "Still going on, or cut off. There is no summary.json" in page.text
        assert "Ended by not ended" in page.text
        assert "Test accuracy 19.00 % so far, when last measured" in page.text
        assert (
            page.text.count("holds no predictions.safetensors . A run writes it when it ends.") == 2
        )
        assert "It was begun with the settings of:" in page.text
        assert len(page.images) == 4

    def test_a_line_that_is_being_written(self, run):
        (run / "summary.json").unlink()
        with (run / folder.METRICS).open("a") as file:
            file.write('{"generation": 10, "evalu')
        assert "Generations 9" in page_of(run).text

    def test_a_run_that_has_just_begun(self, run):
        for path in run.iterdir():
            if path.name != "config.json":
                path.unlink()
        page = page_of(run)
        assert "No generation has ended yet" in page.text
        assert "Generations — " in page.text
        assert page.images == []
        assert sorted(path.name for path in run.iterdir()) == ["config.json", "report.html"]
        (run / folder.METRICS).write_text("")
        assert page_of(run).images == []

    def test_a_run_of_no_generations(self, run):
        (run / folder.METRICS).unlink()
        write_summary(run, 1, "generations")
        change_summary = {**folder.read_json(run / "summary.json"), "generations": 0, "seconds": 0}
        folder.write_json(run / "summary.json", {**change_summary, "evaluations": 0})
        text = page_of(run).text
        assert "Forward passes 0 — a second" in text
        assert "Ended by limit of generations" in text

    def test_an_older_run(self, run):
        (run / "predictions.safetensors").unlink()
        change(run, command=..., classes=..., versions=...)
        write_metrics(run, without=("fitness_low", "fitness_high"))
        page = page_of(run)
        assert "hold no quantiles, so no band is drawn" in page.text
        assert "a band" not in page.text
        assert page.text.count("made before runs did so. Run it again to get one") == 2
        assert "holds no command; the settings below" in page.text
        assert "Versions" not in page.text
        assert len(page.images) == 5

    def test_class_names_of_an_older_run_are_numbers(self, run):
        change(run, classes=..., network=...)
        assert "0 2 50.0 % 50.0 % 1 (1)" in page_of(run).text

    @pytest.mark.parametrize("generations", [1, 2, 3])
    @pytest.mark.parametrize("every", [0, 1])
    def test_few_generations(self, tmp_path, generations, every):
        run = write_run(tmp_path / "few", generations, every=every)
        text = page_of(run).text
        assert ("Nothing was measured" in text) is (not every)
        assert (f"{generations} of {generations} measurement" in text) is bool(every)

    @pytest.mark.parametrize("generations", [1, 30])
    def test_fitness_that_is_not_finite(self, tmp_path, generations):
        lost = dict.fromkeys(("fitness_mean", "fitness_best", "fitness_low", "fitness_high"))
        run = write_run(tmp_path / "lost", generations, **lost)
        page = page_of(run)
        assert "no finite fitness" in page.images[0]["alt"]

    def test_no_mistakes(self, run):
        write_predictions(run, [0, 1, 2], [0, 1, 2])
        page = page_of(run)
        assert "There is none: all 3 held-out images were recognised." in page.text
        assert "3 of 3 images" in page.text
        assert not (run / "mistakes.png").exists()

    def test_more_mistakes_than_are_kept(self, run):
        write_predictions(run, [0] * 60, [1] * 50 + [0] * 10)
        page = page_of(run)
        assert "50 of 60 predictions are wrong. These are the 40 that" in page.text
        assert page.tags.count("li") == 40

    def test_probabilities_that_are_not_numbers(self, run):
        write_predictions(run, [0, 1], [1, 0], [np.nan, 0.5])
        text = page_of(run).text
        assert text.index("said cat , is dog 50 %") < text.index("said dog , is cat —")

    @pytest.mark.parametrize("name", ["predictions.safetensors", "model.safetensors"])
    def test_a_damaged_file_is_named_and_the_rest_is_drawn(self, run, name):
        (run / name).write_bytes((run / name).read_bytes()[:20])
        page = page_of(run)
        assert f"Cannot be drawn. {run / name}: expected " in page.text
        assert len(page.images) >= 5

    def test_settings_of_another_kind(self, run):
        change(run, classes="ten", network=[1], versions=3, command=["a"], seed=None)
        assert "seed —" in page_of(run).text


class TestManyGenerations:
    def test_ten_thousand_in_a_few_seconds(self, tmp_path):
        run = write_run(tmp_path / "long", 10_000, every=5)
        start = time.process_time()
        page = page_of(run)
        # It takes 2, on a busy machine 4; unthinned pictures would take minutes.
        assert time.process_time() - start < 20
        assert "24 of 2,000 measurements" in page.text
        assert "5,000.0 s" not in page.text
        assert "1 h 23 min 10,000 640,000 100.00 %" in page.text
        assert "average of 20 generations" in page.text
        assert len(page.source) < 2_000_000

    def test_one_lost_generation_does_not_press_the_others_flat(self, tmp_path):
        run, same = (write_run(tmp_path / name, 50) for name in ("far", "near"))
        lines = [json.loads(line) for line in (run / folder.METRICS).read_text().splitlines()]
        lines[30]["fitness_low"] = -1e9
        (run / folder.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        pixels = []
        for path in (run, same):
            page_of(path)
            pixels.append(matplotlib.image.imread(path / "curves.png")[..., :3])
        coloured = [(p.max(2) - p.min(2) > 0.2).mean() for p in pixels]
        assert coloured[0] > 0.5 * coloured[1]

    def test_many_classes(self, run):
        rng = np.random.default_rng(0)
        write_predictions(run, rng.integers(0, 62, 500), rng.integers(0, 62, 500))
        change(run, classes=[f"class {n}" for n in range(62)])
        page = page_of(run)
        assert page.text.count("class 61") > 2


class TestMistakes:
    def test_no_run_folder(self, tmp_path):
        with pytest.raises(RunFolderError) as caught:
            write_report(tmp_path)
        assert str(caught.value) == (
            f"{tmp_path}/config.json: expected a file of a run folder, found No such file or "
            "directory. Is this a run folder?"
        )
        assert list(tmp_path.iterdir()) == []

    def test_metrics_that_are_corrupt(self, run):
        (run / folder.METRICS).write_text("3\n")
        with pytest.raises(RunFolderError, match="a JSON object a line"):
            write_report(run)

    def test_a_place_that_does_not_exist(self, run, tmp_path):
        out = tmp_path / "none" / "a.html"
        with pytest.raises(RunFolderError) as caught:
            write_report(run, out)
        assert str(caught.value) == (
            f"{out}: expected a place that can be written, found No such file or directory. "
            "Choose another with --out FILE.html; its folder has to exist."
        )

    def test_a_place_in_a_file(self, run):
        with pytest.raises(RunFolderError, match="Not a directory"):
            write_report(run, run / "config.json" / "a.html")

    def test_a_run_folder_that_cannot_be_written(self, run, monkeypatch):
        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
        with pytest.raises(RunFolderError) as caught:
            write_report(run)
        assert "found Permission denied. Choose another with --out FILE.html" in str(caught.value)

    def test_a_folder_in_the_place_of_the_page_leaves_nothing_half(self, run):
        (run / "report.html").mkdir()
        with pytest.raises(RunFolderError, match="Is a directory"):
            write_report(run)
        assert not list(run.glob("*.part"))

    def test_a_file_of_the_run_is_not_overwritten(self, run):
        with pytest.raises(ArgumentError) as caught:
            write_report(run, run / "metrics.jsonl")
        assert str(caught.value) == (
            f"out: needed a file name that ends in .html, got {run / 'metrics.jsonl'}."
        )
