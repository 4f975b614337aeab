"""Fitness against plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_nets import fitness_of
from torch import nn

from tinkering.engines.rating import Rater, Targets
from tinkering.errors import ArgumentError
from tinkering.evaluation.fitness import accuracy, negative_cross_entropy
from tinkering.graph.tree import tree_of
from tinkering.population import PerturbedPopulation

sizes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))


def drawn(members, batch, classes, seed=0):
    torch.manual_seed(seed)
    logits = 3 * torch.randn(members, batch, classes)
    return logits, torch.randint(classes, (members, batch))


def checked(fitness, logits, labels):
    """What all members are rated at once."""
    tree, tensors = tree_of(labels, str)
    rater = Rater(fitness, lambda tensors: tensors[0], Targets(tree, tuple(tensors), (True,)))
    return rater(slice(0, len(logits)), [logits])


@given(sizes, st.integers(0, 10))
def test_negative_cross_entropy_is_the_mean_log_of_the_right_classes_share(shape, seed):
    logits, labels = drawn(*shape, seed)
    result = negative_cross_entropy(logits, labels)
    assert result.shape == shape[:1]
    for member in range(shape[0]):
        total = 0.0
        for image in range(shape[1]):
            row = [math.exp(value) for value in logits[member, image].tolist()]
            total += math.log(row[labels[member, image]] / sum(row))
        assert result[member].item() == pytest.approx(total / shape[1], rel=1e-4, abs=1e-5)


@given(sizes, st.integers(0, 10))
def test_accuracy_is_the_share_of_right_answers(shape, seed):
    logits, labels = drawn(*shape, seed)
    result = accuracy(logits, labels)
    for member in range(shape[0]):
        right = 0
        for image in range(shape[1]):
            row = logits[member, image].tolist()
            right += row.index(max(row)) == labels[member, image].item()
        assert result[member].item() == pytest.approx(right / shape[1])


@pytest.mark.parametrize("fitness", [negative_cross_entropy, accuracy])
def test_a_member_is_judged_by_its_own_logits_and_labels(fitness):
    logits, labels = drawn(5, 4, 3)
    whole = fitness(logits, labels)
    for member in range(5):
        alone = fitness(logits[member : member + 1], labels[member : member + 1])
        torch.testing.assert_close(alone, whole[member : member + 1])


def test_a_nan_stays_with_its_member():
    logits, labels = drawn(3, 4, 5)
    logits[1, 2, 0] = math.nan
    assert negative_cross_entropy(logits, labels).isnan().tolist() == [False, True, False]


def test_logits_that_are_large_do_not_overflow():
    logits = torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]]])
    result = negative_cross_entropy(logits, torch.zeros(2, 1, dtype=torch.long))
    assert result.tolist() == [0.0, -2e4]


def test_checked_hands_a_number_a_member_through():
    logits, labels = drawn(3, 4, 5)
    assert torch.equal(checked(accuracy, logits, labels), accuracy(logits, labels))


def test_checked_refuses_a_number_for_all():
    logits, labels = drawn(3, 4, 5)
    with pytest.raises(ArgumentError) as caught:
        checked(lambda x, _: x.mean(), logits, labels)
    assert str(caught.value) == (
        "fitness: needed a tensor of shape [members] = [3], one scalar per member, got a tensor of "
        "shape []. Average over the examples of a member (dimension 1), not over the members."
    )


class TestRatedApart:
    """A member's fitness must not depend on who is beside it: it is called on portions."""

    MODEL = nn.Sequential(nn.Linear(4, 3)).eval()
    for value in MODEL.parameters():  # sums without rounding: who is alike has the same mean
        value.data.mul_(8).round_().div_(8)
    X, Y = torch.ones(2, 4), torch.zeros(2, dtype=torch.long)

    def rate(self, fitness, size=256, engine="auto"):
        population = PerturbedPopulation(self.MODEL, size, 0.5, antithetic=False)
        return fitness_of(self.MODEL, population, self.X, self.Y, fitness, engine=engine)

    @pytest.mark.parametrize("engine", ["factored", "sequential", "vmapped"])
    @pytest.mark.parametrize(
        "over_members",
        [
            lambda values: values - values.mean(),
            lambda values: values / values.abs().max(),
            lambda values: values.argsort().argsort().float(),
            lambda values: values.softmax(0),
            lambda values: values - values.cumsum(0),
        ],
    )
    @pytest.mark.parametrize("size", [2, 256])
    def test_what_ranks_or_normalises_is_refused(self, over_members, engine, size):
        with pytest.raises(ArgumentError) as caught:
            self.rate(lambda logits, _: over_members(logits.sum((1, 2))), size, engine)
        assert str(caught.value) == (
            "fitness: needed a function that rates each member by itself, as it is called on some "
            "at a time, got one that gives a member another fitness beside other members. To rank "
            "or normalise over members, do so with what evaluate returns."
        )

    def test_what_does_not_is_asked_once(self):
        calls = []

        def fitness(logits, labels):
            calls.append(len(logits))
            return logits.sum((1, 2)) - labels.sum(1)

        first = self.rate(fitness)
        asked = sum(calls)
        assert torch.equal(self.rate(fitness), first)
        assert asked > 256 == sum(calls) - asked

    def test_what_is_random_is_let_be(self):
        torch.manual_seed(0)
        assert self.rate(lambda logits, _: torch.rand(len(logits))).shape == (256,)

    def test_what_is_random_and_says_one_of_two_things_is_let_be(self):
        """It may well say the same twice."""
        numbers = np.random.default_rng(0)

        def of_one_image(logits, labels):
            chosen = numbers.integers(2)
            return (logits[:, chosen].argmax(1) == labels[:, chosen]).float()

        for _ in range(20):
            assert self.rate(of_one_image, 8).shape == (8,)

    def test_members_that_are_alike_say_nothing(self):
        def centred(logits, _):
            values = logits.sum((1, 2))
            return values - values.mean()

        population = PerturbedPopulation(self.MODEL, 6, 0.0)
        fitness_of(self.MODEL, population, self.X, self.Y, centred)
        with pytest.raises(ArgumentError, match="rates each member by itself"):
            self.rate(centred, 6)

    def test_small_numbers_count(self):
        with pytest.raises(ArgumentError, match="rates each member by itself"):
            self.rate(lambda logits, _: 1e-9 * (logits.sum((1, 2)) - logits.sum((1, 2)).mean()))

    def test_a_loss_of_all_members_together(self):
        with pytest.raises(ArgumentError, match="negative_cross_entropy does not"):
            checked(nn.CrossEntropyLoss(), torch.zeros(2, 1, 3), torch.zeros(2, 1).long())

    def test_not_finite_is_no_difference(self):
        result = self.rate(lambda logits, _: logits.sum((1, 2)) * math.nan)
        assert result.isnan().all()

    def test_an_object_without_a_hash(self):
        class Rate:
            __hash__ = None

            def __call__(self, logits, labels):
                del labels
                return logits.sum((1, 2))

        assert self.rate(Rate()).shape == (256,)


@pytest.mark.parametrize(
    ("rate", "dtype"),
    [
        (lambda logits, labels: (logits.argmax(2) == labels).sum(1), torch.int64),
        (lambda logits, labels: (logits.argmax(2) == labels).all(1), torch.bool),
    ],
)
def test_counts_and_successes_become_decimals(rate, dtype):
    logits, labels = drawn(5, 4, 3)
    assert rate(logits, labels).dtype == dtype
    result = checked(rate, logits, labels)
    assert result.dtype == torch.float32
    assert torch.equal(result, rate(logits, labels).float())


def test_labels_are_not_the_callers():
    logits, labels = drawn(5, 4, 3)
    before = labels.clone()

    def erases(logits, labels):
        labels.zero_()
        return logits.sum((1, 2))

    checked(erases, logits, labels)
    assert torch.equal(labels, before)
