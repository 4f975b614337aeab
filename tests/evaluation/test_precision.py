"""What bfloat16 keeps of the order of members, on real digits."""

from functools import cache

import pytest
import torch

import tinkering
from tinkering.data import load
from tinkering.evaluation.batchnorm import Reference
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.population import PerturbedPopulation

MEMBERS = IMAGES = 64
DTYPES = (torch.float32, torch.bfloat16)


@cache
def network():
    torch.manual_seed(0)
    return SimpleResNet(BasicBlock, [1, 1, 1, 1], width=8).eval()


@cache
def fitness(engine, dtype, sigma):
    """Minus the cross-entropy of members whose centre has the statistics of other digits."""
    digits = load("mnist5k").train
    x, y, others = digits.x[:IMAGES], digits.y[:IMAGES], digits.x[-512:]
    population = PerturbedPopulation(network(), size=MEMBERS, sigma=sigma)
    return tinkering.evaluate(
        network(), population, x, y, dtype=dtype, engine=engine, norm=Reference(others)
    ).fitness


def ranks(values):
    return values.argsort().argsort().double()


def rank_correlation(first, second):
    return torch.corrcoef(torch.stack([ranks(first), ranks(second)]))[0, 1].item()


@pytest.mark.parametrize(("sigma", "least"), [(0.02, 0.99), (0.001, 0.95)])
def test_bfloat16_ranks_members_as_float32_does(sigma, least):
    """The noise is added to the centre's result in float32: rounding a sum would lose more."""
    wide, narrow = (fitness("factored", dtype, sigma) for dtype in DTYPES)
    assert wide.unique().numel() == MEMBERS
    assert not torch.equal(wide, narrow)  # it was computed in bfloat16
    assert rank_correlation(wide, narrow) >= least


def test_errors_of_bfloat16_are_small_beside_the_differences_between_members():
    """The part of the variance that is rounding: a sixteenth at the smallest sigma in use."""
    wide, narrow = (fitness("factored", dtype, 0.001) for dtype in DTYPES)
    assert (wide - narrow).std() < wide.std() / 4
