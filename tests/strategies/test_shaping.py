"""Shaping: odd, blind to scale, and what a fitness that is not finite is worth."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tinkering.strategies.shaping import SHAPINGS, replace_non_finite, signed_rank, z_score

shapings = pytest.mark.parametrize("shaping", SHAPINGS.values(), ids=SHAPINGS.keys())
NUMBERS = st.floats(-1e3, 1e3, width=32).map(lambda value: round(value, 3))
DIFFERENCES = st.lists(NUMBERS, min_size=1, max_size=12).map(torch.tensor)
ANYTHING = st.lists(st.floats(width=32), min_size=1, max_size=12)


@shapings
@given(DIFFERENCES)
def test_swapping_the_members_of_pairs_swaps_signs(shaping, differences):
    assert torch.equal(shaping(-differences), -shaping(differences))


@shapings
@given(DIFFERENCES, st.integers(-20, 20))
def test_the_scale_of_fitness_does_not_matter(shaping, differences, power):
    torch.testing.assert_close(shaping(differences * 2.0**power), shaping(differences))


@shapings
@given(DIFFERENCES)
def test_the_better_member_of_a_pair_is_preferred(shaping, differences):
    utilities = shaping(differences)
    assert utilities.shape == differences.shape
    assert torch.equal(utilities.sign(), differences.sign())


@shapings
@given(DIFFERENCES)
def test_a_larger_difference_is_never_worth_less(shaping, differences):
    order = differences.abs().argsort(stable=True)
    worth = shaping(differences).abs()[order]
    assert (worth[1:] >= worth[:-1]).all()


@shapings
@pytest.mark.parametrize("scale", [1e-30, 1e-38, 1e-45, 1e-10, 1.0, 1e20, 1e38, 3e38])
def test_no_scale_overflows(shaping, scale):
    utilities = shaping(torch.tensor([scale, -scale, 0.0, scale / 2]))
    assert torch.isfinite(utilities).all()
    assert utilities[0] == -utilities[1] or shaping is signed_rank
    assert utilities[0] > 0 > utilities[1]


@shapings
def test_differences_of_zero_are_worth_nothing(shaping):
    assert shaping(torch.zeros(5)).tolist() == [0.0] * 5


@given(DIFFERENCES)
def test_z_score_divides_by_the_root_mean_square(differences):
    rms = math.sqrt(sum(value**2 for value in differences.tolist()) / len(differences))
    assume(rms > 0)
    expected = [value / rms for value in differences.tolist()]
    assert z_score(differences).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@given(st.lists(NUMBERS, min_size=1, max_size=12, unique_by=abs))
def test_signed_rank_is_the_place_by_magnitude(values):
    places = {value: place for place, value in enumerate(sorted(values, key=abs), 1)}
    expected = [math.copysign(places[v], v) / len(values) if v else 0.0 for v in values]
    assert signed_rank(torch.tensor(values)).tolist() == pytest.approx(expected)


@given(ANYTHING)
def test_what_is_not_finite_becomes_the_worst_that_is(values):
    result = replace_non_finite(torch.tensor(values))
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        assert result is None
    else:
        expected = [value if math.isfinite(value) else min(finite) for value in values]
        assert result.tolist() == expected


def test_infinity_is_not_the_best():
    fitness = torch.tensor([math.inf, 0.5, -1.0, math.nan, -math.inf])
    assert replace_non_finite(fitness).argmax() == 1
    assert fitness[0] == math.inf  # the argument is left as it was
