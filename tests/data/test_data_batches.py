import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkering.data import BatchOrder
from tinkering.data.shuffle import Purpose, permutation
from tinkering.errors import ArgumentError


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 90), st.integers(0, 2**64 - 1))
def test_each_epoch_holds_each_example_once(examples, batch, seed):
    batches = BatchOrder(examples, batch, seed)
    generations = -(-3 * examples // batch)
    walked = torch.cat([batches.order(g) for g in range(generations)])
    assert walked.dtype == torch.int64
    assert len(walked) == generations * batch
    for epoch in range(3):
        part = walked[epoch * examples : (epoch + 1) * examples]
        assert sorted(part.tolist()) == list(range(examples))


def test_a_generation_needs_none_before_it():
    there_and_back = [*range(30), *reversed(range(30)), 1000, 3]
    walked = BatchOrder(100, 33, 7)
    for generation in there_and_back:
        fresh = BatchOrder(100, 33, 7).order(generation)
        assert torch.equal(walked.order(generation), fresh)


def test_what_is_handed_out_may_be_changed():
    batches = BatchOrder(10, 10)
    first = batches.order(0)
    kept = first.clone()
    first.zero_()
    assert torch.equal(batches.order(0), kept)


def test_epochs_and_seeds_differ():
    orders = [BatchOrder(1000, 1000, seed).order(g) for seed in (0, 1) for g in (0, 1)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            # Two independent orders of 1000 agree in about one place.
            assert (one == other).sum() < 12


def test_the_order_is_the_documented_one():
    # Philox keyed by (seed, epoch), purpose in the last word of the counter, sorted bits.
    generator = np.random.Philox(
        key=np.array([5, 2], dtype=np.uint64), counter=np.array([0, 0, 0, 1], dtype=np.uint64)
    )
    expected = sorted(range(50), key=generator.random_raw(50).tolist().__getitem__)
    assert BatchOrder(50, 50, 5).order(2).tolist() == expected


def test_positions_are_unbiased():
    # Where example 0 lands, over 4000 epochs: each of 8 places 500 times, give or take.
    places = [int((BatchOrder(8, 8, 3).order(g) == 0).nonzero()) for g in range(4000)]
    counts = np.bincount(places, minlength=8)
    chi_square = ((counts - 500) ** 2 / 500).sum()
    assert chi_square < 24.3  # 7 degrees of freedom, one chance in a thousand.


def test_purposes_do_not_share_numbers():
    orders = [permutation(1000, seed=1, stream=0, purpose=purpose) for purpose in Purpose]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).sum() < 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 0), "examples: needed an integer of at least 1, got 0."),
        ((1, -2, 0), "batch: needed an integer of at least 1, got -2."),
        ((1, 1, -1), "seed: needed an integer from 0 to 2**64 - 1, got -1."),
        ((1, 1, 2**64), "seed: needed an integer from 0 to 2**64 - 1, got 18446744073709551616."),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ArgumentError) as caught:
        BatchOrder(*arguments)
    assert str(caught.value) == message


def test_a_negative_generation():
    with pytest.raises(ArgumentError, match="generation: needed an integer of at least 0, got -1"):
        BatchOrder(3, 2).order(-1)
