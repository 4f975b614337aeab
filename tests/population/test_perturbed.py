"""A population against members built one by one from the noise."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinkering.errors import TinkeringError
from tinkering.noise import Dense, LowRank, Stream, draw
from tinkering.population import PerturbedPopulation

KINDS = [Dense(), LowRank(1), LowRank(2)]


def make_model():
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )


def noise_of(population, member, name, shape):
    """A member's noise with its sign, drawn for this member alone."""
    pair, sign = member, 1.0
    if population.antithetic:
        pair, sign = member // 2, (1.0, -1.0)[member % 2]
    stream = Stream(population.stream.seed, population.stream.generation)
    factors = draw(population.noise, stream, {name: shape}, range(pair, pair + 1))[name]
    return sign * factors.dense()[0]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("antithetic", [True, False])
class TestMembers:
    def make(self, kind, antithetic, model=None, **changes):
        arguments = {"size": 6, "sigma": 0.3, "seed": 5, "generation": 2, **changes}
        return PerturbedPopulation(
            model or make_model(), noise=kind, antithetic=antithetic, **arguments
        )

    def test_a_member_is_the_centre_plus_its_own_noise(self, kind, antithetic):
        model = make_model()
        population = self.make(kind, antithetic, model)
        for i in range(6):
            params, buffers = population.member(i)
            assert list(params) == [name for name, _ in model.named_parameters()]
            for name, centre in model.named_parameters():
                expected = centre + 0.3 * noise_of(population, i, name, centre.shape)
                torch.testing.assert_close(params[name], expected.detach())
            assert all(torch.equal(buffers[name], b) for name, b in model.named_buffers())

    def test_pairs_mirror_around_the_centre_and_are_unlike_each_other(self, kind, antithetic):
        model = make_model()
        population = self.make(kind, antithetic, model)
        centre = model[4].weight.detach()
        offsets = [population.member(i)[0]["4.weight"] - centre for i in range(6)]
        for i in range(0, 6, 2):
            assert torch.allclose(offsets[i], -offsets[i + 1], atol=1e-6) is antithetic
        firsts = range(0, 6, 2) if antithetic else range(6)
        for i in firsts:
            for j in firsts:
                cosine = torch.cosine_similarity(
                    offsets[i].flatten(), offsets[j].flatten(), dim=0
                ).abs()
                assert (cosine > 0.99) == (i == j)

    def test_another_seed_or_generation_gives_other_members(self, kind, antithetic):
        first = self.make(kind, antithetic).member(0)[0]["4.weight"]
        assert torch.equal(self.make(kind, antithetic).member(0)[0]["4.weight"], first)
        for changes in ({"seed": 6}, {"generation": 3}):
            other = self.make(kind, antithetic, **changes).member(0)[0]["4.weight"]
            assert (other - first).abs().max() > 0.1

    @given(start=st.integers(0, 11), length=st.integers(1, 12), again=st.integers(0, 11))
    @settings(max_examples=12)
    def test_a_slice_has_the_members_of_the_whole(self, kind, antithetic, start, length, again):
        whole = self.make(kind, antithetic, size=12)
        part = whole[start : start + length]
        size = min(length, 12 - start)
        assert len(part) == size
        again = min(again, size - 1)
        nested = part[again:]
        for i in range(size):
            expected = whole.member(start + i)[0]
            assert all(torch.equal(part.member(i)[0][name], p) for name, p in expected.items())
            if i >= again:
                inner = nested.member(i - again)[0]
                assert all(torch.equal(inner[name], p) for name, p in expected.items())

    @pytest.mark.parametrize(("start", "stop"), [(0, 6), (1, 6), (1, 2), (2, 5), (5, 6)])
    def test_a_draw_has_each_members_noise(self, kind, antithetic, start, stop):
        population = self.make(kind, antithetic)
        part = population[start:stop].draw()
        for name, centre in make_model().named_parameters():
            drawn = part.noise[name][part.rows].scaled(part.signs).dense()
            for i, noise in enumerate(drawn, start):
                expected = noise_of(population, i, name, centre.shape)
                torch.testing.assert_close(noise, expected)
            # Drawn once for the two members of a pair.
            pairs = {i // 2 if antithetic else i for i in range(start, stop)}
            assert len(part.noise[name].dense()) == len(pairs)

    @pytest.mark.parametrize(("start", "stop"), [(0, 6), (1, 6), (1, 2), (2, 5), (5, 6)])
    def test_weighted_noise_is_the_sum_over_members(self, kind, antithetic, start, stop):
        population = self.make(kind, antithetic)
        weights = torch.randn(stop - start)
        result = population[start:stop].weighted_noise(weights)
        for name, centre in make_model().named_parameters():
            expected = torch.zeros(centre.shape, dtype=torch.float64)
            for i, weight in enumerate(weights, start):
                noise = noise_of(population, i, name, centre.shape)
                expected += weight.double() * noise.double()
            torch.testing.assert_close(result[name].double(), expected, rtol=1e-4, atol=1e-5)

    def test_sigma_zero_gives_the_centre_itself(self, kind, antithetic):
        model = make_model()
        params, _ = self.make(kind, antithetic, model, sigma=0.0).member(3)
        assert all(torch.equal(params[name], p) for name, p in model.named_parameters())


class TestMaterialise:
    def test_a_module_with_the_members_parameters_and_the_centres_buffers(self):
        model = make_model()
        model(torch.randn(8, 2, 4, 4))
        population = PerturbedPopulation(model.eval(), size=4, sigma=0.1)
        module = population.materialise(3)
        params, buffers = population.member(3)
        assert type(module) is type(model)
        assert not module.training
        assert all(torch.equal(params[name], p) for name, p in module.named_parameters())
        assert all(torch.equal(buffers[name], b) for name, b in module.named_buffers())
        assert not torch.equal(module[4].weight, model[4].weight)

    def test_nothing_is_shared_with_the_centre(self):
        model = make_model()
        before = copy.deepcopy(model.state_dict())
        module = PerturbedPopulation(model, size=2, sigma=0.1).materialise(0)
        held = {tensor.data_ptr() for tensor in model.state_dict().values()}
        assert not held & {tensor.data_ptr() for tensor in module.state_dict().values()}
        with torch.no_grad():
            for tensor in module.state_dict().values():
                tensor.zero_()
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())

    def test_from_parameters_alone_with_a_module_given(self):
        model, blank = make_model(), make_model()
        with torch.no_grad():
            for p in blank.parameters():
                p.zero_()
        params = {name: p.detach() for name, p in model.named_parameters()}
        population = PerturbedPopulation(params, size=2, sigma=0.1)
        expected = PerturbedPopulation(model, size=2, sigma=0.1).materialise(1)
        result = population.materialise(1, blank)
        for name, p in expected.named_parameters():
            assert torch.equal(result.get_parameter(name), p)
        assert population.buffers == {}

    def test_tied_weights_stay_tied(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        module = PerturbedPopulation(model, size=2, sigma=0.1).materialise(0)
        assert module[0].weight is module[1].weight


class TestBuffers:
    def test_other_buffers_for_the_same_members(self):
        model = make_model()
        population = PerturbedPopulation(model, size=4, sigma=0.1)
        buffers = {name: b + 1 for name, b in model.named_buffers()}
        other = population.with_buffers(buffers)
        assert all(torch.equal(other[2][1][name], b) for name, b in buffers.items())
        assert torch.equal(other[2:][0][1]["1.running_mean"], buffers["1.running_mean"])
        assert torch.equal(other[2][0]["4.weight"], population[2][0]["4.weight"])
        assert torch.equal(other.materialise(2)[1].running_var, buffers["1.running_var"])
        assert torch.equal(population[2][1]["1.running_mean"], torch.zeros(4))


class TestMistakes:
    MODEL = nn.Linear(2, 2)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"size": 0}, "size: needed at least one member, got 0."),
            ({"size": -2}, "size: needed at least one member, got -2."),
            (
                {"size": 5},
                "size: needed an even number of members, because they come in antithetic pairs, "
                "got 5.",
            ),
            ({"sigma": -0.1}, "sigma: needed a finite number of at least 0, got -0.1."),
            ({"sigma": float("nan")}, "sigma: needed a finite number of at least 0, got nan."),
            ({"sigma": float("inf")}, "sigma: needed a finite number of at least 0, got inf."),
            ({"seed": -1}, "seed: needed an integer from 0 to 2^64 - 1, got -1."),
            ({"seed": 2**64}, f"seed: needed an integer from 0 to 2^64 - 1, got {2**64}."),
            ({"generation": -1}, "generation: needed an integer of at least 0, got -1."),
        ],
    )
    def test_message(self, arguments, message):
        with pytest.raises(ValueError, match="needed") as caught:
            PerturbedPopulation(self.MODEL, **{"size": 4, "sigma": 0.1, **arguments})
        assert str(caught.value) == message
        assert isinstance(caught.value, TinkeringError)

    def test_an_odd_size_without_pairs_is_fine(self):
        assert len(PerturbedPopulation(self.MODEL, size=5, sigma=0.1, antithetic=False)) == 5

    def test_materialise_without_a_module(self):
        population = PerturbedPopulation({"w": torch.zeros(2)}, size=4, sigma=0.1)
        with pytest.raises(ValueError, match="materialise") as caught:
            population.materialise(0)
        assert str(caught.value) == (
            "model: needed a module, because this population was built from parameters alone, "
            "got None. Call materialise(index, model)."
        )


def test_materialise_in_a_module_without_the_parameters():
    population = PerturbedPopulation(nn.Linear(3, 2), size=2, sigma=0.1)
    with pytest.raises(ValueError, match="needed") as caught:
        population.materialise(0, nn.Sequential(nn.Linear(3, 2)))
    assert str(caught.value) == (
        "model: needed a module with this population's parameters, got one without weight."
    )


def test_materialise_a_module_with_a_buffer_that_is_not_saved():
    model = nn.Linear(3, 2)
    model.register_buffer("scale", torch.ones(1), persistent=False)
    module = PerturbedPopulation(model, size=2, sigma=0.1).materialise(0)
    assert not torch.equal(module.weight, model.weight)
