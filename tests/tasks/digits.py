"""A few digits, a network for them, and fitness functions that only look."""

import torch
from torch import nn

from tinkering.data import load
from tinkering.engines import rating
from tinkering.models import BasicBlock, SimpleResNet

DIGITS = load("mnist5k").subset(train=60, test=40)


def make_model(seed=0):
    torch.manual_seed(seed)
    return SimpleResNet(BasicBlock, [1, 1, 1, 1], width=2)


MODEL = make_model()
"""Shared, because a new one has to be captured anew: no test may change its weights."""


def with_statistics_of(model, images):
    """The module after one pass over images in train mode; its statistics are theirs."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def trusted(fitness):
    """A fitness that is not called again to find out whether it rates members apart."""
    rating._independent.add(fitness)
    return fitness
