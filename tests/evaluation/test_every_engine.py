"""Conformance: engines, networks, noise, sigmas, dtypes and policies against a loop over modules.

What is new joins with one entry of one table: `ENGINES`, `NETWORKS`, `NOISE`.
"""

import copy
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from small_nets import (
    NETWORKS,
    InPlace,
    Shared,
    assert_close,
    biased_and_normed,
    centres_statistics,
    conv1d_net,
    convnet,
    depends_on_data,
    depthwise,
    engine_for,
    inputs_for,
    lenet,
    loop,
    made,
    modules_of,
    normalised_perceptron,
    normed,
    perceptron,
    population_of,
    pre_activation_resnet,
    resnet,
    transformer,
    vgg,
)

from tinkering.engines.table import ENGINES
from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.evaluation.batchnorm import Reference
from tinkering.evaluation.entry import forward
from tinkering.layers import onednn
from tinkering.native import calls
from tinkering.noise import Dense, LowRank, Separable
from tinkering.population import StackedPopulation

NOISE = [Dense(), LowRank(1), LowRank(2), Separable(1), Separable(2)]
SIGMAS = (0.3, 0.02, 0.1, 0.0, 0.05)
POLICIES = ["running", "batch", "reference"]
SIZE, IMAGES = 4, 3
FACTORED = [build for build in NETWORKS if engine_for(build) == "factored"]


@dataclass(frozen=True)
class Case:
    """A population of a network, how it is evaluated, and on what."""

    build: Callable
    engine: str = "auto"
    noise: object = LowRank(1)
    """None: members of their own, which share no centre."""
    antithetic: bool = True
    sigma: int | None = None
    """Where the sigmas of the parameters begin among `SIGMAS`; None: one for all."""
    own: bool = False
    """Whether each member has inputs of its own."""
    policy: str = "running"
    dtype: torch.dtype = torch.float32
    held: torch.dtype = torch.float32
    """Of the module, the population and the inputs."""

    @property
    def in_dims(self):
        return (0, 0) if self.own else (0, None)


@cache
def model_for(build, held):
    return made(build) if held == torch.float32 else copy.deepcopy(made(build)).to(held)


@cache
def population_for(build, noise, antithetic, sigma, held):
    model = model_for(build, held)
    if noise is None:
        members = modules_of(build, SIZE)
        params, buffers = (
            {n: v.to(held) if v.is_floating_point() else v for n, v in values.items()}
            for values in (members.params, members.buffers)
        )
        return members if held == torch.float32 else StackedPopulation(params, buffers)
    if sigma is None:
        return population_of(model, SIZE, noise=noise, antithetic=antithetic)
    # Unlike numbers for neighbours, so also for the weight and the bias of a layer.
    names = [name for name, _ in model.named_parameters()]
    sigmas = dict(zip(names, itertools.cycle(SIGMAS[sigma:] + SIGMAS[:sigma]), strict=False))
    return population_of(model, SIZE, sigmas, noise=noise, antithetic=antithetic)


@cache
def inputs_of(build, own):
    torch.manual_seed(1)
    return inputs_for(build, *([SIZE] if own else []), IMAGES)


@cache
def reference_for(build):
    torch.manual_seed(2)
    return inputs_for(build, 6)


@cache
def expected_for(build, noise, antithetic, sigma, own, policy):
    population = population_for(build, noise, antithetic, sigma, torch.float32)
    if policy == "reference":
        population = population.with_buffers(centres_statistics(made(build), reference_for(build)))
    in_dims = (0, 0) if own else (0, None)
    return loop(population, inputs_of(build, own), in_dims, of_batch=policy == "batch")


def refusal(case):
    """The error that is documented for a case, and a part of what it says."""
    stacked = case.noise is None
    if stacked and (case.engine == "factored" or case.policy == "reference"):
        return ArgumentError, "members that share no centre"
    of_steps = case.engine in ("batched", "factored")
    refused = of_steps and engine_for(case.build) != "factored"
    if refused or (case.engine == "vmapped" and case.build is depends_on_data and case.own):
        return UnsupportedLayerError, case.build.unknown
    if case.engine == "vmapped" and hasattr(case.build, "vmapped"):
        return UnsupportedLayerError, case.build.vmapped
    return None


def compute(case):
    """The engine gives what the loop gives, or refuses with the error that is documented."""
    kind = case.build, case.noise, case.antithetic, case.sigma
    x = inputs_of(case.build, case.own)
    x = x.to(case.held) if x.is_floating_point() else x
    model, population = model_for(case.build, case.held), population_for(*kind, case.held)
    norm = Reference(reference_for(case.build)) if case.policy == "reference" else case.policy
    options = {"in_dims": case.in_dims, "engine": case.engine, "norm": norm, "dtype": case.dtype}
    if refusal(case):
        error, said = refusal(case)
        with pytest.raises(error, match=said):
            forward(model, population, x, **options)
        return
    with warnings.catch_warnings():  # "auto" says where it is slow; test_engines.py looks
        warnings.filterwarnings("ignore", "members share a centre, but")
        result = forward(model, population, x, **options)
    assert result.dtype == torch.float32
    expected = expected_for(*kind, case.own, case.policy)
    if case.dtype == torch.float32:
        assert_close(result, expected)
        return
    difference = (result - expected).abs().max() / expected.abs().max()
    assert 1e-6 < difference <= 0.05  # it was computed in bfloat16


computed = cache(compute)
"""A case that stands in two tables is computed once; one that fails, fails in both."""


def name(value):
    return getattr(value, "__name__", str(value))


networks = pytest.mark.parametrize("build", NETWORKS, ids=name)
engines = pytest.mark.parametrize("engine", list(ENGINES))
centre_or_modules = pytest.mark.parametrize("noise", [LowRank(1), None], ids=str)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("noise", "antithetic"), [*itertools.product(NOISE, (True, False)), (None, True)], ids=str
)
@pytest.mark.parametrize("build", [normalised_perceptron, InPlace], ids=name)
def test_the_full_product(build, noise, antithetic, policy, own):
    for engine in ("auto", *ENGINES):
        computed(Case(build, engine, noise, antithetic, own=own, policy=policy))


@engines
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@centre_or_modules
@networks
def test_every_network(build, noise, own, engine):
    computed(Case(build, engine, noise, own=own))


@engines
@pytest.mark.parametrize("policy", POLICIES[1:])
@pytest.mark.parametrize("build", list(filter(normed, NETWORKS)), ids=name)
def test_every_policy(build, policy, engine):
    computed(Case(build, engine, own=True, policy=policy))


@networks
@pytest.mark.parametrize("noise", NOISE, ids=str)
def test_every_noise(build, noise):
    computed(Case(build, noise=noise, antithetic=False))


@engines
@centre_or_modules
@networks
def test_in_bfloat16(build, noise, engine):
    computed(Case(build, engine, noise, dtype=torch.bfloat16))


@engines
@centre_or_modules
def test_what_is_held_in_double_precision(noise, engine):
    computed(Case(resnet, engine, noise, held=torch.float64))


@pytest.mark.parametrize("start", [1, 3])
@pytest.mark.parametrize("build", FACTORED, ids=name)
def test_a_sigma_for_each_parameter(build, start):
    computed(Case(build, "factored", sigma=start))


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("noise", NOISE, ids=str)
@pytest.mark.parametrize("build", [biased_and_normed, resnet, lenet, transformer], ids=name)
def test_a_sigma_for_each_parameter_and_every_noise(build, noise, antithetic):
    computed(Case(build, "factored", noise, antithetic, sigma=0))


BESIDE_KERNELS = [resnet, convnet, vgg, depthwise, conv1d_net, transformer, perceptron, InPlace]
BESIDE_KERNELS += [pre_activation_resnet, Shared, lenet, biased_and_normed]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("build", BESIDE_KERNELS, ids=name)
def test_without_kernels(monkeypatch, build, packed, native):
    """What a machine without a compiler, or another build of PyTorch, falls back to."""
    if not native:
        monkeypatch.setattr(calls, "available", lambda _: False)
    if not packed:
        monkeypatch.setattr(onednn, "packed_convolutions_work", lambda _: False)
    around = Case(build, "factored", own=True)
    for noise in (LowRank(1), Separable(2), Dense()):
        compute(replace(around, noise=noise))
    compute(replace(around, sigma=0))
    compute(Case(build, noise=None, own=True))
