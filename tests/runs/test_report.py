"""The picture of a run."""

import math

import matplotlib.image
import pytest

from tinkering.errors import RunFolderError
from tinkering.runs import folder, report


def write(run, generations, measured=(), **changes):
    for g in range(1, generations + 1):
        record = {
            "generation": g,
            "evaluations": 64 * g,
            "seconds": g / 2,
            "fitness_mean": -2.0 / g,
            "fitness_best": -1.0 / g,
            **({"test_accuracy": g / 10, "test_loss": 1.0} if g in measured else {}),
            **changes,
        }
        folder.append_line(run / folder.METRICS, record)


def picture(run):
    path = report.draw_curves(run)
    assert path == run / "curves.png"
    pixels = matplotlib.image.imread(path)
    height, width = pixels.shape[:2]
    assert 1000 <= width <= 1200
    assert 300 <= height <= 500
    return pixels


@pytest.mark.parametrize(
    ("generations", "measured"),
    [(1, ()), (1, (1,)), (2, (2,)), (5, ()), (9, (3, 6, 9)), (9, range(1, 10))],
    ids=str,
)
def test_decodes_with_any_number_of_measurements(tmp_path, generations, measured):
    write(tmp_path, generations, measured)
    picture(tmp_path)


def test_shows_the_measurements(tmp_path):
    folders = [tmp_path / name for name in ("none", "some", "same")]
    for path, measured in zip(folders, [(), (3, 6), (3, 6)], strict=True):
        path.mkdir()
        write(path, 6, measured)
    none, some, same = (picture(path) for path in folders)
    middle = none.shape[1] // 2
    assert (some[:, middle:] != none[:, middle:]).any()
    assert (some[:, : middle - 20] == none[:, : middle - 20]).all()
    assert (some == same).all()


def test_generations_without_a_finite_fitness_are_left_out(tmp_path):
    write(tmp_path, 3, (3,), fitness_mean=-math.inf, fitness_best=-math.inf)
    picture(tmp_path)


def test_nothing_but_the_picture_is_written(tmp_path):
    write(tmp_path, 3, (3,))
    before = (tmp_path / folder.METRICS).read_bytes()
    report.draw_curves(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]
    assert (tmp_path / folder.METRICS).read_bytes() == before


def test_no_metrics(tmp_path):
    with pytest.raises(RunFolderError) as caught:
        report.draw_curves(tmp_path)
    assert "Is this a run folder?" in str(caught.value)
    (tmp_path / folder.METRICS).write_text("")
    with pytest.raises(RunFolderError) as caught:
        report.draw_curves(tmp_path)
    path = tmp_path / folder.METRICS
    assert str(caught.value) == f"{path}: expected at least one generation, found none."
