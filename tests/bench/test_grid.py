"""The grid: which cases it has, and what it says of the engine that is chosen."""

import pytest

from benchmarks import grid
from benchmarks.bench.clock import Rates
from tinkering.engines.table import ENGINES

CASE = grid.Case("mlp", 16, "stacked", 8, 1)


def test_the_short_form_has_some_of_the_cases():
    every, short = list(grid.cases(False)), list(grid.cases(True))
    assert len(set(every)) == len(every)
    assert set(short) < set(every)
    for some in (every, short):
        assert {case.kind for case in some} == set(grid.KINDS)
        assert {case.population for case in some} == set(grid.POPULATIONS)


@pytest.mark.long
def test_a_case_of_every_kind_is_timed_by_those_that_can():
    seen = {
        kind: grid.Case(kind, about.widths[0], "stacked", 8, 1)
        for kind, about in grid.KINDS.items()
    }
    found = {kind: set(case.by_every_engine()) for kind, case in seen.items()}
    assert all({"sequential"} <= names <= set(ENGINES) - {"factored"} for names in found.values())


@pytest.mark.parametrize(
    ("chosen", "ratio", "said"), [("sequential", 2.0, " 2.00  slow"), ("vmapped", 1.0, " 1.00")]
)
def test_the_chosen_engine_is_compared_with_the_fastest(monkeypatch, chosen, ratio, said):
    rates = {"sequential": 1000.0, "vmapped": 2000.0}
    rounds = []

    def compare(contenders, times, _):
        rounds.append((times, [c.name for c in contenders]))
        return Rates({c.name: [rates.get(c.name, 1.0)] * times for c in contenders})

    monkeypatch.setattr(grid, "compare", compare)
    case = grid.Case("mlp", 16, "rank 1", 8, 1)
    bound = grid.Case.called
    monkeypatch.setattr(
        grid.Case, "called", lambda self, name: bound(self, chosen if name == "auto" else name)
    )
    one = grid.timed(case, 3, 0.0)
    assert (one.chosen, one.ratio) == (chosen, ratio)
    assert one.milliseconds["vmapped"] == pytest.approx(4.0)
    assert grid.line(one).endswith(said)
    # What is plainly slower has one reading.
    assert rounds == [(1, list(one.milliseconds)), (3, ["sequential", "vmapped"])]


def test_the_share_of_near_ones():
    assert grid.share_near([1.0, 1.3, 1.31, 9.0]) == 0.5


@pytest.mark.usefixtures("same_threads")
def test_the_exit_status_is_that_of_the_share(monkeypatch, capsys):
    monkeypatch.setattr(grid, "cases", lambda _: iter([CASE] * 10))
    monkeypatch.setattr("sys.argv", ["grid"])
    ratios = iter([2.0] + [1.0] * 9 + [2.0] * 2 + [1.0] * 8)
    monkeypatch.setattr(
        grid, "timed", lambda case, *_: grid.Timed(case, "sequential", {}, next(ratios))
    )
    assert (grid.main(), grid.main()) == (0, 1)
    assert (
        "stacked: 0.80 of 10 within 1.3\nall: 0.80 of 10 within 1.3, must 0.9\n"
        in capsys.readouterr().out
    )
