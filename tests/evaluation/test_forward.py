"""Conformance: every engine, population, policy and network against a loop over modules."""

import copy
import itertools
import warnings
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from small_nets import (
    NETWORKS,
    InPlace,
    assert_close,
    centres_statistics,
    convnet,
    depends_on_data,
    engine_for,
    fitness_of,
    inputs_for,
    loop,
    made,
    modules_of,
    normalised_perceptron,
    normed,
    perceptron,
    population_of,
    resnet,
    trusted,
)

from tinkering.engines.table import ENGINES
from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.evaluation.batchnorm import Reference
from tinkering.evaluation.entry import forward
from tinkering.evaluation.fitness import accuracy, negative_cross_entropy
from tinkering.noise import Dense, LowRank, Separable
from tinkering.population import PerturbedPopulation

NAMES = ["auto", *ENGINES]
NOISE = [Dense(), LowRank(1), LowRank(2), Separable(1), Separable(2)]
KINDS = [*itertools.product(NOISE, (True, False)), "modules"]
POLICIES = ["running", "batch", "reference"]
SIZE, IMAGES = 4, 3

both_in_dims = pytest.mark.parametrize("in_dims", [(0, None), (0, 0)], ids=str)
engines = pytest.mark.parametrize("engine", list(ENGINES))
networks = pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)


@cache
def population_for(build, kind):
    if kind == "modules":
        return modules_of(build, SIZE)
    noise, antithetic = kind
    return population_of(made(build), size=SIZE, noise=noise, antithetic=antithetic)


@cache
def images_for(build, in_dims):
    torch.manual_seed(1)
    return inputs_for(build, *([SIZE] if in_dims == (0, 0) else []), IMAGES)


@cache
def reference_for(build):
    torch.manual_seed(2)
    return inputs_for(build, 6)


@cache
def expected_for(build, kind, in_dims, policy):
    population = population_for(build, kind)
    if policy == "reference":
        population = population.with_buffers(centres_statistics(made(build), reference_for(build)))
    return loop(population, images_for(build, in_dims), in_dims, of_batch=policy == "batch")


@cache
def check(build, kind, in_dims, policy, engine):
    """The engine gives what the loop gives, or refuses with the error that is documented.

    A combination that stands in two tables is computed once; one that fails, fails in both.
    """
    stacked = kind == "modules"
    norm = Reference(reference_for(build)) if policy == "reference" else policy
    arguments = made(build), population_for(build, kind), images_for(build, in_dims), in_dims
    refused = engine == "factored" and engine_for(build) != "factored"
    refused |= engine == "vmapped" and build is depends_on_data and in_dims == (0, 0)
    if stacked and (engine == "factored" or policy == "reference"):
        with pytest.raises(ArgumentError, match="members that share no centre"):
            forward(*arguments, engine=engine, norm=norm)
    elif refused:
        with pytest.raises(UnsupportedLayerError, match=build.unknown):
            forward(*arguments, engine=engine, norm=norm)
    else:
        with warnings.catch_warnings():  # "auto" says where it is slow; test_engines.py looks
            warnings.filterwarnings("ignore", "members share a centre, but")
            result = forward(*arguments, engine=engine, norm=norm)
        assert_close(result, expected_for(build, kind, in_dims, policy))


class TestTable:
    @both_in_dims
    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize("kind", KINDS, ids=str)
    @pytest.mark.parametrize("build", [normalised_perceptron, InPlace], ids=lambda b: b.__name__)
    def test_the_full_product(self, build, kind, policy, in_dims):
        for engine in NAMES:
            check(build, kind, in_dims, policy, engine)

    @engines
    @both_in_dims
    @pytest.mark.parametrize("kind", [(LowRank(1), True), "modules"], ids=str)
    @networks
    def test_every_network(self, build, kind, in_dims, engine):
        check(build, kind, in_dims, "running", engine)

    @engines
    @pytest.mark.parametrize("policy", POLICIES[1:])
    @pytest.mark.parametrize("build", list(filter(normed, NETWORKS)), ids=lambda b: b.__name__)
    def test_every_policy(self, build, policy, engine):
        check(build, (LowRank(1), True), (0, 0), policy, engine)

    @networks
    @pytest.mark.parametrize("noise", NOISE, ids=str)
    def test_every_noise(self, build, noise):
        check(build, (noise, False), (0, None), "running", "auto")


class TestWhoseWeights:
    def test_the_populations_count_and_not_the_modules(self):
        model = made(resnet)
        x = inputs_for(resnet, 2)
        for population in (population_of(modules_of(resnet).materialise(0)), modules_of(resnet)):
            for engine in ("auto", "sequential", "vmapped"):
                assert_close(forward(model, population, x, engine=engine), loop(population, x))

    def test_a_population_from_parameters_alone(self):
        model, other = made(resnet), modules_of(resnet).materialise(0)
        params = {name: p.detach() for name, p in other.named_parameters()}
        population = PerturbedPopulation(params, size=4, sigma=0.1)
        x = inputs_for(resnet, 2)
        assert_close(forward(model, population, x), loop(population, x, model=model))

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("kept", ["weight", "bias", "conv", "bn", "linear"])
    def test_parameters_that_do_not_evolve_are_the_modules(self, kept, engine):
        model = made(resnet)
        params = {n: p.detach() for n, p in model.named_parameters() if kept not in n}
        population = PerturbedPopulation(params, size=4, sigma=0.2)
        x = inputs_for(resnet, 2)
        expected = loop(population, x, model=model)
        assert_close(forward(model, population, x, engine=engine), expected)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_sigma_zero_is_the_centre(self, engine):
        model = made(resnet)
        x = inputs_for(resnet, 3)
        result = forward(model, population_of(model, size=4, sigma=0.0), x, engine=engine)
        expected = model(x).detach()
        for member in result:
            assert_close(member[None], expected[None])

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("norm", ["running", "batch"])
    def test_what_is_changed_in_the_module_between_calls_counts(self, engine, norm):
        """A forward that is kept for a module must not keep its numbers."""
        model = copy.deepcopy(made(InPlace))
        x = inputs_for(InPlace, 3)
        names = {"conv1.weight", "linear.bias"}  # the others are the module's own
        before = None
        for _ in range(2):
            params = {n: p.detach() for n, p in model.named_parameters() if n in names}
            population = PerturbedPopulation(params, size=4, sigma=0.2)
            population = population.with_buffers(dict(model.named_buffers()))
            result = forward(model, population, x, engine=engine, norm=norm)
            assert_close(result, loop(population, x, model=model, of_batch=norm == "batch"))
            assert before is None or not torch.allclose(result, before, rtol=1e-2)
            before = result
            with torch.no_grad():
                model.conv1.weight.mul_(1.3)
                model.conv2.weight.add_(0.2)
                model.bn1.running_mean.add_(0.5)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_everything_is_left_as_it_was(self, engine):
        model = made(resnet)
        population = population_of(model)
        held = {name: value.clone() for name, value in model.state_dict().items()}
        where = {name: p.data_ptr() for name, p in model.named_parameters()}
        buffers = {name: value.clone() for name, value in population.buffers.items()}
        x = inputs_for(resnet, 3)
        images = x.clone()
        for norm in ("running", "batch", Reference(inputs_for(resnet, 4))):
            result = forward(model, population, x, engine=engine, norm=norm)
            assert not result.requires_grad
        assert all(torch.equal(held[name], v) for name, v in model.state_dict().items())
        assert where == {name: p.data_ptr() for name, p in model.named_parameters()}
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        assert all(torch.equal(buffers[name], v) for name, v in population.buffers.items())
        assert all(torch.equal(held[name], p) for name, p in population.params.items())
        assert torch.equal(x, images)
        assert not any(layer.training for layer in model.modules())


class TestEvaluate:
    @both_in_dims
    @engines
    @pytest.mark.parametrize("fitness", [negative_cross_entropy, accuracy])
    def test_is_the_fitness_of_the_forward(self, in_dims, fitness, engine):
        model = made(convnet)
        population = population_of(model, size=10)
        x = inputs_for(convnet, *([10] if in_dims == (0, 0) else []), 7)
        y = torch.randint(5, x.shape[:-3])
        result = fitness_of(model, population, x, y, fitness, in_dims, engine=engine)
        expected = fitness(loop(population, x, in_dims), y.expand(10, 7))
        assert result.shape == (10,)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
        assert result.unique().numel() > 1

    def test_the_default_is_minus_the_cross_entropy(self):
        model = made(perceptron)
        population = population_of(model)
        x, y = inputs_for(perceptron, 4), torch.tensor([0, 4, 2, 2])
        expected = torch.stack([-F.cross_entropy(logits, y) for logits in loop(population, x)])
        torch.testing.assert_close(fitness_of(model, population, x, y), expected)

    @engines
    def test_a_fitness_is_called_with_the_labels_of_its_members(self, engine):
        model = made(perceptron)
        x = inputs_for(perceptron, 90, 1)
        y = torch.arange(90).view(90, 1)
        seen = []

        @trusted
        def label(logits, labels):
            assert logits.shape == (len(labels), 1, 5)
            seen.append(len(labels))
            return labels[:, 0].float()

        population = population_of(model, size=90)
        result = fitness_of(model, population, x, y, label, (0, 0), engine=engine)
        assert result.tolist() == list(range(90))
        assert sum(seen) == 90
