"""Several runs on one page."""

import matplotlib.image
import numpy as np
import pytest
from page_reader import Page
from run_folders import write_run

from tinkering.errors import ArgumentError, RunFolderError
from tinkering.runs.report import canvas, comparison, curves, write_comparison
from tinkering.runs.report.reading import read


def page_of(*runs, out=None):
    return Page(write_comparison(list(runs), out))


def write_runs(folder):
    """Three that differ in their seeds only, and one of another width."""
    seeds = [write_run(folder / f"s{s}", 6 + 3 * s, config={"seed": s}) for s in range(3)]
    wide = {"width": 8, "network": {"blocks": [1, 1, 1, 1], "width": 8, "classes": 3}}
    return [*seeds, write_run(folder / "wide", 30, config=wide)]


@pytest.fixture
def runs(tmp_path):
    return write_runs(tmp_path)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """What their page says."""
    return page_of(*write_runs(tmp_path_factory.mktemp("read"))).text


def test_is_whole_and_asks_for_nothing(runs, tmp_path):
    page = page_of(*runs)
    assert (tmp_path / "comparison.html").exists()
    assert "script" not in page.tags
    assert all(address.startswith("data:") for address in page.addresses)
    assert len(page.pictures()) == len({image["alt"] for image in page.images}) == 4
    assert [level for level, _ in page.headings] == [1, 2, 2, 2, 2, 2]
    assert page.source.count("<caption>") == page.tags.count("table") == 3


def test_run_folders_stay_as_they_are(runs, tmp_path):
    before = {path: path.read_bytes() for run in runs for path in run.iterdir()}
    page_of(*runs, out=tmp_path / "all.html")
    assert {path: path.read_bytes() for run in runs for path in run.iterdir()} == before
    assert not (tmp_path / "comparison.html").exists()


def test_figures_and_the_settings_that_differ(text):
    assert "generations a second ended by width seed s0" in text
    assert "s0 16.00 % 1.0000 384 3.0 s 6 128 time limit 4 0" in text
    assert "s2 22.00 % 1.0000 768 6.0 s 12 128 time limit 4 2" in text
    assert "wide 40.00 % 1.0000 1,920 15.0 s 30 128 time limit 8 0" in text
    same = text[text.index("The same in all") :]
    assert "data mnist5k" in same
    assert "versions.torch 2.13.0" in same
    assert "seed" not in same
    assert "runs/" not in same  # where each was written tells nothing


def test_median_and_range_of_repeats(text):
    assert "s0, s1, s2 (seeds 0, 1, 2) median lowest highest" in text
    assert "test accuracy 19.00 % 16.00 % 22.00 %" in text
    assert "forward passes 576 384 768" in text
    assert "time 4.5 s 3.0 s 6.0 s" in text


def test_no_repeats(runs):
    assert "Repeats" not in page_of(runs[0], runs[3]).text


def test_settings_that_are_all_the_same(tmp_path):
    text = page_of(*(write_run(tmp_path / name) for name in "ab")).text
    assert "Their settings are the same." in text
    assert "a, b (seeds 0, 0)" in text


def test_a_run_that_goes_on_is_named(runs):
    (runs[1] / "summary.json").unlink()
    text = page_of(*runs).text
    assert "Still going on, or cut off: s1. The figures are the last there are." in text
    assert "s1 19.00 % 1.0000 576 4.5 s 9 128 not ended" in text


def test_runs_that_have_just_begun(runs):
    for run in runs[:2]:
        for name in ("summary.json", "metrics.jsonl", "model.safetensors"):
            (run / name).unlink()
    assert len(page_of(*runs).images) == 4
    page = page_of(*runs[:2])
    assert page.images == []
    assert "In none of them has a generation ended yet." in page.text


def test_folders_of_one_name_are_told_apart(tmp_path):
    first, second = (write_run(tmp_path / above / "run") for above in ("x", "y"))
    assert "x/run, y/run" in page_of(first, second).text


def test_names_that_mean_something_elsewhere(tmp_path):
    names = ["_hidden", "$\\frac", "<b>&", "a" * 100, "犬"]
    page = page_of(*(write_run(tmp_path / name) for name in names))
    assert all(name in page.text for name in names)
    assert "b" not in page.tags


def test_the_legend_names_every_run_also_one_with_an_underscore(tmp_path):
    runs = [read(write_run(tmp_path / name)) for name in ("_a", "b$b")]
    legend = curves.draw(runs, curves.SECONDS).axes[0].get_legend()
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_a", "b$b"]
    assert not any(text.get_parse_math() for text in legend.get_texts())


def test_more_runs_than_colours(tmp_path):
    runs = [write_run(tmp_path / f"r{n}", config={"seed": n}) for n in range(9)]
    looks = [canvas.stroke(n) for n in range(9)]
    assert len(set(looks)) == 9
    page = page_of(*runs)
    assert page.tags.count("svg") == 9
    drawn = curves.draw([read(run) for run in runs], curves.SECONDS)
    assert drawn.axes[0].get_legend() is None  # the page's table is the key then
    assert {line.get_color() for line in drawn.axes[0].lines} == set(canvas.COLOURS)


def test_each_line_is_drawn_in_its_colour(runs, tmp_path):
    figure = curves.draw([read(runs[0]), read(runs[3])], curves.PASSES)
    path = tmp_path / "a.png"
    path.write_bytes(canvas.png(figure))
    pixels = matplotlib.image.imread(path)[..., :3]
    for colour in canvas.COLOURS[:2]:
        rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert (np.abs(pixels - rgb).max(2) < 0.02).sum() > 50


def test_the_same_folder_twice(runs, tmp_path):
    again = tmp_path / "s0" / ".." / "s0"
    with pytest.raises(ArgumentError) as caught:
        write_comparison([runs[0], runs[1], again])
    assert str(caught.value) == (
        f"runs: needed different run folders, got {runs[0]} more than once."
    )


def test_one_that_is_no_run_folder(runs, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(RunFolderError, match=r"other/config\.json: .* Is this a run folder\?"):
        write_comparison([runs[0], tmp_path / "other"])
    assert not (tmp_path / "comparison.html").exists()


def test_a_page_must_be_called_one(runs):
    with pytest.raises(ArgumentError, match=r"out: needed a file name that ends in \.html"):
        write_comparison(runs, runs[0] / "config.json")


def test_names_of_the_lines():
    assert comparison._css(canvas.stroke(7))["dashes"] == "10 4"
