"""What is learned of a layer is its average Jacobian, by autograd, and what that is good for."""

import pytest
import torch
import torch.nn.functional as F
from fed_back import Place, evaluation_of, through
from perturbed import cosine

from tinkering.engines.cells import cells_of
from tinkering.models import BasicBlock, SimpleResNet

CLASSES = 3
PLACES = [
    Place("layer1", ("conv1",), before=True),
    *(
        place
        for own in ("layer1.0", "layer2.0", "layer3.0", "layer4.0")
        for place in (
            Place(f"{own}.conv2", (f"{own}.conv1",), before=True),
            Place(own, (f"{own}.conv2",)),
        )
    ),
]
LAST = ("layer4.0.conv2.weight", "layer4.0.shortcut.0.weight")
"""Of the last stage, behind whose result nothing but a mean and a linear layer is."""


def network(width, images, size):
    torch.manual_seed(1)
    model = SimpleResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES, width=width)
    x = torch.randn(images, 1, size, size)
    with torch.no_grad():
        for _ in range(20):  # so that norms do norm
            model(x)
    return model.eval(), x


def flat(value):
    return value.permute(0, 2, 3, 1).flatten(1)


def jacobians(model, x, place, most):
    """Of each image's outputs by each cell's noise ``[images, outputs, cells]``, and its size."""
    logits, value = through(model, x, place)
    cells = cells_of(value, most)
    open_ = flat(value > 0).float()
    found = []
    for output in range(CLASSES):
        (slope,) = torch.autograd.grad(logits[:, output].sum(), value, retain_graph=True)
        found.append(cells.summed(flat(slope) * open_))
    return torch.stack(found, 1), cells.summed(open_)


def learned(model, x, place, most):
    """What would be known of a layer from infinitely many members."""
    each, noise = jacobians(model, x, place, most)
    mean = (each * noise.unsqueeze(1)).mean(0)
    return torch.cat([mean, noise.square().mean(0, keepdim=True)])


def expected_cosine(each, noise, members):
    """Of a mean over members with the average of what they are noisy readings of.

    A member's response is the sum over cells of Jacobian x sign; times a cell's noise, it is that
    cell's Jacobian, and the others' with random signs.
    """
    squares = noise.square().unsqueeze(1)
    signal = (each * noise.unsqueeze(1)).mean(0).square().sum()
    all_cells = each.square().sum(2, keepdim=True) * squares.sum(2, keepdim=True)
    own = (each.square() * squares).sum(2, keepdim=True)
    others = (all_cells - own).sum((1, 2)).mean()
    return (signal / (signal + others / members)).sqrt().item()


class TestConverges:
    @pytest.mark.parametrize(
        ("width", "images", "size", "samples"), [(8, 32, 28, 8), (64, 32, 8, 8)], ids=["8", "64"]
    )
    @pytest.mark.parametrize("most", [1_000_000, 1000, 1], ids=["pixel", "block", "channel"])
    def test_as_a_mean_of_members_does(self, width, images, size, samples, most):
        model, x = network(width, images, size)
        y = torch.arange(images) % CLASSES
        settings = {"sigma": 0.02, "samples": samples, "cells": most, "y": y}
        with torch.no_grad():
            effects = evaluation_of(model, x, **settings).effects
        ratios = []
        for place in PLACES:
            each, noise = jacobians(model, x, place, most)
            effect = effects[place.name]
            assert effect.members == images * samples
            mean = (each * noise.unsqueeze(1)).mean(0)
            found = cosine(effect.total[:-1], mean)
            expected = expected_cosine(each, noise, effect.members)
            ratios.append(found / expected)
            # Of a few outputs' rows, whose noise differs from its mean.
            assert ratios[-1] == pytest.approx(1, abs=0.25), place.name
        assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.06)


class TestCarriesBack:
    @pytest.mark.parametrize(
        ("width", "images", "size", "most", "least"),
        [
            (8, 64, 28, 1_000_000, 0.3),
            (8, 64, 28, 1000, 0.3),
            (8, 64, 28, 1, 0.3),
            (64, 32, 8, 1_000_000, 0.3),
            (64, 32, 8, 1000, 0.02),
            (64, 32, 8, 1, 0.0),
        ],
    )
    def test_the_fitness_to_the_weights(self, width, images, size, most, least):
        model, x = network(width, images, size)
        y = torch.arange(images) % CLASSES
        known = {place.name: learned(model, x, place, most) for place in PLACES}
        F.cross_entropy(model(x), y).neg().backward()
        true = {name: p.grad for name, p in model.named_parameters()}
        settings = {"learned": known, "cells": most, "y": y, "readings": 500}
        with torch.no_grad():
            gradient = evaluation_of(model, x, **settings).gradient
        found = {name: cosine(value, true[name]) for name, value in gradient.items()}
        assert min(found[name] for name in LAST) > 0.95
        assert found["layer4.0.conv1.weight"] > 0.78
        # Further from the outputs an average tells less of an image, and of fewer cells less.
        kernels = [name for name in found if "conv" in name or "shortcut.0" in name]
        assert min(found[name] for name in kernels) > least
