"""Schedules: pure functions of the generation, with the values that their formulas have."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import evolution

from tinkering.errors import ArgumentError, TinkeringError
from tinkering.strategies.activations import Activations
from tinkering.strategies.evolution_strategy import EvolutionStrategy
from tinkering.strategies.genetic_algorithm import GeneticAlgorithm
from tinkering.strategies.schedules import constant, cosine, inverse_sqrt, value_at

SCHEDULES = [constant(0.3), inverse_sqrt(0.3, 20.0), cosine(0.3, 40, 0.1, 5), cosine(0.3, 1)]
GENERATIONS = st.integers(0, 10**6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
class TestEvery:
    @given(generation=GENERATIONS)
    def test_is_a_function_of_the_generation_alone(self, schedule, generation):
        twin = pickle.loads(pickle.dumps(copy.deepcopy(schedule)))
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert schedule(generation) == schedule(generation) == twin(generation)
        assert 0 <= schedule(generation) <= 0.3

    def test_says_what_it_is(self, schedule):
        assert eval(str(schedule)) == schedule


@given(GENERATIONS)
def test_inverse_sqrt(generation):
    assert inverse_sqrt(0.3, 20.0)(generation) == 0.3 / math.sqrt(1 + generation / 20)


def test_cosine_rises_then_falls_and_stays():
    values = [cosine(1.0, 24, 0.2, 4)(generation) for generation in range(40)]
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    falling = [0.2 + 0.8 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(21)]
    assert values[4:25] == pytest.approx(falling)
    assert values[24:] == pytest.approx([0.2] * 16)


def test_cosine_ends_at_zero_and_not_below():
    assert cosine(0.5, 10)(10) == cosine(0.5, 10)(11) == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant(0.0), "value: needed a finite number above 0, got 0.0."),
        (lambda: inverse_sqrt(math.inf, 1.0), "value: needed a finite number above 0, got inf."),
        (lambda: inverse_sqrt(1.0, -1.0), "decay: needed a finite number above 0, got -1.0."),
        (lambda: cosine(math.nan, 10), "value: needed a finite number above 0, got nan."),
        (lambda: cosine(1.0, 0), "generations: needed an integer of at least 1, got 0."),
        (lambda: cosine(1.0, 10, 1.5), "last: needed a number from 0 to value, 1.0, got 1.5."),
        (
            lambda: cosine(1.0, 10, 0.0, 10),
            "warmup: needed an integer from 0 to below generations, 10, got 10.",
        ),
    ],
)
def test_message(make, message):
    with pytest.raises(ValueError, match="needed") as caught:
        make()
    assert str(caught.value) == message
    assert isinstance(caught.value, TinkeringError)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_a_value_that_cannot_be_used_is_refused_when_it_comes(bad):
    with pytest.raises(ValueError, match=f"schedule in generation 3, got {bad}"):
        value_at("sigma", lambda _: bad, 3, zero=True)


class TestInStrategies:
    PARAMS = {"p": torch.zeros(20)}  # noqa: RUF012

    @pytest.mark.parametrize(
        "make",
        [
            lambda sigma: evolution(400, sigma, learning_rate=1e-9),
            lambda sigma: GeneticAlgorithm(400, sigma, parents=1, elites=0),
        ],
        ids=["evolution strategy", "genetic algorithm"],
    )
    def test_sigma(self, make):
        strategy = make(cosine(1.0, 4, 0.1))
        state = strategy.init(self.PARAMS)
        for generation in range(4):
            before = strategy.centre(state)["p"]
            population = strategy.ask(state)
            moved = torch.stack([population[i][0]["p"] - before for i in range(400)])
            assert moved.std().item() == pytest.approx(cosine(1.0, 4, 0.1)(generation), rel=0.05)
            state = strategy.tell(state, torch.arange(400.0))

    def test_the_learning_rate_and_that_a_number_is_inverse_sqrt(self):
        """Adam's first step has the length of its learning rate in every parameter."""
        numbers = evolution(8, 0.1, learning_rate=0.04, decay=10.0)
        schedule = evolution(8, 0.1, learning_rate=inverse_sqrt(0.04, 10.0))
        states = [s.init(self.PARAMS) for s in (numbers, schedule)]
        for generation in range(4):
            fitness = torch.randn(8)
            told = [s.tell(at, fitness) for s, at in zip((numbers, schedule), states, strict=True)]
            assert torch.equal(told[0].params["p"], told[1].params["p"])
            if not generation:
                torch.testing.assert_close(told[0].params["p"].abs(), torch.full((20,), 0.04))
            states = told

    def test_a_learning_rate_of_zero_moves_nothing(self):
        strategy = evolution(8, 0.1, learning_rate=cosine(0.1, 2), averaging=0.0)
        state = strategy.init(self.PARAMS)
        centres = []
        for _ in range(4):
            state = strategy.tell(state, torch.arange(8.0))
            centres.append(strategy.centre(state)["p"])
        assert not torch.equal(centres[0], centres[1])
        assert torch.equal(centres[1], centres[3])
        assert (state.told, state.lost) == ("moved", 0)

    def test_a_sigma_of_zero_is_refused(self):
        strategy = evolution(8, lambda _: 0.0)
        message = "sigma: needed a finite number above 0 from its schedule in generation 0, got 0.0"
        with pytest.raises(ValueError, match=message):
            strategy.ask(strategy.init(self.PARAMS))


@pytest.mark.parametrize(
    "make",
    [
        lambda sigma: evolution(population=4, sigma=sigma),
        lambda sigma: GeneticAlgorithm(population=4, parents=1, elites=0, sigma=sigma),
        lambda sigma: EvolutionStrategy(Activations(sigma=sigma)),
    ],
)
def test_a_sigma_that_the_noise_cannot_have_is_refused(make):
    strategy = make(3.4e38)
    assert getattr(strategy, "perturb", strategy).sigma == 3.4e38
    with pytest.raises(ArgumentError) as caught:
        make(1e39)
    assert str(caught.value) == "sigma: needed a number above 0 and at most 3.403e+38, got 1e+39."


def test_and_one_of_a_schedule_when_it_comes():
    params = {"w": torch.zeros(3)}
    for strategy in (
        evolution(population=4, sigma=lambda _: 1e39),
        EvolutionStrategy(Activations(sigma=lambda _: 1e39)),
        GeneticAlgorithm(population=4, parents=1, elites=0, sigma=lambda _: 1e39),
    ):
        with pytest.raises(ArgumentError, match="sigma: needed a finite number above 0 and at mo"):
            strategy.ask(strategy.init(params))
