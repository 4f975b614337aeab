"""Whose weights count, what is left as it was, and what fitness is of; the numbers of every engine
stand in test_every_engine.py."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from small_nets import (
    InPlace,
    assert_close,
    biased_and_normed,
    convnet,
    fitness_of,
    inputs_for,
    lenet,
    loop,
    made,
    modules_of,
    perceptron,
    population_of,
    resnet,
    transformer,
    trusted,
)
from torch import nn

from tinkering.engines.table import ENGINES
from tinkering.evaluation.batchnorm import Reference
from tinkering.evaluation.entry import forward
from tinkering.evaluation.fitness import accuracy, negative_cross_entropy
from tinkering.population import PerturbedPopulation

both_in_dims = pytest.mark.parametrize("in_dims", [(0, None), (0, 0)], ids=str)
engines = pytest.mark.parametrize("engine", list(ENGINES))


@cache
def copied(build):
    """A network whose numbers a test may change."""
    return copy.deepcopy(made(build))


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
    def test_some_parameters_evolve_each_with_a_sigma(self, engine):
        for build in (resnet, lenet, transformer):
            model, x = made(build), inputs_for(build, 3)
            some = dict(list(model.named_parameters())[::2])
            sigma = {name: 0.02 * place for place, name in enumerate(some, 1)}
            population = population_of({n: p.detach() for n, p in some.items()}, 4, sigma)
            expected = loop(population, x, model=model)
            assert_close(forward(model, population, x, engine=engine), expected)

    @pytest.mark.parametrize("build", [resnet, lenet, transformer, biased_and_normed])
    def test_one_sigma_for_all_is_the_same_by_name(self, build):
        model, x = made(build), inputs_for(build, 3)
        sigma = dict.fromkeys((name for name, _ in model.named_parameters()), 0.1)
        by_name, one = (
            forward(model, population_of(model, 4, each), x, engine="factored")
            for each in (sigma, 0.1)
        )
        assert torch.equal(by_name, one)

    @pytest.mark.parametrize("of", ["0.bias", "1.weight", "1.bias", "4.weight"])
    def test_each_sigma_reaches_its_own_parameter(self, of):
        """With 0 for all others, the members differ by this parameter and no other."""
        model, x = made(biased_and_normed), inputs_for(biased_and_normed, 3)
        sigma = {name: 0.3 * (name == of) for name, _ in model.named_parameters()}
        population = population_of(model, 4, sigma)
        assert_close(forward(model, population, x, engine="factored"), loop(population, x))
        params, _ = population[0]
        changed = [n for n, p in model.named_parameters() if not torch.equal(params[n], p)]
        assert changed == [of]

    @pytest.mark.parametrize("engine", ENGINES)
    def test_scales_that_take_no_memory_of_their_own(self, engine):
        """An expanded vector has one number in memory, whatever its length."""
        model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)).eval()
        params = {name: p.detach() for name, p in model.named_parameters()}
        params["0.weight"] = torch.full((1,), 1.5).expand(3)
        params["0.bias"] = torch.full((1,), 0.5).expand(3)
        population = PerturbedPopulation(params, size=4, sigma=0.1)
        x = torch.randn(2, 3, 3, 3)
        assert_close(forward(model, population, x, engine=engine), loop(population, x, model=model))

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
        model, x = copied(InPlace), inputs_for(InPlace, 3)
        model.load_state_dict(made(InPlace).state_dict())
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


@pytest.mark.parametrize("engine", ["factored", "sequential"])
def test_a_head_of_zeros_hides_no_coupling(engine):
    """The module's own result is the same for all images; its members' are not."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    nn.init.zeros_(model[-1].weight)
    population = PerturbedPopulation(model, size=4, sigma=0.5)
    x = torch.randn(6, 4)
    whole = forward(model, population, x, norm="batch", engine="vmapped")
    assert_close(forward(model, population, x, norm="batch", engine=engine), whole)


def test_a_module_whose_mode_changes_between_calls():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    population = PerturbedPopulation(model, size=4, sigma=0.5)
    x = torch.randn(6, 4)
    forward(model.train(), population, x, norm="batch", randomness="same", engine="sequential")
    calm = forward(model.eval(), population, x, norm="batch")
    assert torch.equal(calm, forward(model, population, x, norm="batch"))
