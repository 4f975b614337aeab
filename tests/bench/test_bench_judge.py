"""Whether a figure meets its targets."""

import json

import pytest

from benchmarks.bench.judge import Figure, Row, Target


@pytest.mark.parametrize(
    ("target", "figure", "verdict"),
    [
        (Target(2.5, 2.8), 2.49, "missed"),
        (Target(2.5, 2.8), 2.5, "must"),
        (Target(2.5, 2.8), 2.8, "goal"),
        (Target(must=0.85), 0.9, "must"),
        (Target(must=0.85), 0.8, "missed"),
        (Target(goal=1.0), 0.99, "missed"),
        (Target(goal=1.0), 1.0, "goal"),
        (Target(must=0.10, at_most=True), 0.10, "must"),
        (Target(must=0.10, at_most=True), 0.11, "missed"),
        (Target(must=5.0, goal=3.0, at_most=True), 2.0, "goal"),
        (Target(must=2.5), float("nan"), "missed"),
        (Target(), 1.0, ""),
        (Target(must=1.0), None, ""),
    ],
)
def test_verdict(target, figure, verdict):
    assert target.verdict(figure) == verdict


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        (Figure(1234.5, "img/s"), "1,234 img/s"),
        (Figure(12.345, "img/s"), "12.35 img/s"),
        (Figure(0.931, "of pure"), "0.93 of pure"),
        (Figure(0.0431, "%"), "4.3 %"),
        (Figure(1.234, "GB"), "1.23 GB"),
    ],
)
def test_a_figure_is_said_with_its_unit(figure, said):
    assert str(figure) == said


def test_a_row_as_json_has_the_verdicts():
    row = Row("a", "what", Figure(5.0, "img/s"), Figure(2.6, "x vmap"), Target(2.5, 2.8))
    held = json.loads(json.dumps(row.as_json()))
    assert held["judged"] == {"value": 2.6, "unit": "x vmap"}
    assert (held["must_met"], held["goal_met"]) == (True, False)


def test_a_row_without_a_figure_is_not_judged():
    row = Row("peer-x", "what", note="not installed")
    assert (row.verdict, row.as_json()["must_met"]) == ("", None)
