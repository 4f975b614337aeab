"""Fitness against plain loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinkering.errors import ArgumentError
from tinkering.evaluation.fitness import accuracy, checked, negative_cross_entropy

sizes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))


def drawn(members, batch, classes, seed=0):
    torch.manual_seed(seed)
    logits = 3 * torch.randn(members, batch, classes)
    return logits, torch.randint(classes, (members, batch))


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
        "fitness: needed a tensor of shape [members] = [3], one number a member, got a tensor of "
        "shape []. Average over the images of a member (dimension 1), not over the members."
    )
