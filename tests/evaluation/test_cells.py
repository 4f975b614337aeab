"""Cells of a layer's result: which numbers share a sign, and sums over them."""

import math

import pytest
import torch
from fed_back import cell_numbers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinkering.engines.cells import Cells, cells_of

SIZES = st.integers(1, 9)
IMAGES = st.tuples(st.integers(1, 3), st.integers(1, 5), SIZES, SIZES)
"""``[images, channels, height, width]``"""
OTHERS = st.one_of(
    st.tuples(st.integers(1, 3), SIZES),
    st.tuples(st.integers(1, 3), SIZES, SIZES),
    st.tuples(st.integers(1, 2), SIZES, SIZES, st.integers(1, 3), st.integers(1, 3)),
)
MOST = st.integers(1, 600)


def channels_last(shape, value):
    """Numbers of images, as they are noised."""
    return value.view(shape).permute(0, 2, 3, 1).flatten(1)


@given(shape=IMAGES, most=MOST)
@example(shape=(2, 3, 7, 7), most=27)
@example(shape=(1, 1, 9, 1), most=1)
@settings(max_examples=80)
def test_against_a_loop_over_the_numbers(shape, most):
    """Each number has the value of the cell that its pixel's square and its channel say."""
    value = torch.randn(shape)
    cells = cells_of(value, most)
    number, count = cell_numbers(value[:1], most)
    order = channels_last((1, *shape[1:]), number.flatten())[0]
    assert cells.count == count == len(order.unique())
    rows = torch.randn(shape[0], count)
    assert torch.equal(cells.spread(rows), rows[:, order])
    flat = channels_last(shape, value)
    expected = torch.zeros(shape[0], count).index_add(1, order, flat)
    torch.testing.assert_close(cells.summed(flat), expected, rtol=1e-5, atol=1e-5)


@given(shape=IMAGES, most=MOST)
@settings(max_examples=100)
def test_spread_and_summed_are_adjoint(shape, most):
    cells = cells_of(torch.zeros(shape), most)
    one = torch.randint(-9, 10, (shape[0], cells.count)).float()
    other = torch.randint(-9, 10, (shape[0], math.prod(shape[1:]))).float()
    # Whole numbers, so that sums are exact.
    assert (cells.spread(one) * other).sum() == (one * cells.summed(other)).sum()


@given(shape=IMAGES, most=MOST)
@settings(max_examples=100)
def test_every_number_is_in_one_cell_and_no_cell_is_empty(shape, most):
    cells = cells_of(torch.zeros(shape), most)
    sizes = cells.summed(cells.spread(torch.ones(1, cells.count)))
    assert sizes.min() >= 1
    assert sizes.max() <= cells.side**2
    assert sizes.sum() == math.prod(shape[1:])


@given(shape=IMAGES, most=MOST)
@settings(max_examples=100)
def test_there_are_as_many_as_are_allowed_and_squares_are_no_larger_than_that_takes(shape, most):
    _, channels, height, width = shape
    cells = cells_of(torch.zeros(shape), most)
    if channels > most:
        assert cells.count == channels
        return
    assert cells.count <= most
    if cells.side > 1:
        finer = Cells((height, width, channels), cells.side - 1)
        assert finer.count > most


@given(shape=OTHERS, most=MOST)
@settings(max_examples=60)
def test_results_that_are_no_images_have_a_cell_for_each_number(shape, most):
    value = torch.randn(shape)
    cells = cells_of(value, most)
    flat = value.flatten(1)
    assert (cells.side, cells.count) == (1, flat.shape[1])
    assert torch.equal(cells.spread(flat), flat)
    assert torch.equal(cells.summed(flat), flat)


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
