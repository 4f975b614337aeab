"""Noise: a pure function of its address, with the moments it promises."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.random import Philox

from tinkering.errors import TinkeringError
from tinkering.noise import Dense, DenseFactors, LowRank, LowRankFactors, Stream

WORD = 2**64
EDGES = [0, WORD - 1, 2**63, 2**31, 2**63 + 2**31, 2**32 - 1]
KINDS = [Dense(), LowRank(1), LowRank(2), LowRank(3)]
SHAPES = [(), (7,), (6, 5), (16, 8), (4, 3, 3, 3), (5, 6, 1, 2)]
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


def philox4x64(counter, key):
    """Salmon et al. 2011, section 3.2, written out with Python's integers; ten rounds."""
    c, k = list(counter), list(key)
    for _ in range(10):
        left, right = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
        c = [(right >> 64) ^ c[1] ^ k[0], right % WORD, (left >> 64) ^ c[3] ^ k[1], left % WORD]
        k = [(k[0] + 0x9E3779B97F4A7C15) % WORD, (k[1] + 0xBB67AE8584CAA73B) % WORD]
    return c


def words_of(counter, key, count=4):
    bits = Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))
    return [int(word) for word in bits.random_raw(count)]


def draw(kind, shape=(6, 5), pairs=range(4), seed=0, generation=0, name="weight"):
    return kind.draw(Stream(seed, generation), name, shape, pairs)


class TestSource:
    # The known answers that Random123 publishes: counter, key, words.
    VECTORS = (
        (
            [0, 0, 0, 0],
            [0, 0],
            [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B],
        ),
        (
            [WORD - 1] * 4,
            [WORD - 1] * 2,
            [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0],
        ),
        (
            [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
            [0x452821E638D01377, 0xBE5466CF34E90C6C],
            [0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6],
        ),
    )

    @pytest.mark.parametrize(("counter", "key", "words"), VECTORS, ids=["zeros", "ones", "pi"])
    def test_philox_gives_the_published_words(self, counter, key, words):
        # NumPy counts before the first block, so it is handed the counter before.
        before = sum(word << (64 * i) for i, word in enumerate(counter)) - 1
        before_words = [(before >> (64 * i)) % WORD for i in range(4)]
        assert words_of(before_words, key) == words
        assert philox4x64(counter, key) == words

    @given(
        seed=st.integers(0, WORD - 1),
        generation=st.integers(0, 2**40),
        first=st.integers(0, 2**40),
        name=st.text(max_size=20),
    )
    def test_stream_is_philox_at_its_documented_key_and_counter(
        self, seed, generation, first, name
    ):
        digest = hashlib.blake2b(name.encode(errors="ignore"), digest_size=8).digest()
        key = [seed, int.from_bytes(digest, "little")]
        name = name.encode(errors="ignore").decode()
        words = Stream(seed, generation)._words(name, first_block=first, blocks=2)
        expected = [
            word for block in (1, 2) for word in philox4x64([first + block, generation, 0, 0], key)
        ]
        assert [int(word) for word in words] == expected


class TestPurity:
    @kinds
    @given(
        shape=st.sampled_from(SHAPES),
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
    COUNT = 40_000

    @pytest.mark.parametrize(
        "other",
        [
            {"seed": 1},
            {"seed": 2**63},
            {"generation": 1},
            {"generation": 2},
            {"name": "weight2"},
            {"name": "bias"},
            {"pair": 1},
            {"pair": 1000},
        ],
        ids=str,
    )
    def test_another_address_gives_independent_numbers(self, other):
        def numbers(seed=0, generation=0, name="weight", pair=0):
            pairs = range(pair, pair + 1)
            return Stream(seed, generation).normals(name, pairs, self.COUNT)[0].double()

        here, there = numbers(), numbers(**other)
        bound = 5 / math.sqrt(self.COUNT)
        assert abs(here @ there) / self.COUNT < bound
        assert abs(here.square() @ there.square() / self.COUNT - 1) < 2 * math.sqrt(2) * bound
        # Nor the same numbers later in the stream: no four in a row come twice.
        runs = [{tuple(run) for run in n.unfold(0, 4, 1).tolist()} for n in (here, there)]
        assert not runs[0] & runs[1]

    @kinds
    @pytest.mark.parametrize("shape", [(6,), (4, 3), (4, 3, 1, 2)], ids=str)
    def test_the_entries_of_a_parameter_are_uncorrelated(self, kind, shape):
        pairs = 20_000
        values = draw(kind, shape, range(pairs)).dense().flatten(1).double()
        covariance = values.T @ values / pairs
        off = covariance - torch.diag(covariance.diagonal())
        # Two entries that share a factor have a product of variance 3, at most.
        assert off.abs().max() < 5 * math.sqrt(3 / pairs)


class TestMoments:
    @kinds
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_every_entry_has_mean_0_and_variance_1(self, kind, shape):
        pairs = 20_000
        factors = draw(kind, shape, range(pairs), seed=3)
        values = factors.dense().double().reshape(pairs, -1)
        # The fourth moment of a sum of r products of two normals, over sqrt(r), is 3 + 6 / r.
        rank = factors.left.shape[1] if isinstance(factors, LowRankFactors) else math.inf
        spread = math.sqrt((2 + 6 / rank) / pairs)
        assert torch.isfinite(values).all()
        assert values.mean(0).abs().max() < 5.5 / math.sqrt(pairs)
        assert (values.square().mean(0) - 1).abs().max() < 5.5 * spread

    def test_dense_noise_is_normal(self):
        values = draw(Dense(), (40,), range(5000)).dense().double().flatten().sort().values
        count = len(values)
        assert abs(values.mean()) < 5 / math.sqrt(count)
        assert abs(values.square().mean() - 1) < 5 * math.sqrt(2 / count)
        kurtosis = values.pow(4).mean() / values.square().mean().square()
        assert abs(kurtosis - 3) < 5 * math.sqrt(24 / count)
        # Kolmogorov and Smirnov; beyond 2.7 lies one in a million.
        steps = (torch.arange(count) + 0.5) / count
        distance = (torch.special.ndtr(values) - steps).abs().max()
        assert distance < 2.7 / math.sqrt(count)

    @pytest.mark.parametrize(("rank", "kurtosis"), [(1, 9), (2, 6), (3, 5)])
    def test_low_rank_noise_has_the_tails_of_products(self, rank, kurtosis):
        values = draw(LowRank(rank), (16, 8), range(4000)).dense().double()
        assert values.pow(4).mean() / values.square().mean().square() == pytest.approx(
            kurtosis, rel=0.1
        )

    @given(st.lists(st.integers(0, WORD - 1) | st.sampled_from(EDGES), min_size=8, max_size=8))
    @example([0] * 8)
    @example([WORD - 1] * 8)
    @example([2**63 + 2**31] * 8)
    def test_no_word_gives_a_number_that_is_not_finite(self, words):
        class Given(Stream):
            def _words(self, name, first_block, blocks):  # noqa: ARG002
                return np.array((words * blocks)[: 4 * blocks], np.uint64)

        normals = Given(0, 0).normals("w", range(2), 13)
        assert torch.isfinite(normals).all()
        assert normals.abs().max() < 4.4


class TestFactors:
    @pytest.mark.parametrize(
        ("shape", "rank", "kind"),
        [
            ((), 1, DenseFactors),
            ((100,), 1, DenseFactors),
            ((2, 2), 1, DenseFactors),  # 4 numbers either way
            ((3, 2), 1, LowRankFactors),  # 5 for 6
            ((3, 3), 2, DenseFactors),
            ((16, 16), 7, LowRankFactors),
            ((16, 16), 8, DenseFactors),
            ((4, 1, 3, 3), 1, DenseFactors),  # one input: nothing to factor
            ((4, 2, 3, 3), 1, LowRankFactors),
            ((1, 8, 1, 1), 1, DenseFactors),
        ],
    )
    def test_weights_that_factors_would_not_make_smaller_are_dense(self, shape, rank, kind):
        factors = draw(LowRank(rank), shape)
        assert type(factors) is kind
        if kind is DenseFactors:
            assert torch.equal(factors.dense(), draw(Dense(), shape).dense())
        else:
            assert factors.left.numel() + factors.right.numel() < factors.dense().numel()

    @pytest.mark.parametrize("rank", [1, 2, 3])
    @pytest.mark.parametrize("shape", [(9, 8), (8, 7, 3, 3)], ids=str)
    def test_low_rank_noise_has_its_rank(self, rank, shape):
        dense = draw(LowRank(rank), shape).dense().double()
        # Outputs and taps by inputs.
        matrices = dense.transpose(1, 2).flatten(2) if len(shape) > 2 else dense
        # float32 products in double precision: anything beyond the rank is rounding.
        values = torch.linalg.svdvals(matrices)
        assert (values[:, :rank] > 1e-3).all()
        assert (values[:, rank:] < 1e-4).all()

    @kinds
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_weighted_sum_is_the_sum_of_the_dense_rows(self, kind, shape):
        factors = draw(kind, shape, range(7))
        weights = torch.randn(7)
        expected = np.zeros(shape)
        for weight, noise in zip(weights.numpy(), factors.dense().numpy(), strict=True):
            expected = expected + np.float64(weight) * noise.astype(np.float64)
        result = factors.weighted_sum(weights)
        assert result.shape == shape
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-5)

    @kinds
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
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

    @pytest.mark.parametrize("rank", [0, -3])
    def test_a_rank_below_1(self, rank):
        with pytest.raises(ValueError, match="rank") as caught:
            LowRank(rank)
        assert str(caught.value) == f"rank: needed an integer of at least 1, got {rank}."
        assert isinstance(caught.value, TinkeringError)
