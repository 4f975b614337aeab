"""Layers that are the same for all members are computed once, and change no number."""

import pytest
import torch
from small_nets import assert_close, lenet, loop, made, resnet
from torch import nn

from tinkering import PerturbedPopulation, StackedPopulation, bind, evaluate, plan
from tinkering.layers.centre import ConvLayer
from tinkering.models import BasicBlock, SimpleResNet

SIZE = 5


def parts():
    model = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=2).eval()
    return model, torch.randn(7, 1, 12, 12)


def around(model, pattern):
    names = {n: p.detach() for n, p in model.named_parameters() if n.startswith(pattern)}
    names = {n: p for n, p in names.items() if "bn" not in n}
    return PerturbedPopulation(names, SIZE - 1, 0.3)


def stacked(model, pattern):
    width = sum(p.numel() for n, p in model.named_parameters() if n.startswith(pattern))
    vectors = torch.randn(SIZE, width) / 5
    return StackedPopulation.from_vectors(model, vectors, parameters=f"{pattern}*")


@pytest.mark.parametrize("pattern", ["linear", "layer4", "layer2"])
@pytest.mark.parametrize("members", [around, stacked])
def test_against_a_loop(members, pattern):
    model, x = parts()
    population = members(model, pattern)
    bound = bind(model, population, x)
    assert bound.plan.shares
    for batch in (x, torch.randn(3, 1, 12, 12)):
        assert_close(bound(batch), loop(population, batch, model=model))


@pytest.mark.parametrize("members", [around, stacked])
def test_shared_layers_are_computed_once(members, monkeypatch):
    model, x = parts()
    population = members(model, "layer4")
    seen = []
    compute = ConvLayer.compute
    monkeypatch.setattr(
        ConvLayer,
        "compute",
        lambda self, given, other: seen.append(len(given)) or compute(self, given, other),
    )
    engine = "factored" if members is around else "sequential"
    bind(model, population, x, engine=engine)(x)
    own = sum(is_own(name, part) for name, part in model.named_modules())
    convolutions = sum(isinstance(part, nn.Conv2d) for part in model.modules())
    assert sum(seen) == len(x) * (convolutions - own + own * len(population))


def is_own(name, part):
    return isinstance(part, nn.Conv2d) and name.startswith("layer4")


def test_each_members_own_inputs_share_nothing():
    model, _ = parts()
    x = torch.randn(SIZE - 1, 2, 1, 12, 12)
    assert not plan(model, around(model, "linear"), x, in_dims=(0, 0)).shares


@pytest.mark.parametrize("build", [resnet, lenet])
def test_where_the_first_layer_differs(build):
    model = made(build)
    population = PerturbedPopulation(model, SIZE - 1, 0.1)
    assert not plan(model, population, torch.randn(3, 1, 28, 28)[..., :8, :8]).shares


def test_only_where_it_fits():
    model, x = parts()
    population = stacked(model, "linear")
    needed = plan(model, population, x).needed
    tight = bind(model, population, x, memory=needed - 1)
    assert not tight.plan.shares
    assert_close(tight(x), loop(population, x, model=model))


class Features(nn.Module):
    """Returns what all members have in common as well."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = self.body(x).tanh()
        return self.head(h), h


@pytest.mark.parametrize("members", [around, stacked])
def test_what_members_have_in_common_is_each_ones_own(members):
    model = Features()
    population = members(model, "head")
    x = torch.randn(6, 4)

    def erases(outputs, _):
        fitness = outputs[1].sum((1, 2)) + outputs[0].sum((1, 2))
        outputs[1].zero_()
        return fitness

    logits, features = bind(model, population, x)(x)
    found = evaluate(model, population, x, None, erases).fitness
    assert_close(found, features.sum((1, 2)) + logits.sum((1, 2)))
    assert len({row.data_ptr() for row in features}) == len(features)
