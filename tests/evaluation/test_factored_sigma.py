"""A sigma for each parameter: members run together equal a loop over modules."""

import itertools
from functools import cache

import pytest
import torch
from small_nets import (
    assert_close,
    attention,
    conv1d_net,
    convnet,
    depthwise,
    inputs_for,
    lenet,
    loop,
    made,
    norm_without_statistics,
    population_of,
    pre_activation_resnet,
    resnet,
    takes,
    transformer,
)
from torch import nn

from tinkering.evaluation.entry import forward
from tinkering.native import correction
from tinkering.noise import Dense, LowRank, Separable

KINDS = [Dense(), LowRank(1), LowRank(2), Separable(1), Separable(2)]
SIGMAS = (0.3, 0.02, 0.1, 0.0, 0.05)


@takes(1, 8, 8)
def biased_and_normed():
    """A convolution with a bias before its norm: both shifts are added in one go."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(384, 5),
    )


NETWORKS = [biased_and_normed, resnet, lenet, transformer]  # an embedding is in the last
MORE = [attention, convnet, depthwise, conv1d_net, pre_activation_resnet, norm_without_statistics]


def mixed(model, start=0):
    """Unlike numbers for neighbours, so also for the weight and the bias of a layer."""
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, itertools.cycle(SIGMAS[start:] + SIGMAS[:start]), strict=False))


@cache
def images(build):
    torch.manual_seed(1)
    return inputs_for(build, 3)


def check(build, population):
    x = images(build)
    expected = loop(population, x)
    assert_close(forward(made(build), population, x, engine="factored"), expected)


def name(value):
    return getattr(value, "__name__", str(value))


class TestEqualsALoopOverModules:
    @pytest.mark.parametrize("antithetic", [True, False])
    @pytest.mark.parametrize("kind", KINDS, ids=str)
    @pytest.mark.parametrize("build", NETWORKS, ids=name)
    def test_every_kind_of_noise(self, build, kind, antithetic):
        sigma = mixed(made(build))
        check(build, population_of(made(build), 4, sigma, noise=kind, antithetic=antithetic))

    @pytest.mark.parametrize("start", [1, 3])
    @pytest.mark.parametrize("build", [*NETWORKS, *MORE], ids=name)
    def test_every_network(self, build, start):
        check(build, population_of(made(build), 4, mixed(made(build), start)))

    @pytest.mark.parametrize("build", [biased_and_normed, lenet], ids=name)
    def test_without_kernels(self, build, monkeypatch):
        monkeypatch.setattr(correction, "library", lambda: None)
        check(build, population_of(made(build), 4, mixed(made(build))))

    @pytest.mark.parametrize("build", NETWORKS, ids=name)
    def test_only_some_parameters_evolve(self, build):
        model = made(build)
        some = dict(list(model.named_parameters())[::2])
        sigma = {name: 0.02 * place for place, name in enumerate(some, 1)}
        population = population_of({n: p.detach() for n, p in some.items()}, 4, sigma)
        x = images(build)
        expected = loop(population, x, model=model)
        assert_close(forward(model, population, x, engine="factored"), expected)


@pytest.mark.parametrize("build", [*NETWORKS, *MORE], ids=name)
def test_one_number_for_all_is_the_same_by_name(build):
    model, x = made(build), images(build)
    sigma = dict.fromkeys((name for name, _ in model.named_parameters()), 0.1)
    by_name = forward(model, population_of(model, 4, sigma), x, engine="factored")
    assert torch.equal(by_name, forward(model, population_of(model, 4, 0.1), x, engine="factored"))


@pytest.mark.parametrize("of", ["0.bias", "1.weight", "1.bias", "4.weight"])
def test_each_sigma_reaches_its_own_parameter(of):
    """With 0 for all others, the members differ by this parameter and no other."""
    model, x = made(biased_and_normed), images(biased_and_normed)
    sigma = {name: 0.3 * (name == of) for name, _ in model.named_parameters()}
    population = population_of(model, 4, sigma)
    result = forward(model, population, x, engine="factored")
    assert_close(result, loop(population, x))
    params, _ = population[0]
    changed = [n for n, p in model.named_parameters() if not torch.equal(params[n], p)]
    assert changed == [of]
