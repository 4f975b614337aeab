"""The table of learning: what is read from runs, and that a row works from end to end."""

import json
import sys
from dataclasses import replace

import pytest

from benchmarks import learning
from benchmarks.curves import Point, at, curve, draw, levels, median_line, table
from tinkering.cli import main

ROW = learning.ROWS[0]


def write_metrics(folder, measured):
    """A run with three generations for each measurement, of which the last one was measured."""
    folder.mkdir(parents=True)
    lines = []
    for seconds, accuracy in measured:
        for part in (0.1, 0.2, 0.3):
            passes = int(1e6 * (seconds + part))
            record = {"evaluations": passes, "seconds": seconds - 0.3 + part}
            if part == 0.3:
                record |= {"test_accuracy": accuracy, "evaluations": int(1e6 * seconds)}
            lines.append(json.dumps(record))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def curves(tmp_path):
    """Two seeds, of which one falls back."""
    runs = {
        "a": [(50.0, 0.3), (119.0, 0.84), (121.0, 0.9), (240.0, 0.96)],
        "b": [(60.0, 0.5), (120.0, 0.8), (130.0, 0.7), (240.5, 0.98)],
    }
    return [curve(write_metrics(tmp_path / name, one)) for name, one in runs.items()]


def test_a_mark_has_the_last_measurement_before_it(curves):
    assert [at(one, 120.0).accuracy for one in curves] == [0.84, 0.8]
    assert [at(one, 240.0).accuracy for one in curves] == [0.96, 0.7]
    assert [at(one, 55.0) is None for one in curves] == [False, True]


def test_a_run_that_ended_before_a_mark_is_not_counted_there(curves):
    lines = table([("row", "", (240.0,), [curves[0][:3], curves[1]])]).splitlines()
    assert lines[2:] == ["| row |  | 4 | 70.0 % | 70.0 % | 130.00 million | 1 |"]


def test_the_table_has_median_worst_and_forward_passes(curves):
    lines = table([("row", "--width 2", (55.0, 120.0), curves)]).splitlines()[2:]
    assert lines == [
        "| row | `--width 2` | 0.917 | 30.0 % | 30.0 % | 50.00 million | 1 |",
        "| row | `--width 2` | 2 | 82.0 % | 80.0 % | 119.50 million | 2 |",
    ]
    empty = table([("row", "", (1.0,), curves)]).splitlines()[2]
    assert empty == "| row |  | 0.0167 | - | - | - | 0 |"


def test_a_level_counts_where_all_seeds_reached_it(curves):
    assert levels({"row": curves}).splitlines()[2] == "| row | 119.50 | 119.50 | 180.75 | 240.25 |"
    short = [curves[0], curves[1][:3]]
    assert levels({"row": short}).splitlines()[2] == "| row | 119.50 | 119.50 | - | - |"


def test_the_median_line_goes_from_where_all_have_begun_to_where_one_ends():
    curves = [
        [Point(10, 1.0, 0.1), Point(30, 4.0, 0.3)],
        [Point(20, 2.0, 0.2), Point(25, 3.0, 0.6), Point(99, 9.0, 0.9)],
        [Point(5, 0.5, 0.0), Point(40, 5.0, 0.5)],
    ]
    assert median_line(curves, of_passes=False) == ([2.0, 3.0, 4.0], [0.1, 0.1, 0.3])
    assert median_line(curves, of_passes=True) == ([20, 25, 30], [0.1, 0.1, 0.3])
    assert median_line([[]], of_passes=True) == ([], [])


def test_the_picture_is_drawn_of_rows_with_and_without_runs(curves, tmp_path):
    path = draw({"row": curves, "failed": []}, tmp_path / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_no_flag_but_the_limit_depends_on_the_marks(tmp_path):
    for row in learning.ROWS:
        longer = replace(row, marks={**row.marks, 9999: 1})
        words = [one.command(tmp_path / "run", 0, 1) for one in (row, longer)]
        where = words[0].index("--seconds") + 1
        assert (words[0].pop(where), words[1].pop(where)) == (str(max(row.marks)), "9999")
        assert words[0] == words[1]
        assert list(row.marks) == sorted(row.marks)
        assert list(row.marks.values()) == sorted(row.marks.values(), reverse=True)


def test_some_seeds_run_longer():
    row = replace(ROW, marks={5: 4, 9: 2})
    assert [row.limit(seed) for seed in row.seeds] == [9, 9, 5, 5]


def test_a_run_of_other_flags_is_not_taken(tmp_path):
    folder = tmp_path / "seed0"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"width": 8}))
    learning.require_same(replace(ROW, flags={"width": 8}), folder)
    with pytest.raises(SystemExit, match="--width 8, and width-8 --width 64"):
        learning.require_same(replace(ROW, flags={"width": 64}), folder)


def test_a_run_that_ended_early_goes_on(tmp_path):
    folder = tmp_path / "seed0"
    assert "--resume" not in ROW.command(folder, 0, 1)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "summary.json").write_text(json.dumps({"seconds": 899.0}))
    assert not learning.is_complete(folder, 900)
    assert "--resume" in ROW.command(folder, 0, 1)
    (folder / "summary.json").write_text(json.dumps({"seconds": 900.5}))
    assert learning.is_complete(folder, 900)


def test_rows_are_listed(capsys):
    assert learning.main(["--list", "--rows", "w*"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "width-8",
        "weights",
    ]


def test_what_a_command_says_and_how_it_ends_is_kept(tmp_path):
    for code in (0, 3):
        words = [sys.executable, "-c", f"print('ended', {code}); raise SystemExit({code})"]
        assert learning.call(words, tmp_path / "log") == code
    assert (tmp_path / "log").read_text() == "ended 0\nended 3\n"


@pytest.mark.usefixtures("same_threads")
def test_a_short_row_works_and_is_taken_the_second_time(tmp_path, capsys, monkeypatch):
    def in_this_process(command, _):  # which has imported all
        assert command[:3] == [sys.executable, "-m", "tinkering"]
        return main(command[3:])

    monkeypatch.setattr(learning, "call", in_this_process)
    words = ["--quick", "--rows", "glyphs", "--out", str(tmp_path)]
    assert learning.main(words) == 0
    said = capsys.readouterr().out
    run = tmp_path / "glyphs" / "seed0"
    seen = json.loads((run / "config.json").read_text())
    assert (seen["data"], seen["width"]) == (f"idx:{tmp_path / 'glyphs' / 'data'}", 2)
    last = at(curve(run), 1e9)
    assert f"{tmp_path / 'learning.png'!s}\n" in said
    assert last.seconds >= 2
    monkeypatch.setattr(learning, "call", None)
    assert learning.main(words) == 0
    tables = [text[text.index("| row") :] for text in (said, capsys.readouterr().out)]
    assert tables[0] == tables[1]
