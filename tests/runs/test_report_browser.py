"""The pages in a real browser, as wide as a phone and as wide as a desk's screen."""

import browser
import pytest
from run_folders import write_predictions, write_run

from tinkering.runs.report import write_comparison, write_report

pytestmark = pytest.mark.skipif(
    browser.PROGRAM is None, reason=f"none of {', '.join(browser.NAMES)} is installed"
)
WIDTHS = pytest.mark.parametrize("width", [390, 1280])
LONG = "a-name-without-a-single-space-" * 4


def check(found, console, width, images):
    assert console == []
    assert found["window"] == width
    assert found["page"] <= width
    assert found["wide"] == []
    assert len(found["images"]) == images
    assert all(image["pixels"] > 0 for image in found["images"])
    assert all(image["right"] <= width for image in found["images"])


@WIDTHS
def test_the_page_of_a_run(tmp_path, width):
    run = write_run(tmp_path / LONG, 40, config={"classes": [LONG, "b", "c"], "data": LONG})
    write_predictions(run, [0] * 60, [1] * 50 + [0] * 10)
    found, console = browser.look(write_report(run), width, tmp_path)
    check(found, console, width, images=4 + 1 + 40 + 1)
    assert found["title"].startswith(LONG)
    assert len(found["columns"].split()) == (1 if width == 390 else 3)


@WIDTHS
def test_a_run_that_has_just_begun(tmp_path, width):
    run = write_run(tmp_path / "new", 1)
    for name in ("metrics.jsonl", "summary.json", "model.safetensors", "predictions.safetensors"):
        (run / name).unlink()
    check(*browser.look(write_report(run), width, tmp_path), width, images=0)


@WIDTHS
def test_runs_side_by_side(tmp_path, width):
    runs = [write_run(tmp_path / f"{LONG}{n}", config={"seed": n}) for n in range(9)]
    page = write_comparison(runs, tmp_path / "all.html")
    check(*browser.look(page, width, tmp_path), width, images=4)


def test_the_reader_of_the_console_reads_it(tmp_path):
    """What the others find nothing of is found where it is."""
    page = tmp_path / "page.html"
    page.write_text(
        "<!DOCTYPE html><title>t</title><main><p style='width:800px'>wide</p>"
        "<img src='data:image/png;base64,AAAA'></main><script>console.error('broken')</script>"
    )
    found, console = browser.look(page, 390, tmp_path)
    assert "broken" in "".join(console)
    assert found["page"] >= 800
    assert found["wide"]
    assert found["images"][0]["pixels"] == 0
