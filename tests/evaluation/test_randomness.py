"""Active dropout: refused, the same for all members, or different; and always repeatable."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from small_nets import inputs_for, lenet, loop, made, make, perceptron, population_of
from torch import nn

from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.evaluation.entry import forward, plan
from tinkering.population import StackedPopulation

drawing = pytest.mark.parametrize("engine", ["sequential", "vmapped"])
both_in_dims = pytest.mark.parametrize("in_dims", [(0, None), (0, 0)], ids=str)
MEMBERS = 5


@cache
def in_training(build):
    """A module with active dropout, shared, because a new one has to be captured anew."""
    return make(build).train()


def network():
    return in_training(lenet)


def alike(model):
    return StackedPopulation.from_modules([model] * MEMBERS)


def run(model, population, in_dims, seed=0, **options):
    """The same batch for everyone, so that only dropout can make members differ."""
    x = torch.ones(1, 1, 8, 8).expand(3, 1, 8, 8)
    torch.manual_seed(seed)
    x = x if in_dims == (0, None) else x.expand(len(population), *x.shape)
    return forward(model, population, x, in_dims, **options)


class AlwaysDrops(nn.Module):
    """Dropout that no mode turns off."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 5)

    def forward(self, x):
        return F.dropout(self.linear(x.flatten(1)), 0.5)


class DropsOnData(nn.Module):
    """Dropout in a module that cannot be captured."""

    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(64, 5), nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.linear(x.flatten(1) if x.sum() > -1e9 else -x.flatten(1)))


class TestRefused:
    @pytest.mark.parametrize("engine", ["auto", "factored", "sequential", "vmapped"])
    @pytest.mark.parametrize("build", [lenet, AlwaysDrops, DropsOnData], ids=lambda b: b.__name__)
    def test_unless_it_is_named(self, build, engine):
        model = in_training(build)
        with pytest.raises(ArgumentError) as caught:
            forward(model, population_of(model), torch.zeros(2, 1, 8, 8), engine=engine)
        assert str(caught.value) == (
            'randomness: needed "same" or "different", because the module has active dropout, '
            'got "error". For no dropout call model.eval().'
        )

    def test_members_around_a_centre_are_not_folded(self):
        model = network()
        population = population_of(model)
        x = inputs_for(lenet, 2)
        with pytest.raises(UnsupportedLayerError, match="active dropout"):
            forward(model, population, x, engine="factored", randomness="same")
        with pytest.warns(UserWarning, match="active dropout"):
            found = plan(model, population, x, randomness="same")
        assert found.engine == "sequential"
        assert found.notes == ("Active dropout: members are evaluated one by one, on one thread.",)


class TestDrawn:
    @drawing
    @both_in_dims
    def test_the_same_or_different_numbers_for_the_members(self, in_dims, engine):
        model = network()
        same = run(model, alike(model), in_dims, engine=engine, randomness="same")
        for member in same[1:]:
            torch.testing.assert_close(member, same[0])
        other = run(model, alike(model), in_dims, engine=engine, randomness="different")
        for i in range(MEMBERS):
            for j in range(i):
                assert not torch.allclose(other[i], other[j])

    @drawing
    @pytest.mark.parametrize("randomness", ["same", "different"])
    def test_the_images_of_a_batch_differ(self, randomness, engine):
        model = network()
        result = run(model, alike(model), (0, None), engine=engine, randomness=randomness)
        for member in result:
            assert not torch.allclose(member[0], member[1])

    @drawing
    @pytest.mark.parametrize("randomness", ["same", "different"])
    def test_a_half_is_dropped_and_the_rest_is_doubled(self, randomness, engine):
        model = nn.Sequential(nn.Linear(1, 400), nn.Dropout(0.5)).train()
        nn.init.ones_(model[0].weight)
        nn.init.zeros_(model[0].bias)
        population = population_of(model, size=4, sigma=0.0)
        x = torch.ones(10, 1)
        result = forward(model, population, x, engine=engine, randomness=randomness)
        assert set(result.unique().tolist()) == {0.0, 2.0}
        assert 0.45 < float(result.mean()) / 2 < 0.55

    @drawing
    @both_in_dims
    @pytest.mark.parametrize("randomness", ["same", "different"])
    def test_a_seed_repeats_it_and_the_next_call_draws_others(self, randomness, in_dims, engine):
        model = network()
        options = {"engine": engine, "randomness": randomness}
        first = run(model, alike(model), in_dims, 1, **options)
        assert torch.equal(run(model, alike(model), in_dims, 1, **options), first)
        assert not torch.allclose(run(model, alike(model), in_dims, 2, **options), first)
        x = torch.ones(3, 1, 8, 8)
        two = [forward(model, alike(model), x, **options) for _ in range(2)]
        assert not torch.allclose(*two)

    @drawing
    @pytest.mark.parametrize("randomness", ["same", "different"])
    def test_the_generator_moves_on_whatever_the_number_of_members(self, randomness, engine):
        model = network()
        after = []
        for population in (alike(model), alike(model)[:2], alike(model)[:1]):
            run(model, population, (0, None), engine=engine, randomness=randomness)
            after.append(torch.rand(3))
        assert torch.equal(after[0], after[1])
        assert torch.equal(after[0], after[2])
        torch.manual_seed(0)
        assert not torch.equal(after[0], torch.rand(3))

    @pytest.mark.parametrize("randomness", ["same", "different"])
    def test_one_by_one_a_members_numbers_follow_from_its_place(self, randomness):
        model = network()
        population = population_of(model)
        options = {"engine": "sequential", "randomness": randomness}
        whole = run(model, population, (0, None), **options)
        part = run(model, population[:3], (0, None), **options)
        torch.testing.assert_close(part, whole[:3])

    def test_the_same_numbers_in_every_portion_of_stacked_members(self):
        model = network()
        options = {"engine": "vmapped", "randomness": "same"}
        x = torch.ones(3, 1, 8, 8)
        found = plan(model, alike(model), x, **options)
        less = 2 * found.needed // 3
        assert plan(model, alike(model), x, memory=less, **options).tiles.members < MEMBERS
        result = run(model, alike(model), (0, None), memory=less, **options)
        for member in result[1:]:
            torch.testing.assert_close(member, result[0])

    @pytest.mark.parametrize("build", [AlwaysDrops, DropsOnData], ids=lambda b: b.__name__)
    def test_whatever_way_it_is_written(self, build):
        model = in_training(build)
        same = run(model, alike(model), (0, None), randomness="same")
        other = run(model, alike(model), (0, None), randomness="different")
        assert torch.equal(same[0], same[1])
        assert not torch.equal(other[0], other[1])


class TestNothingToDraw:
    @pytest.mark.parametrize("engine", ["auto", "factored", "sequential", "vmapped"])
    @pytest.mark.parametrize("randomness", ["error", "same", "different"])
    def test_in_eval_mode_nothing_is_drawn(self, randomness, engine):
        model = made(lenet)
        population = population_of(model)
        state = torch.get_rng_state()
        x = torch.ones(3, 1, 8, 8)
        result = forward(model, population, x, engine=engine, randomness=randomness)
        assert torch.equal(torch.get_rng_state(), state)
        torch.testing.assert_close(result, loop(population, x), rtol=1e-4, atol=1e-4)

    def test_dropout_of_nothing_is_no_dropout(self):
        model = nn.Sequential(make(perceptron), nn.Dropout(0.0)).train()
        population = population_of(model)
        x = inputs_for(perceptron, 3)
        torch.testing.assert_close(forward(model, population, x), loop(population, x))
