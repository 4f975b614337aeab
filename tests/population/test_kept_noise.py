"""Noise that is kept for the update: the same numbers, in as much memory as was allowed."""

import copy
import gc
import pickle
import weakref
from functools import partial
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinkering.engines.thread_pool import map_in_order
from tinkering.noise import Dense, LowRank, Separable, Stream, blocks
from tinkering.population import PerturbedPopulation

KINDS = [Dense(), LowRank(1), LowRank(3), Separable(1), Separable(2)]
PLENTY = 1 << 24
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


def make_model():
    torch.manual_seed(3)
    layers = nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), nn.Flatten(), nn.Linear(20, 7)
    return nn.Sequential(*layers).requires_grad_(False)


def make(kind=None, size=24, antithetic=True, generation=5, model=None):
    centre = model or make_model()
    return PerturbedPopulation(
        centre, size, 0.1, kind, seed=9, generation=generation, antithetic=antithetic
    )


def summed(population, weights):
    """The sum over members that are built one by one."""
    totals = {name: torch.zeros(p.shape).double() for name, p in population.params.items()}
    for at, weight in enumerate(weights.tolist()):
        member = population.member(at)[0]
        for name, p in population.params.items():
            totals[name] += weight * (member[name].double() - p.double()) / 0.1
    return totals


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def noise_of(draw):
    return {name: each[draw.rows].scaled(draw.signs).dense() for name, each in draw.noise.items()}


@pytest.fixture
def few_rows():
    """Blocks of eight pairs, pieces of three: sums go over several, whose last is not whole."""
    with patch.object(blocks, "_ROWS", 8), patch.object(blocks, "_PIECE", 3):
        yield


@pytest.fixture
def writes():
    """What is drawn, as numbers of pairs."""
    counts = []
    write = Stream.write

    def counted(stream, rows, pairs):
        counts.append(len(pairs))
        write(stream, rows, pairs)

    with patch.object(Stream, "write", counted):
        yield counts


@kinds
@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.usefixtures("few_rows")
class TestSum:
    @given(data=st.data())
    @settings(max_examples=10)
    def test_it_is_the_sum_over_materialised_members(self, kind, antithetic, data):
        size = data.draw(st.integers(1, 20)) * (2 if antithetic else 1)
        start = data.draw(st.integers(0, size - 1))
        stop = data.draw(st.integers(start + 1, size))
        part = make(kind, size, antithetic)[start:stop]
        weights = torch.randn(len(part))
        expected = summed(part, weights)
        for members in (part, part.keeping(PLENTY)):
            for name, total in members.weighted_noise(weights).items():
                torch.testing.assert_close(total.double(), expected[name], rtol=1e-4, atol=1e-4)

    @given(data=st.data())
    @settings(max_examples=10)
    def test_its_bits_depend_neither_on_what_was_kept_nor_on_threads(self, kind, antithetic, data):
        size = 2 * data.draw(st.integers(1, 30))
        weights = torch.randn(size)
        expected = make(kind, size, antithetic).weighted_noise(weights)
        row = 4 * sum(blocks.padded(kind.count(p.shape)) for p in make_model().parameters())
        kept = make(kind, size, antithetic).keeping(data.draw(st.integers(0, 5)) * 8 * row)
        for _ in range(data.draw(st.integers(0, 6))):
            start = data.draw(st.integers(0, size - 1))
            kept[start : data.draw(st.integers(start + 1, size))].draw()
        for threads in (1, 2):
            mapped = partial(map_in_order, threads=threads)
            assert same(kept.weighted_noise(weights, mapped), expected)

    @given(data=st.data())
    @settings(max_examples=10)
    def test_members_have_the_noise_that_they_have_anyway(self, kind, antithetic, data):
        plain = make(kind, antithetic=antithetic)
        kept = plain.keeping(PLENTY)
        for _ in range(4):
            start = data.draw(st.integers(0, 23))
            part = slice(start, data.draw(st.integers(start + 1, 24)))
            assert same(noise_of(kept[part].draw()), noise_of(plain[part].draw()))


@pytest.mark.parametrize("kind", [LowRank(1), Dense()], ids=str)
def test_threads_inside_operations_change_no_bit(kind):
    model = nn.Sequential(nn.Conv2d(32, 64, 3), nn.Linear(64, 33)).requires_grad_(False)
    population, before = make(kind, 200, model=model), torch.get_num_threads()
    weights, results = torch.randn(200), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            mapped = partial(map_in_order, threads=threads)
            results.append(population.weighted_noise(weights, mapped))
    finally:
        torch.set_num_threads(before)
    assert same(*results)


@pytest.mark.usefixtures("few_rows")
class TestKept:
    def test_what_was_drawn_is_not_drawn_again(self, writes):
        population = make(LowRank(1), size=40).keeping(PLENTY)
        for start in range(0, 40, 4):
            population[start : start + 4].draw()
        assert sum(writes) == 20
        population.with_buffers({})[4:16].draw()
        population.weighted_noise(torch.randn(40))
        assert sum(writes) == 20

    def test_populations_of_the_same_members_share_it_while_one_lives(self, writes):
        first = make(LowRank(1), size=16).keeping(PLENTY)
        first.draw()
        again = make(LowRank(1), size=16).keeping(PLENTY)
        again.weighted_noise(torch.randn(16))
        assert sum(writes) == 8
        make(LowRank(1), size=16, generation=6).keeping(PLENTY).draw()
        make(LowRank(1), size=14).keeping(PLENTY).draw()
        make(LowRank(2), size=16).keeping(PLENTY).draw()
        assert sum(writes) == 8 + 8 + 7 + 8
        del first, again
        gc.collect()
        make(LowRank(1), size=16).keeping(PLENTY).draw()
        assert sum(writes) == 8 + 8 + 7 + 8 + 8

    def test_it_goes_with_the_last_population(self):
        population = make(LowRank(1), size=16).keeping(PLENTY)
        population.draw()
        assert population._blocks._kept
        held = weakref.ref(population._blocks)
        del population
        gc.collect()
        assert held() is None

    def test_no_more_is_kept_than_was_allowed(self):
        row = 4 * sum(blocks.padded(LowRank(1).count(p.shape)) for p in make_model().parameters())
        for most in (0, 8 * row - 1, 8 * row, 17 * row, PLENTY):
            population = make(LowRank(1), size=100, generation=most).keeping(most)
            population.weighted_noise(torch.randn(100))
            kept = population._blocks._kept.values()
            storages = {
                rows.untyped_storage().data_ptr(): rows.untyped_storage().nbytes()
                for block in kept
                for rows in block._rows.values()
            }
            assert sum(storages.values()) == min(most // (8 * row) * 8 * row, 50 * row)

    def test_it_stays_in_this_process(self):
        population = make(LowRank(1), size=400).keeping(PLENTY)
        before = len(pickle.dumps(population))
        population.weighted_noise(torch.randn(400))
        assert population._blocks._kept
        for other in (pickle.loads(pickle.dumps(population)), copy.deepcopy(population)):
            assert not other._blocks._kept
            assert same(noise_of(other[3:9].draw()), noise_of(population[3:9].draw()))
        assert len(pickle.dumps(population)) == before


def test_a_sum_of_dense_noise_holds_some_members_at_a_time():
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            if isinstance(out, torch.Tensor):
                self.numbers = max(self.numbers, out.untyped_storage().nbytes() // 4)
            return out

    model = nn.Linear(1000, 100).requires_grad_(False)
    population = make(Dense(), size=1000, antithetic=False, model=model)
    with patch.object(blocks, "_BYTES", 20 * 4 * 101_000), Largest() as largest:
        population = make(Dense(), size=1000, antithetic=False, model=model)
        population[:100].weighted_noise(torch.randn(100))
    assert 101_000 < largest.numbers <= 20 * 101_000
