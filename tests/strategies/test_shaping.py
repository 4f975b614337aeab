"""Shaping: odd, blind to scale, of pairs and of groups; what a fitness of NaN is worth."""

import math

import pytest
import torch
from hypothesis import assume, example, settings
from hypothesis import given as given_
from hypothesis import strategies as st

from tinkering.errors import ArgumentError
from tinkering.strategies.shaping import (
    SHAPINGS,
    by_the_others,
    centred_rank,
    group_advantages,
    pair_advantages,
    relative,
    replace_non_finite,
    signed_rank,
    z_score,
)


def given(*drawn):
    return lambda test: settings(max_examples=25)(given_(*drawn)(test))


PAIRS = SHAPINGS["pairs"]
BOTH = {**PAIRS, **{f"{name}, groups": each for name, each in SHAPINGS["groups"].items()}}
BLIND = {name: each for name, each in PAIRS.items() if name != "raw"}
ALL_BLIND = {name: each for name, each in BOTH.items() if not name.startswith("raw")}


def table(of):
    return pytest.mark.parametrize("shaping", of.values(), ids=of.keys())


shapings = table(PAIRS)
NUMBERS = st.floats(-1e3, 1e3, width=32).map(lambda value: round(value, 3))
DIFFERENCES = st.lists(NUMBERS, min_size=1, max_size=12).map(torch.tensor)
ANYTHING = st.lists(st.floats(width=32), min_size=1, max_size=12)


@table(BOTH)
@given(DIFFERENCES)
def test_swapping_the_members_of_pairs_swaps_signs(shaping, differences):
    assert torch.equal(shaping(-differences), -shaping(differences))


@table(ALL_BLIND)
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


@table(BLIND)
@pytest.mark.parametrize("scale", [1e-30, 1e-38, 1e-45, 1e-10, 1.0, 1e20, 1e38, 3e38])
def test_no_scale_overflows(shaping, scale):
    utilities = shaping(torch.tensor([scale, -scale, 0.0, scale / 2]))
    assert torch.isfinite(utilities).all()
    assert utilities[0] == -utilities[1] or shaping is signed_rank
    assert utilities[0] > 0 > utilities[1]


@table(BOTH)
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


@given(st.lists(NUMBERS, min_size=2, max_size=12))
def test_centred_rank_counts_who_is_below_and_who_is_above(values):
    below = [sum(other < value for other in values) for value in values]
    above = [sum(other > value for other in values) for value in values]
    expected = [(b - a) / (len(values) - 1) for b, a in zip(below, above, strict=True)]
    assert centred_rank(torch.tensor(values)).tolist() == pytest.approx(expected, abs=1e-6)


@given(
    st.lists(st.floats(0.125, 1e3, width=32), min_size=1, max_size=12, unique=True), st.randoms()
)
def test_the_rank_of_a_pair_is_the_centred_rank_among_members(values, random):
    advantages = torch.tensor([1.0 * value * random.choice((1, -1)) for value in values])
    members = torch.stack([advantages, -advantages], dim=1).flatten()
    among = centred_rank(members)[0::2]
    # Ranks 1, 3, 5, ... of 2 n - 1 against 1, 2, 3, ... of n: the same up to half a place.
    places = signed_rank(advantages) * len(values)
    assert torch.allclose(among * (2 * len(values) - 1), 2 * places - places.sign(), atol=1e-3)


FITNESS = st.lists(NUMBERS, min_size=12, max_size=12)


@given(FITNESS, st.sampled_from([2, 3, 4, 6, 12]))
def test_a_group_is_compared_with_the_mean_of_the_others(values, group):
    expected = []
    for i, value in enumerate(values):
        first = i - i % group
        others = [values[j] for j in range(first, first + group) if j != i]
        expected.append(value - sum(others) / len(others))
    result = group_advantages(torch.tensor(values, dtype=torch.float64), group)
    assert result.tolist() == pytest.approx(expected, abs=1e-6)


@given(FITNESS, st.sampled_from([2, 3, 6]), NUMBERS)
def test_what_a_group_shares_does_not_matter(values, group, hard):
    fitness = torch.tensor(values, dtype=torch.float64)
    other = fitness.clone()
    other[:group] -= hard
    torch.testing.assert_close(group_advantages(other, group), group_advantages(fitness, group))


@given(FITNESS)
def test_a_pair_is_half_of_its_difference(values):
    expected = [(a - b) / 2 for a, b in zip(values[0::2], values[1::2], strict=True)]
    fitness = torch.tensor(values, dtype=torch.float64)
    assert pair_advantages(fitness).tolist() == pytest.approx(expected)
    # A group of two is the same twice: the whole difference, and its negative.
    two = torch.stack([pair_advantages(fitness), -pair_advantages(fitness)], dim=1).flatten()
    torch.testing.assert_close(group_advantages(fitness, 2), 2 * two)


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


MATRICES = st.integers(2, 6).flatmap(
    lambda members: st.lists(
        st.lists(
            st.floats(-1e6, 1e6, width=32) | st.sampled_from([math.nan, math.inf, -math.inf]),
            min_size=members,
            max_size=members,
        ),
        min_size=1,
        max_size=4,
    )
)


class TestByTheOthers:
    @given_(fitness=MATRICES)
    def test_are_the_fitness_by_the_mean_of_the_others(self, fitness):
        result = by_the_others(torch.tensor(fitness))
        for row, values in zip(result.tolist(), fitness, strict=True):
            finite = [value for value in values if math.isfinite(value)]
            known = [v if math.isfinite(v) else min(finite, default=0.0) for v in values]
            size = max(map(abs, known))
            for i, value in enumerate(row):
                others = known[:i] + known[i + 1 :]
                expected = known[i] - sum(others) / len(others)
                assert value == pytest.approx(expected, abs=1e-5 * size + 1e-30)

    @given_(fitness=MATRICES)
    def test_an_examples_are_its_own(self, fitness):
        fitness = torch.tensor(fitness)
        alone = torch.cat([by_the_others(row[None]) for row in fitness])
        assert torch.equal(alone, by_the_others(fitness))

    @given_(value=st.floats(-(2.0**90), 2.0**90, width=32), members=st.integers(2, 9))
    @example(value=-0.1, members=6)
    def test_equal_ones_are_worth_exactly_nothing(self, value, members):
        """What rounding leaves would be divided by a small noise."""
        assert not by_the_others(torch.full((3, members), value)).any()


class TestRelativeOfExamples:
    @given_(fitness=MATRICES)
    def test_are_utilities_by_the_mean(self, fitness):
        fitness = torch.tensor(fitness).abs()
        result = relative(fitness)
        assert torch.isfinite(result).all()
        for row, values, plain in zip(result, fitness, by_the_others(fitness), strict=True):
            mean = values.where(torch.isfinite(values), 0.0).mean()
            expected = plain / mean if mean > 0 else torch.zeros_like(plain)
            torch.testing.assert_close(row, expected)

    @given_(right=st.lists(st.integers(0, 64), min_size=2, max_size=9))
    def test_are_no_larger_than_the_group(self, right):
        result = relative(torch.tensor([right]) / 64)
        assert result.abs().max() <= len(right) * (1 + 1e-5)


class TestRelative:
    def test_a_number_below_zero_is_refused(self):
        with pytest.raises(ArgumentError) as caught:
            relative(torch.tensor([[0.5, -0.25]]))
        needed = 'numbers of at least 0, for shaping "relative"'
        assert str(caught.value) == f"fitness: needed {needed}, got -0.25."

    @pytest.mark.parametrize("lost", [torch.nan, torch.inf, -torch.inf])
    def test_what_is_not_finite_counts_as_the_worst_and_is_not_refused(self, lost):
        worth = relative(torch.tensor([[lost, 0.25, 0.75]]))
        assert bool(torch.isfinite(worth).all())
        assert worth[0, 0] == worth[0].min()
