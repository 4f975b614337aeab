"""Modules, populations and images in other dtypes than float32 are computed in float32."""

import copy

import pytest
import torch
from small_nets import assert_close, loop, made, population_of, resnet
from torch import nn

from tinkering.engines.table import ENGINES
from tinkering.evaluation.entry import forward
from tinkering.population import PerturbedPopulation, StackedPopulation


@pytest.mark.parametrize("engine", list(ENGINES))
class TestDouble:
    def test_a_population_around_a_centre(self, engine):
        model = made(resnet)
        x = torch.randn(3, 1, 8, 8)
        expected = loop(population_of(model), x)
        double = copy.deepcopy(model).double()
        result = forward(double, population_of(double), x.double(), engine=engine)
        assert result.dtype == torch.float32
        assert_close(result, expected)

    def test_scales_that_take_no_memory_of_their_own(self, engine):
        """An expanded vector has one number in memory, whatever its length."""
        model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)).eval()
        params = {name: p.detach() for name, p in model.named_parameters()}
        params["0.weight"] = torch.full((1,), 1.5).expand(3)
        params["0.bias"] = torch.full((1,), 0.5).expand(3)
        population = PerturbedPopulation(params, size=4, sigma=0.1)
        x = torch.randn(2, 3, 3, 3)
        assert_close(forward(model, population, x, engine=engine), loop(population, x, model=model))


def test_stacked_members_in_double():
    models = [nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)) for _ in range(2)]
    x = torch.randn(3, 1, 4, 4)
    expected = loop(StackedPopulation.from_modules(models), x)
    double = StackedPopulation.from_modules([copy.deepcopy(model).double() for model in models])
    assert_close(forward(copy.deepcopy(models[0]).double(), double, x.double()), expected)


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
