"""Kinds of noise, one table: parts of a whole, the moments they promise, their sums."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tinkering import noise
from tinkering.errors import TinkeringError
from tinkering.noise import (
    Dense,
    DenseFactors,
    LowRank,
    LowRankFactors,
    Separable,
    SeparableFactors,
    Stream,
    weighted_sum,
)

WORD = 2**64
KINDS = [Dense(), LowRank(1), LowRank(3), Separable(1), Separable(2)]
SHAPES = {
    "scalar": (),
    "vector": (7,),
    "linear": (6, 5),
    "wide linear": (16, 8),
    "one input": (9, 1),
    "convolution in 1d": (6, 4, 3),
    "convolution in 2d": (4, 3, 3, 3),
    "uneven kernel": (5, 6, 1, 2),
    "one tap": (8, 6, 1, 1),
    "grouped": (8, 1, 3, 3),
    "convolution in 3d": (4, 3, 2, 1, 3),
}
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def draw(kind, shape=(6, 5), pairs=range(4), seed=0, generation=0, name="weight"):
    return noise.draw(kind, Stream(seed, generation), {name: shape}, pairs)[name]


def product_of(factors):
    """How many normals are multiplied for an entry, and how many such products are summed."""
    if isinstance(factors, DenseFactors):
        return 1, 1
    return (3 if isinstance(factors, SeparableFactors) else 2), factors.left.shape[1]


def kurtosis_of(factors):
    """Of a sum of independent products of normals: 3, and what products exceed it by."""
    normals, rank = product_of(factors)
    return 3 + (3**normals - 3) / rank


class TestPurity:
    @kinds
    @given(
        shape=st.sampled_from(list(SHAPES.values())),
        start=st.integers(0, 30),
        length=st.integers(1, 12),
        cut=st.integers(0, 11),
        seed=st.integers(0, WORD - 1),
        generation=st.integers(0, 10**9),
    )
    @settings(max_examples=25)
    def test_a_part_equals_the_same_part_of_the_whole(
        self, kind, shape, start, length, cut, seed, generation
    ):
        cut = min(cut, length - 1)
        at = {"shape": shape, "seed": seed, "generation": generation}
        whole = draw(kind, pairs=range(start, start + length), **at).dense()
        part = draw(kind, pairs=range(start + cut, start + length), **at).dense()
        assert whole.shape == (length, *shape)
        assert torch.equal(whole[cut:], part)

    @kinds
    def test_the_order_of_the_questions_does_not_matter(self, kind):
        asked = [("a", 0), ("b", 5), ("a", 3), ("b", 0), ("a", 0)]
        once = [draw(kind, name=n, pairs=range(p, p + 1)).dense() for n, p in asked]
        back = [draw(kind, name=n, pairs=range(p, p + 1)).dense() for n, p in reversed(asked)]
        assert all(torch.equal(x, y) for x, y in zip(once, reversed(back), strict=True))

    @kinds
    def test_torchs_and_numpys_generators_are_neither_read_nor_moved(self, kind):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        first = draw(kind).dense()
        assert torch.equal(torch.random.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
        torch.manual_seed(2)
        assert torch.equal(draw(kind).dense(), first)


class TestIndependence:
    PAIRS = 60_000

    @kinds
    @pytest.mark.parametrize("shape", [(6,), (4, 3), (4, 3, 1, 2)], ids=str)
    def test_the_entries_of_a_parameter_are_uncorrelated(self, kind, shape):
        factors = draw(kind, shape, range(self.PAIRS))
        values = factors.dense().flatten(1).double()
        covariance = values.T @ values / self.PAIRS
        off = covariance - torch.diag(covariance.diagonal())
        # The square of a product of two entries has a mean of 3 for each normal they share.
        bound = math.sqrt(3 ** (product_of(factors)[0] - 1) / self.PAIRS)
        assert off.abs().max() < 5 * bound

    @kinds
    @pytest.mark.parametrize(
        "other",
        [{"name": "weight2"}, {"first": 1}, {"generation": 1}, {"seed": 1}],
        ids=["parameters", "pairs", "generations", "seeds"],
    )
    @pytest.mark.parametrize("shape", [(5, 4), (4, 3, 1, 2)], ids=str)
    def test_noise_of_two_addresses_is_independent(self, kind, shape, other):
        def values(first=0, **at):
            pairs = range(first, first + self.PAIRS)
            return draw(kind, shape, pairs, **at).dense().flatten(1).double()

        here, there = values(), values(**other)
        assert (here.T @ there / self.PAIRS).abs().max() < 5.5 / math.sqrt(self.PAIRS)
        # Sizes may not agree either. Their logarithms have no tails that would hide it.
        here, there = (standardised(each.abs().log()) for each in (here, there))
        assert (here.T @ there / self.PAIRS).abs().max() < 5.5 / math.sqrt(self.PAIRS)


def standardised(values):
    return (values - values.mean(0)) / values.std(0)


class TestMoments:
    @kinds
    @shapes
    def test_every_entry_has_mean_0_and_variance_1(self, kind, shape):
        pairs = 20_000
        factors = draw(kind, shape, range(pairs), seed=3)
        values = factors.dense().double().reshape(pairs, -1)
        assert torch.isfinite(values).all()
        # Of a square of variance 1, the variance is the kurtosis minus 1.
        spread = math.sqrt((kurtosis_of(factors) - 1) / pairs)
        assert values.mean(0).abs().max() < 5.5 / math.sqrt(pairs)
        assert (values.square().mean(0) - 1).abs().max() < 5.5 * spread

    @pytest.mark.parametrize(
        ("kind", "kurtosis"),
        [
            (Dense(), 3),
            (LowRank(1), 9),
            (LowRank(2), 6),
            (LowRank(3), 5),
            (Separable(1), 27),
            (Separable(2), 15),
            (Separable(4), 9),
        ],
        ids=str,
    )
    def test_noise_has_the_tails_of_its_products(self, kind, kurtosis):
        factors = draw(kind, (16, 8, 3, 3), range(10_000))
        assert kurtosis_of(factors) == kurtosis
        square = factors.dense().square()
        measured = square.square().mean(dtype=torch.float64) / square.mean(dtype=torch.float64) ** 2
        assert measured == pytest.approx(kurtosis, rel=0.1)


class TestFactors:
    @pytest.mark.parametrize(
        ("kind", "shape", "expected"),
        [
            (LowRank(1), (), DenseFactors),
            (LowRank(1), (100,), DenseFactors),
            (LowRank(1), (2, 2), DenseFactors),  # 4 numbers either way
            (LowRank(1), (3, 2), LowRankFactors),  # 5 for 6
            (LowRank(2), (3, 3), DenseFactors),
            (LowRank(7), (16, 16), LowRankFactors),
            (LowRank(8), (16, 16), DenseFactors),
            (LowRank(1), (4, 1, 3, 3), DenseFactors),  # one input: nothing to factor
            (LowRank(1), (4, 2, 3, 3), LowRankFactors),
            (LowRank(1), (1, 8, 1, 1), DenseFactors),
            (Separable(1), (), DenseFactors),
            (Separable(1), (100,), DenseFactors),
            (Separable(1), (2, 2), DenseFactors),
            (Separable(1), (3, 2), LowRankFactors),  # a linear layer has one tap
            (Separable(7), (16, 16, 1, 1), LowRankFactors),
            (Separable(8), (16, 16, 1, 1), DenseFactors),
            (Separable(1), (4, 1, 3, 3), SeparableFactors),  # 14 for 36
            (Separable(1), (1, 2, 2), DenseFactors),  # 5 for 4
            (Separable(1), (2, 2, 2), SeparableFactors),  # 6 for 8
            (Separable(1), (1, 1, 3, 3), DenseFactors),
            (Separable(2), (4, 2, 3), SeparableFactors),  # 18 for 24
            (Separable(3), (4, 2, 3), DenseFactors),
            (Separable(2), (4, 3, 3, 3), SeparableFactors),
            (Separable(6), (4, 3, 3, 3), SeparableFactors),  # 96 for 108
            (Separable(7), (4, 3, 3, 3), DenseFactors),
        ],
        ids=str,
    )
    def test_weights_that_factors_would_not_make_smaller_are_dense(self, kind, shape, expected):
        factors = draw(kind, shape)
        assert type(factors) is expected
        if expected is DenseFactors:
            assert torch.equal(factors.dense(), draw(Dense(), shape).dense())
        else:
            numbers = sum(part.numel() for part in vars(factors).values())
            assert numbers < factors.dense().numel()

    @pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (9, 8, 1, 1)], ids=str)
    def test_separable_noise_of_one_tap_is_low_rank_noise(self, shape):
        assert torch.equal(draw(Separable(2), shape).dense(), draw(LowRank(2), shape).dense())

    @kinds
    @shapes
    def test_factors_multiply_to_the_dense_noise(self, kind, shape):
        factors = draw(kind, shape)
        parts = [part.double().numpy() for part in vars(factors).values()]
        equation = {
            DenseFactors: "n...->n...",
            LowRankFactors: "nr...o,nrc->noc...",
            SeparableFactors: "nro,nr...,nrc->noc...",
        }[type(factors)]
        dense = factors.dense()
        assert dense.shape == (4, *shape)
        assert dense.dtype == torch.float32
        np.testing.assert_allclose(dense, np.einsum(equation, *parts), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("rank", [1, 2, 3])
    @pytest.mark.parametrize("family", [LowRank, Separable])
    @pytest.mark.parametrize("shape", [(9, 8), (8, 7, 3, 3)], ids=str)
    def test_noise_has_its_rank(self, family, shape, rank):
        dense = draw(family(rank), shape).dense().double()
        taps_first = dense.flatten(3) if len(shape) > 2 else dense.unsqueeze(3)
        # Outputs and taps by inputs; separable noise by its outputs and by its taps as well.
        axes = (1, 2, 3) if family is Separable and len(shape) > 2 else (2,)
        for axis in axes:
            # float32 products in double precision: anything beyond the rank is rounding.
            values = torch.linalg.svdvals(taps_first.movedim(axis, 1).flatten(2))
            assert (values[:, :rank] > 1e-3).all()
            assert (values[:, rank:] < 1e-4).all()

    @kinds
    @shapes
    def test_weighted_sum_is_the_sum_of_the_dense_rows(self, kind, shape):
        factors = draw(kind, shape, range(7))
        weights = torch.randn(7)
        expected = np.zeros(shape)
        for weight, each in zip(weights.numpy(), factors.dense().numpy(), strict=True):
            expected = expected + np.float64(weight) * each.astype(np.float64)
        result = weighted_sum(factors, weights)
        assert result.shape == shape
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("kind", [LowRank(1), LowRank(3), Separable(1), Separable(3)], ids=str)
    @pytest.mark.parametrize("shape", [(64, 48), (16, 32, 3, 3)], ids=str)
    def test_weighted_sum_builds_nothing_of_rows_times_parameters(self, kind, shape):
        class Largest(TorchDispatchMode):
            numbers = 0

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                out = function(*args, **kwargs or {})
                self.numbers = max(self.numbers, out.numel())
                return out

        factors = draw(kind, shape, range(50))
        with Largest() as largest:
            weighted_sum(factors, torch.randn(50))
        assert 0 < largest.numbers < 50 * math.prod(shape) / 8

    @kinds
    @shapes
    def test_rows_and_scales(self, kind, shape):
        factors = draw(kind, shape, range(5))
        dense = factors.dense()
        rows = torch.tensor([4, 0, 0, 2])
        assert torch.equal(factors[rows].dense(), dense[rows])
        torch.testing.assert_close(factors[1:3].dense(), dense[1:3])
        scale = torch.tensor([0.5, -1.0, 0.0, 3.0, 2.0])
        expected = torch.stack([s * row for s, row in zip(scale, dense, strict=True)])
        torch.testing.assert_close(factors.scaled(scale).dense(), expected)
        assert torch.equal(factors.dense(), dense)

    @pytest.mark.parametrize("family", [LowRank, Separable])
    @pytest.mark.parametrize("rank", [0, -3])
    def test_a_rank_below_1(self, family, rank):
        with pytest.raises(ValueError, match="rank") as caught:
            family(rank)
        assert str(caught.value) == f"rank: needed an integer of at least 1, got {rank}."
        assert isinstance(caught.value, TinkeringError)
