"""What goes wrong in a generation: noticed, and named once."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinkering.runs import watch
from tinkering.runs.watch import ADVICE, Watch

NAN, INF = math.nan, math.inf
FINITE = st.floats(-1e6, 1e6, width=32)


def wrong(fitness, told="moved"):
    return Watch().generation(torch.tensor(fitness), told)


@pytest.mark.parametrize(
    ("fitness", "told", "expected"),
    [
        ([1.0, 2.0], "moved", []),
        ([1.0, NAN, 2.0], "moved", [watch.MEMBERS]),
        ([1.0, INF, 2.0], "moved", [watch.MEMBERS]),
        ([NAN, -INF], "no finite fitness", [watch.ALL_MEMBERS]),
        ([2.0, 2.0, 2.0], "moved", [watch.CONSTANT]),
        ([2.0, NAN, 2.0], "moved", [watch.MEMBERS, watch.CONSTANT]),
        ([2.0, NAN], "moved", [watch.MEMBERS]),  # one member is no constant
        ([1.0, 2.0], "update not finite", [watch.UPDATE]),
        ([1.0, 2.0], "", []),
    ],
)
def test_a_generation(fitness, told, expected):
    assert wrong(fitness, told) == expected


@given(st.lists(FINITE, min_size=2, max_size=20, unique=True))
def test_members_that_differ_and_are_finite_are_no_trouble(fitness):
    assert wrong(fitness) == []


@given(st.lists(FINITE | st.sampled_from([NAN, INF, -INF]), min_size=1, max_size=20))
def test_everything_that_is_not_finite_is_named(fitness):
    finite = [f for f in fitness if math.isfinite(f)]
    named = {watch.MEMBERS, watch.ALL_MEMBERS} & {*wrong(fitness)}
    assert bool(named) == (len(finite) < len(fitness))
    assert (watch.ALL_MEMBERS in named) == (not finite)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.3, 1.0, 0.1], [[], [], []]),
        ([2.3, NAN], [[], [watch.CENTRE]]),
        ([INF], [[watch.CENTRE]]),
        ([2.3, 22.9, 23.1], [[], [], [watch.DIVERGED]]),
        ([0.01, 5.0, 11.0], [[], [], [watch.DIVERGED]]),  # a small start is no measure
        ([NAN, 2.0, 21.0], [[watch.CENTRE], [], [watch.DIVERGED]]),
    ],
)
def test_the_centre(losses, expected):
    seen = Watch()
    assert [seen.centre({"test_loss": loss}) for loss in losses] == expected


def test_a_centre_without_a_loss():
    assert Watch().centre({"test_accuracy": 0.5}) == []


def test_every_trouble_has_advice():
    names = {v for n, v in vars(watch).items() if n.isupper() and isinstance(v, str)}
    assert names == set(ADVICE)
    assert all("ry " in text or "still be good" in text for text in ADVICE.values())
