"""Cells of a layer's result: which numbers share a sign, and sums over them."""

import math

import pytest
import torch
from fed_back import cell_numbers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinkering.engines.cells import Cells, cells_of

SIZES = st.integers(1, 9)
COUNTS = st.integers(1, 3)
RESULTS = st.one_of(
    st.tuples(COUNTS, SIZES),
    st.tuples(COUNTS, st.integers(1, 5), SIZES),
    st.tuples(COUNTS, st.integers(1, 5), SIZES, SIZES),
    st.tuples(COUNTS, COUNTS, SIZES, SIZES, COUNTS),
)
"""``[examples, channels, ...]``; with the channels last where a test says so."""
CHANNEL = st.sampled_from([1, -1])
MOST = st.integers(1, 600)


def channels_last(value, channel):
    """Numbers of examples, in the order in which they are noised."""
    return value.movedim(channel, -1).flatten(1)


@given(shape=RESULTS, most=MOST, channel=CHANNEL)
@example(shape=(2, 3, 7, 7), most=27, channel=1)
@example(shape=(2, 7, 512), most=1024, channel=-1)
@example(shape=(1, 1, 9, 1), most=1, channel=1)
@settings(max_examples=80)
def test_against_a_loop_over_the_numbers(shape, most, channel):
    """Each number has the value of the cell that its place's block and its channel say."""
    value = torch.randn(shape)
    cells = cells_of(value, most, channel)
    number, count = cell_numbers(value[:1], most, channel)
    order = channels_last(number, channel)[0]
    assert cells.count == count == len(order.unique())
    rows = torch.randn(shape[0], count)
    assert torch.equal(cells.spread(rows), rows[:, order])
    flat = channels_last(value, channel)
    expected = torch.zeros(shape[0], count).index_add(1, order, flat)
    torch.testing.assert_close(cells.summed(flat), expected, rtol=1e-5, atol=1e-5)


@given(shape=RESULTS, most=MOST)
@settings(max_examples=100)
def test_spread_and_summed_are_adjoint(shape, most):
    cells = cells_of(torch.zeros(shape), most)
    one = torch.randint(-9, 10, (shape[0], cells.count)).float()
    other = torch.randint(-9, 10, (shape[0], math.prod(shape[1:]))).float()
    # Whole numbers, so that sums are exact.
    assert (cells.spread(one) * other).sum() == (one * cells.summed(other)).sum()


@given(shape=RESULTS, most=MOST)
@settings(max_examples=100)
def test_every_number_is_in_one_cell_and_no_cell_is_empty(shape, most):
    cells = cells_of(torch.zeros(shape), most)
    sizes = cells.summed(cells.spread(torch.ones(1, cells.count)))
    assert sizes.min() >= 1
    assert sizes.max() <= cells.side ** len(cells.places)
    assert sizes.sum() == math.prod(shape[1:])


@given(shape=RESULTS, most=MOST)
@settings(max_examples=100)
def test_there_are_as_many_as_are_allowed_and_blocks_are_no_larger_than_that_takes(shape, most):
    _, channels, *places = shape
    cells = cells_of(torch.zeros(shape), most)
    if channels > most:
        assert cells.count == channels
        return
    assert cells.count <= most
    if cells.side > 1:
        finer = Cells(tuple(places), channels, cells.side - 1)
        assert finer.count > most


@pytest.mark.parametrize("most", [1000, 60, 4])
def test_the_number_of_images_says_nothing(most):
    one, many = (cells_of(torch.zeros(images, 4, 7, 6), most) for images in (1, 40))
    assert one == many


def test_in_bfloat16_signs_stay_signs():
    cells = cells_of(torch.zeros(1, 3, 7, 7), 27)
    signs = (torch.randint(2, (2, cells.count)) * 2 - 1).bfloat16()
    spread = cells.spread(signs)
    assert spread.dtype == torch.bfloat16
    assert torch.equal(spread.float(), cells.spread(signs.float()))
