"""What all populations have in common, and a member as a module of its own."""

import copy

import pytest
import torch
from torch import nn
from torch.func import stack_module_state

from tinkering.noise import Stream
from tinkering.population import (
    CountedPopulation,
    Mutation,
    PerturbedActivations,
    PerturbedPopulation,
    Population,
    SeedChainPopulation,
    StackedPopulation,
)
from tinkering.population.member import as_module

MODEL = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def state_of(model):
    return (
        {name: torch.randn_like(p) for name, p in model.named_parameters()},
        {name: b + 1 for name, b in model.named_buffers()},
    )


@pytest.mark.parametrize(
    "population",
    [
        PerturbedPopulation(MODEL, size=4, sigma=0.1),
        StackedPopulation.from_modules([MODEL] * 4),
        StackedPopulation(*stack_module_state([MODEL] * 4)),
        SeedChainPopulation(MODEL, [(), *[(Mutation(0, member, 0.1),) for member in range(3)]]),
    ],
    ids=["perturbed", "stacked", "stacked without a module", "chains"],
)
class TestEveryPopulation:
    def test_keeps_the_contract(self, population):
        assert isinstance(population, CountedPopulation)
        part = population[1:3]
        assert isinstance(part, type(population))
        assert isinstance(population.with_buffers(population.buffers), type(population))
        assert (population.size, population.members) == (4, range(4))
        assert (part.size, part.members, len(part)) == (4, range(1, 3), 2)
        assert part[1:].members == range(2, 3)

    def test_stacked_it_has_the_same_members(self, population):
        for part in (population, population[1:3]):
            stacked = part.stack()
            assert isinstance(stacked, StackedPopulation)
            assert len(stacked) == len(part)
            for index in range(len(part)):
                for held, expected in zip(stacked[index], part[index], strict=True):
                    assert held.keys() == expected.keys()
                    assert all(torch.equal(held[name], t) for name, t in expected.items())

    def test_says_what_a_member_is_like(self, population):
        for like, held in zip(population.like, population[1], strict=True):
            shapes = {name: value.shape for name, value in held.items()}
            assert {name: value.shape for name, value in like.items()} == shapes

    def test_is_evaluated_as_others_of_its_kind_and_size(self, population):
        assert population[:2].likeness == population[2:].likeness != population.likeness

    def test_index_from_the_end(self, population):
        for held, expected in zip(population[-1], population.member(3), strict=True):
            assert all(torch.equal(held[name], t) for name, t in expected.items())
        last = population.materialise(-1, MODEL).state_dict()
        for name, value in population.materialise(3, MODEL).state_dict().items():
            assert torch.equal(value, last[name])

    @pytest.mark.parametrize("index", [4, -5, 100])
    def test_an_index_out_of_range(self, population, index):
        for ask in (population.member, population.materialise, population.__getitem__):
            with pytest.raises(IndexError):
                ask(index)
        # In a part, too, although the whole has such a member.
        with pytest.raises(IndexError):
            population[:2].member(2)

    @pytest.mark.parametrize(
        "part", [slice(2, 2), slice(4, 9), slice(0, 4, 2), slice(None, None, -1)], ids=str
    )
    def test_a_slice_that_is_empty_or_has_a_step(self, population, part):
        with pytest.raises(ValueError, match="contiguous") as caught:
            population[part]
        assert str(caught.value) == (
            f"population[a:b]: needed a contiguous, non-empty part of 4 members, got {part}."
        )


class TestAModuleOfItsOwn:
    def test_has_the_members_values_and_the_models_modes(self):
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2).eval(), nn.Dropout())
        model[0].bias.requires_grad_(False)
        params, buffers = state_of(model)
        module = as_module(model, (params, buffers))
        assert type(module) is nn.Sequential
        assert all(torch.equal(params[name], p) for name, p in module.named_parameters())
        assert all(torch.equal(buffers[name], b) for name, b in module.named_buffers())
        assert [part.training for part in module.modules()] == [True, True, False, True]
        assert (module[0].weight.requires_grad, module[0].bias.requires_grad) == (True, False)

    def test_shares_memory_with_neither(self):
        params, buffers = state_of(MODEL)
        before = copy.deepcopy((params, buffers, MODEL.state_dict()))
        module = as_module(MODEL, (params, buffers))
        with torch.no_grad():
            for tensor in module.state_dict().values():
                tensor.fill_(9)
        for kept, now in zip(before, (params, buffers, MODEL.state_dict()), strict=True):
            assert all(torch.equal(kept[name], t) for name, t in now.items())

    def test_keeps_ties(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        params, _ = state_of(model)
        module = as_module(model, (params, {}))
        assert module[0].weight is module[1].weight
        assert torch.equal(module[1].weight, params["0.weight"])

    def test_keeps_the_weights_that_a_recurrent_layer_holds_twice(self):
        model = nn.LSTM(3, 4)
        params, _ = state_of(model)
        module = as_module(model, (params, {}))
        x = torch.randn(5, 3)
        expected, _ = torch.func.functional_call(model, params, (x,))
        result, _ = module(x)
        assert torch.equal(result, expected)

    def test_has_buffers_that_are_not_saved(self):
        model = nn.Linear(3, 2)
        model.register_buffer("scale", torch.ones(1), persistent=False)
        module = as_module(model, ({}, {"scale": torch.full((1,), 5.0)}))
        assert module.scale == 5
        assert torch.equal(module.weight, model.weight)

    def test_has_the_members_dtype_and_device(self):
        skeleton = nn.Linear(3, 2, device="meta")
        params = {name: p.detach().double() for name, p in nn.Linear(3, 2).named_parameters()}
        module = as_module(skeleton, (params, {}))
        assert module(torch.ones(1, 3, dtype=torch.float64)).dtype == torch.float64

    @pytest.mark.parametrize(
        ("member", "message"),
        [
            (
                ({"1.weight": torch.zeros(2)}, {"1.running": torch.zeros(2)}),
                "model: needed a module with this population's buffers, got one without 1.running.",
            ),
            (
                ({"1.wait": torch.zeros(2)}, {}),
                "model: needed a module with this population's parameters, got one without 1.wait.",
            ),
            (
                ({"1.weight": torch.zeros(3)}, {}),
                "model: needed a module with the parameter '1.weight' of shape [3], got [2].",
            ),
            (
                ({}, {"1.running_mean": torch.zeros(1)}),
                "model: needed a module with the buffer '1.running_mean' of shape [1], got [2].",
            ),
        ],
    )
    def test_of_another_architecture(self, member, message):
        with pytest.raises(ValueError, match="needed") as caught:
            as_module(MODEL, member)
        assert str(caught.value) == message


def test_perturbed_activations_are_a_population_that_cannot_be_counted():
    centre = dict(MODEL.named_parameters())
    population = PerturbedActivations(centre, 2, 0.1, Stream(0, 0), lambda fitness: fitness)
    assert isinstance(population, Population)
    assert not isinstance(population, CountedPopulation)
    assert population.centre is centre
    other = population.with_buffers(dict(MODEL.named_buffers()))
    assert other.likeness == population.likeness
    assert other.like == (centre, dict(MODEL.named_buffers()))
