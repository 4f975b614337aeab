"""Weighted sums of outer products, against the sum written out in double precision."""

import itertools
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tinkering.native import sums
from tinkering.native.build import library
from tinkering.native.sums import Part, Product
from tinkering.noise.products import adding

native = pytest.mark.skipif(library() is None, reason="the kernels cannot be built here")
counts = st.integers(1, 20)


def product_of(weights, columns, inputs, taps, rank):
    """Random sides, each row with a gap behind it as rows of drawn noise have."""
    left, right, of_taps = (
        None if count is None else torch.randn(weights * rank, count + 3)[:, :count]
        for count in (columns, inputs, taps)
    )
    return Product(left, right, of_taps, rank)


def written_out(product, weights):
    lines = weights.double().repeat_interleave(product.rank).unsqueeze(1).numpy()
    for side in (product.right, product.taps):
        if side is not None:
            width = lines.shape[1] * side.shape[1]
            lines = np.einsum("ri,rt->rit", lines, side.double()).reshape(len(lines), width)
    return np.einsum("rl,rc->lc", lines, product.left.double())


def summed(product, weights, cuts=()):
    total = torch.zeros(product.matrix)
    edges = [0, *sorted(cuts), total.shape[1]]
    add = adding([product], [total], weights)
    add([Part(0, start, stop) for start, stop in itertools.pairwise(edges)])
    return total


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=native), False])
@given(
    weights=st.sampled_from([0, 1, 5, 127, 128, 129, 300]),
    columns=st.integers(1, 130),
    inputs=counts | st.none(),
    taps=counts | st.none(),
    rank=st.integers(1, 3),
)
@example(weights=300, columns=64 + 48 + 17, inputs=8, taps=None, rank=1)
@example(weights=130, columns=64, inputs=7, taps=9, rank=2)
def test_the_sum_written_out(compiled, weights, columns, inputs, taps, rank):
    if inputs is None:
        taps = None
    product = product_of(weights, columns, inputs, taps, rank)
    numbers = torch.randn(weights)
    with patch.object(sums, "available", sums.available if compiled else lambda *_: False):
        result = summed(product, numbers)
    scale = np.sqrt(weights * rank) + 1
    np.testing.assert_allclose(result / scale, written_out(product, numbers) / scale, atol=1e-5)


@native
@given(columns=st.integers(1, 200), cuts=st.sets(st.integers(1, 199), max_size=4), inputs=counts)
def test_bits_do_not_depend_on_where_the_columns_are_cut(columns, cuts, inputs):
    product, numbers = product_of(140, columns, inputs, None, 1), torch.randn(140)
    cut = summed(product, numbers, [at for at in cuts if at < columns])
    assert torch.equal(cut.view(torch.int32), summed(product, numbers).view(torch.int32))


@native
def test_sides_that_the_kernel_cannot_read_are_left_to_pytorch():
    numbers = torch.randn(6)
    for left in (torch.randn(6, 4).double(), torch.randn(4, 6).T):
        assert not sums.available([Product(left)], numbers)
    assert sums.available([Product(torch.randn(6, 4))], numbers)
