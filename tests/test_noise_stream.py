"""Where noise is read from: published words, one path like the other, independence."""

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.random import Philox

from tinkering.errors import TinkeringError
from tinkering.native import philox
from tinkering.noise import Stream
from tinkering.noise import stream as room

WORD = 2**64
EDGES = [0, WORD - 1, 2**63, 2**31, 2**63 + 2**31, 2**32 - 1]
words64 = st.integers(0, WORD - 1) | st.sampled_from(EDGES)
native = pytest.mark.skipif(philox.library() is None, reason="the kernels cannot be built here")


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


def native_words(key, first, generation, blocks):
    """What the kernel makes, with a table that tells the sixteen bits of each number."""
    seed, second = key
    table = torch.arange(2.0**16)
    numbers = torch.empty(blocks, 16)
    assert philox.normals(seed, [second], [first], generation, [numbers], table)
    bits = numbers.view(-1, 4).to(torch.int64).tolist()
    return [sum(part << (16 * place) for place, part in enumerate(word)) for word in bits]


def by_numpy(stream, *address):
    """The same question where there are no kernels."""
    with patch.object(philox, "library", lambda: None):
        return stream.normals(*address)


class TestWords:
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

    @native
    def test_the_kernel_gives_the_published_words(self):
        # Of the three, only this has a counter that ends in zeros, as all of the kernel's do.
        # It counts before the first block too.
        counter, key, words = self.VECTORS[0]
        assert native_words(tuple(key), first=WORD - 1, generation=counter[1], blocks=1) == words

    @native
    @given(key=st.tuples(words64, words64), first=words64, generation=words64)
    def test_the_kernel_is_philox_at_any_key_and_counter(self, key, first, generation):
        counters = [((first + block) % WORD, generation, 0, 0) for block in (1, 2, 3)]
        expected = [word for counter in counters for word in philox4x64(counter, key)]
        assert native_words(key, first, generation, blocks=3) == expected

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
        words = Stream(seed, generation)._words(room._digest(name), first_block=first, blocks=2)
        expected = [
            word for block in (1, 2) for word in philox4x64([first + block, generation, 0, 0], key)
        ]
        assert [int(word) for word in words] == expected


class TestBothPaths:
    @native
    @given(
        seed=words64,
        generation=words64,
        name=st.text(st.characters(codec="utf-8"), max_size=20),
        start=st.integers(0, 2**50),
        length=st.integers(0, 6),
        count=st.integers(0, 70),
    )
    @example(seed=0, generation=0, name="", start=0, length=1, count=1)
    @example(seed=WORD - 1, generation=WORD - 1, name="w", start=2**59 - 3, length=2, count=500)
    def test_the_kernel_and_numpy_give_the_same_bits(
        self, seed, generation, name, start, length, count
    ):
        stream = Stream(seed, generation)
        fast = stream.normals(name, range(start, start + length), count)
        slow = by_numpy(stream, name, range(start, start + length), count)
        assert fast.shape == (length, count)
        assert fast.dtype == slow.dtype == torch.float32
        assert torch.equal(fast.contiguous().view(torch.int32), slow.contiguous().view(torch.int32))

    @native
    def test_the_kernel_is_what_is_used(self):
        with patch.object(Stream, "_words", side_effect=AssertionError):
            assert Stream(0, 0).normals("w", range(2), 20).shape == (2, 20)

    def test_numpy_is_what_is_used_without_kernels(self):
        with patch.object(room, "_normals", wraps=room._normals) as normals:
            by_numpy(Stream(0, 0), "w", range(2), 20)
        assert normals.call_count == 1

    @pytest.mark.parametrize("order", ["<u8", ">u8"])
    def test_the_order_of_bytes_does_not_matter(self, order):
        words = np.array([0x0003_0002_0001_0000, 0xFFFF_8000_0000_7FFF], np.uint64)
        places = torch.tensor([0, 1, 2, 3, 0x7FFF, 0, 0x8000, 0xFFFF])
        assert torch.equal(room._normals(words.astype(order)), room._quantiles()[places])

    @pytest.mark.parametrize("built", [True, False])
    def test_several_parameters_at_once_are_each_by_itself(self, built):
        stream, pairs = Stream(3, 4), range(5, 9)
        counts = {"conv.weight": 40, "": 0, "conv.bias": 7, "head": 16}
        with patch.object(philox, "library", philox.library if built else lambda: None):
            numbers = stream.many(counts, pairs)
            alone = {name: stream.normals(name, pairs, count) for name, count in counts.items()}
            assert stream.many({}, pairs) == {}
        assert list(numbers) == list(counts)
        assert all(torch.equal(numbers[name], alone[name]) for name in counts)

    @pytest.mark.parametrize("ask", [Stream.normals, by_numpy])
    def test_an_address_keeps_its_numbers(self, ask):
        numbers = ask(Stream(12, 34), "conv1.weight", range(5, 6), 5)
        once = [[-1.42585146, 0.712021887, 0.019565355, -1.33298588, 0.407173395]]
        torch.testing.assert_close(numbers, torch.tensor(once), rtol=1e-6, atol=0)

    def test_threads_draw_at_once_what_one_draws(self):
        def draw(index):
            return Stream(index, 7).normals("weight", range(40), 2300)

        expected = [draw(index) for index in range(16)]
        room._quantiles.cache_clear()  # so that they race for it as well
        with ThreadPoolExecutor(8) as threads:
            results = list(threads.map(draw, range(16)))
        assert all(torch.equal(x, y) for x, y in zip(expected, results, strict=True))


class TestAddresses:
    @pytest.mark.parametrize("argument", ["seed", "generation"])
    @pytest.mark.parametrize("came", [-1, WORD])
    def test_words_that_do_not_fit(self, argument, came):
        with pytest.raises(ValueError, match=argument) as caught:
            Stream(**{"seed": 0, "generation": 0, argument: came})
        assert isinstance(caught.value, TinkeringError)
        expected = f"{argument}: needed an integer from 0 to 2^64 - 1, got {came}."
        assert str(caught.value) == expected

    @pytest.mark.parametrize(
        "pairs", [range(-1, 2), range(0, 4, 2), range(WORD // 2 - 1, WORD // 2)], ids=str
    )
    def test_pairs_that_have_no_blocks(self, pairs):
        with pytest.raises(ValueError, match="pairs: needed a range from at least 0") as caught:
            Stream(0, 0).normals("w", pairs, 20)  # two blocks
        assert isinstance(caught.value, TinkeringError)

    def test_a_step_that_skips_nothing(self):
        numbers = Stream(0, 0).normals("w", range(3, 5, 7), 20)
        assert torch.equal(numbers, Stream(0, 0).normals("w", range(3, 4), 20))

    def test_the_last_pair(self):
        last = WORD // 2 - 2
        numbers = Stream(0, 0).normals("w", range(last - 1, last + 1), 20)
        assert torch.equal(numbers, by_numpy(Stream(0, 0), "w", range(last - 1, last + 1), 20))


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


class TestNumbers:
    def test_are_normal(self):
        values = Stream(0, 0).normals("weight", range(5000), 40).double().flatten().sort().values
        count = len(values)
        assert abs(values.mean()) < 5 / math.sqrt(count)
        assert abs(values.square().mean() - 1) < 5 * math.sqrt(2 / count)
        kurtosis = values.pow(4).mean() / values.square().mean().square()
        assert abs(kurtosis - 3) < 5 * math.sqrt(24 / count)
        # Kolmogorov and Smirnov; beyond 2.7 lies one in a million.
        steps = (torch.arange(count) + 0.5) / count
        distance = (torch.special.ndtr(values) - steps).abs().max()
        assert distance < 2.7 / math.sqrt(count)

    @given(st.lists(st.integers(0, WORD - 1) | st.sampled_from(EDGES), min_size=8, max_size=8))
    @example([0] * 8)
    @example([WORD - 1] * 8)
    @example([2**63 + 2**31] * 8)
    def test_no_word_gives_a_number_that_is_not_finite(self, words):
        numbers = room._normals(np.array(words, np.uint64))
        assert torch.isfinite(numbers).all()
        assert numbers.abs().max() < 4.4


def signs_by_numpy(stream, *address):
    with patch.object(philox, "library", lambda: None):
        return stream.signs(*address)


def bits_of(words):
    """Bit after bit, the lowest of each word first; a set bit is -1."""
    return [-1.0 if word >> place & 1 else 1.0 for word in words for place in range(64)]


class TestSigns:
    @native
    def test_the_kernel_gives_the_published_bits(self):
        counter, key, words = TestWords.VECTORS[0]
        signs = philox.signs(tuple(key), first=WORD - 1, generation=counter[1], blocks=1)
        assert signs.tolist() == bits_of(words)

    @native
    @given(key=st.tuples(words64, words64), first=words64, generation=words64)
    def test_the_kernel_is_philox_at_any_key_and_counter(self, key, first, generation):
        counters = [((first + block) % WORD, generation, 0, 0) for block in (1, 2, 3)]
        expected = [word for counter in counters for word in philox4x64(counter, key)]
        assert philox.signs(key, first, generation, blocks=3).tolist() == bits_of(expected)

    @pytest.mark.parametrize("ask", [Stream.signs, signs_by_numpy])
    @pytest.mark.parametrize("count", [1, 256, 300])
    def test_a_row_is_philox_at_its_documented_key_and_counter(self, ask, count):
        key = (12, int.from_bytes(hashlib.blake2b(b"w", digest_size=8).digest(), "little"))
        blocks = -(-count // 256)
        for row in (0, 5):
            counters = [(row * blocks + block + 1, 34, 0, 0) for block in range(blocks)]
            words = [word for counter in counters for word in philox4x64(counter, key)]
            signs = ask(Stream(12, 34), "w", range(row, row + 1), count)
            assert signs[0].tolist() == bits_of(words)[:count]

    @native
    @given(
        seed=words64,
        generation=words64,
        name=st.text(st.characters(codec="utf-8"), max_size=20),
        start=st.integers(0, 2**50),
        length=st.integers(0, 4),
        count=st.integers(0, 600),
    )
    @example(seed=0, generation=0, name="", start=0, length=1, count=1)
    @example(seed=WORD - 1, generation=WORD - 1, name="w", start=2**60 - 3, length=2, count=500)
    def test_the_kernel_and_numpy_give_the_same_bits(
        self, seed, generation, name, start, length, count
    ):
        address = name, range(start, start + length), count
        fast = Stream(seed, generation).signs(*address)
        slow = signs_by_numpy(Stream(seed, generation), *address)
        assert fast.shape == slow.shape == (length, count)
        assert fast.dtype == slow.dtype == torch.bfloat16
        assert torch.equal(fast.contiguous().view(torch.int16), slow.contiguous().view(torch.int16))
        assert (fast.abs() == 1).all()

    @given(st.integers(0, 12), st.integers(0, 12), st.sampled_from([1, 255, 256, 257]))
    def test_a_part_of_a_range_is_that_part_of_the_whole(self, start, length, count):
        whole = Stream(1, 2).signs("w", range(3, 30), count)
        part = Stream(1, 2).signs("w", range(3 + start, 3 + start + length), count)
        assert torch.equal(part, whole[start : start + length])

    def test_are_as_often_plus_as_minus_and_independent(self):
        count = 40_000
        addresses = [(0, 0, "w"), (1, 0, "w"), (0, 1, "w"), (0, 0, "v")]
        rows = [Stream(s, g).signs(n, range(6), count).double() for s, g, n in addresses]
        signs = torch.cat(rows)
        assert signs.mean(1).abs().max() < 5 / math.sqrt(count)
        products = (signs @ signs.T / count).fill_diagonal_(0)
        assert products.abs().max() < 5 / math.sqrt(count)
        for lag in (1, 2, 7, 64, 256):  # nor with those that follow in a row
            shifted = (signs[:, lag:] * signs[:, :-lag]).mean(1)
            assert shifted.abs().max() < 5 / math.sqrt(count - lag)

    def test_rows_that_have_no_blocks(self):
        for rows in (range(-1, 2), range(0, 4, 2), range(WORD // 2 - 1, WORD // 2)):
            with pytest.raises(ValueError, match="pairs: needed a range from at least 0") as caught:
                Stream(0, 0).signs("w", rows, 300)  # two blocks
            assert isinstance(caught.value, TinkeringError)

    def test_the_last_row(self):
        rows = range(WORD // 2 - 3, WORD // 2 - 1)
        assert torch.equal(
            Stream(0, 0).signs("w", rows, 300), signs_by_numpy(Stream(0, 0), "w", rows, 300)
        )
