"""Small modules to stack, and the message of a refusal, for the tests of stacked populations."""

import pytest
import torch
from torch import nn

from tinkering.errors import TinkeringError


def make_model(seed=7):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    model(torch.randn(8, 2, 4, 4))  # so that members differ in their statistics, too
    return model.eval()


def make_models(members=4):
    return [make_model(seed) for seed in range(members)]


def make_tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


WIDTH = sum(p.numel() for p in make_model().parameters())


def message_of(build, *arguments, **named):
    with pytest.raises(ValueError, match="needed") as caught:
        build(*arguments, **named)
    assert isinstance(caught.value, TinkeringError)
    return str(caught.value)
