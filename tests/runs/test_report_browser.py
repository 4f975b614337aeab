"""The pages in a real browser, as wide as a phone and as wide as a desk's screen."""

import browser
import pytest
from run_folders import write_predictions, write_run

from tinkering.runs.report import write_comparison, write_report

pytestmark = pytest.mark.skipif(
    browser.PROGRAM is None, reason=f"none of {', '.join(browser.NAMES)} is installed"
)
WIDTHS = pytest.mark.parametrize("width", [390, 1200, 1280])
LONG = "a-name-without-a-single-space-" * 4


MATRIX = "Rows: what it is. Columns: what was said. Counts, and shares of the row."
"""The one table that may be wider than the page, with a bar to move it."""


def check(found, console, width, images):
    assert console == []
    assert found["window"] == width
    assert found["page"] <= width
    assert found["wide"] == []
    assert set(found["cut"]) <= {MATRIX}
    assert len(found["images"]) == images
    assert all(image["pixels"] > 0 for image in found["images"])
    assert all(image["right"] <= width for image in found["images"])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / LONG
    run = write_run(folder, 40, config={"classes": [LONG, "b", "c"], "data": LONG})
    write_predictions(run, [0] * 60, [1] * 50 + [0] * 10)
    return write_report(run)


@pytest.mark.parametrize("width", [390, 800, 1200, 1280])
def test_the_page_of_a_run(page, tmp_path, width):
    found, console = browser.look(page, width, tmp_path)
    check(found, console, width, images=4 + 1 + 40 + 1)
    assert found["title"].startswith(LONG)
    assert len(found["columns"].split()) == (1 if width == 390 else 3)


@WIDTHS
def test_a_run_that_has_just_begun(tmp_path, width):
    run = write_run(tmp_path / "new", 1)
    for name in ("metrics.jsonl", "summary.json", "model.safetensors", "predictions.safetensors"):
        (run / name).unlink()
    check(*browser.look(write_report(run), width, tmp_path), width, images=0)


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nine")
    runs = [write_run(folder / f"{LONG}{n}", config={"seed": n}) for n in range(9)]
    return write_comparison(runs, folder / "all.html")


@WIDTHS
def test_runs_side_by_side(nine, tmp_path, width):
    check(*browser.look(nine, width, tmp_path), width, images=4)


@pytest.fixture(scope="module")
def wordy(tmp_path_factory):
    """The page of a run, and that of several, with names and settings of many words."""
    folder = tmp_path_factory.mktemp("wordy")
    names = ["capital letter A or small a", "a hand-written nine", "ampersand", *"abcdefg"]
    config = {"classes": names, "network": {"blocks": [1] * 4, "width": 4, "classes": 10}}
    run = write_run(folder / "run", 2000, config=config, every=100)
    write_predictions(run, [*range(10)] * 100, [*range(1, 10), 0] * 100)
    (run / "metrics.jsonl").write_text(
        (run / "metrics.jsonl").read_text().replace('"evaluations": 64', '"evaluations": 1000000')
    )
    runs = [
        write_run(
            folder / f"a-run-with-a-name-{n}",
            config={
                "seed": n,
                "sigma": n / 10,
                "learning_rate": n / 3,
                "data": f"idx:/home/me/{n}",
            },
        )
        for n in range(4)
    ]
    return write_report(run), write_comparison(runs, folder / "all.html")


@WIDTHS
def test_tables_of_names_and_settings_of_any_length_are_not_cut(wordy, tmp_path, width):
    one, several = wordy
    found, console = browser.look(one, width, tmp_path)
    check(found, console, width, images=4 + 1 + 40 + 1)
    assert found["cut"] == ([MATRIX] if width == 390 else [])
    check(*browser.look(several, width, tmp_path), width, images=4)


def test_the_reader_of_the_console_reads_it(tmp_path):
    """What the others find nothing of is found where it is."""
    page = tmp_path / "page.html"
    page.write_text(
        "<!DOCTYPE html><title>t</title><main><p style='width:800px'>wide</p>"
        "<img src='data:image/png;base64,AAAA'><div class='scroll' style='overflow:auto'><table>"
        "<caption>cut</caption><td style='min-width:900px'></table></div></main>"
        "<script>console.error('broken')</script>"
    )
    found, console = browser.look(page, 390, tmp_path)
    assert "broken" in "".join(console)
    assert found["page"] >= 800
    assert found["wide"]
    assert found["cut"] == ["cut"]
    assert found["images"][0]["pixels"] == 0
