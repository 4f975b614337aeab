"""Any optimiser of torch.optim moves the centre as it would move parameters with a gradient."""

import copy
import io
from dataclasses import replace
from functools import partial

import pytest
import torch
from problems import evolution, stacked

from tinkering.errors import ArgumentError
from tinkering.noise import Dense
from tinkering.strategies.activations import Activations
from tinkering.strategies.evolution_strategy import EvolutionStrategy
from tinkering.strategies.stepping import fresh_optimiser, stepped

OPTIMISERS = {
    "SGD": torch.optim.SGD,
    "SGD with momentum": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "Adam": torch.optim.Adam,
    "AdamW": partial(torch.optim.AdamW, weight_decay=0.1),
    "RMSprop": torch.optim.RMSprop,
    "a function": lambda params, rate: torch.optim.Adam(params, rate, betas=(0.5, 0.9)),
}
optimisers = pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS.keys())


def start():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(3, 4, generator=generator) for name in ("a", "b")}


def strategy_with(make, **changes):
    return evolution(
        **{
            "population": 16,
            "sigma": 0.1,
            "learning_rate": 0.05,
            "noise": Dense(),
            "optimiser": make,
            "averaging": 0.0,
            **changes,
        }
    )


def fitness_of(population):
    return -sum(p.square().sum((1, 2)) for p in stacked(population).values())


def run(strategy, state, generations):
    for _ in range(generations):
        state = strategy.tell(state, fitness_of(strategy.ask(state)))
    return state


@optimisers
def test_moves_as_the_optimiser_alone_would(make):
    """One optimiser over all generations, handed the same gradient, in place."""
    strategy = strategy_with(make, shaping="raw", decay=3.0)
    state = strategy.init(start())
    params = [p.requires_grad_() for p in start().values()]
    optimiser = make(params, 0.05)
    for generation in range(6):
        population = strategy.ask(state)
        fitness = fitness_of(population)
        halves = (fitness[0::2] - fitness[1::2]) / 2
        weights = torch.stack([halves, -halves], 1).flatten() / 16 / 0.1
        for p, gradient in zip(params, population.weighted_noise(weights).values(), strict=True):
            p.grad = -gradient
        optimiser.param_groups[0]["lr"] = 0.05 / (1 + generation / 3) ** 0.5
        optimiser.step()
        state = strategy.tell(state, fitness)
        for p, q in zip(params, state.params.values(), strict=True):
            torch.testing.assert_close(q, p.detach(), rtol=1e-4, atol=1e-5)


@optimisers
def test_improves_the_fitness(make):
    strategy = strategy_with(make)
    state = strategy.init(start())
    after = run(strategy, state, 40)
    before, later = (sum(p.square().sum() for p in s.params.values()) for s in (state, after))
    assert later < 0.6 * before


@optimisers
def test_its_state_survives_saving_and_a_run_goes_on_the_same(make):
    strategy = strategy_with(make)
    half = run(strategy, strategy.init(start()), 3)
    buffer = io.BytesIO()
    torch.save(half.optimiser, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    other = replace(half, optimiser=loaded)
    first, second = run(strategy, half, 3), run(strategy, other, 3)
    assert all(torch.equal(p, second.params[name]) for name, p in first.params.items())


@optimisers
def test_tell_leaves_the_state_of_the_optimiser_alone(make):
    strategy = strategy_with(make)
    state = run(strategy, strategy.init(start()), 2)
    before = copy.deepcopy(state.optimiser)
    run(strategy, state, 2)
    for index, slot in before["state"].items():
        for key, value in slot.items():
            now = state.optimiser["state"][index][key]
            assert torch.equal(value, now) if isinstance(value, torch.Tensor) else value == now


def test_weight_decay_draws_towards_zero():
    """AdamW takes ``rate * decay`` of each parameter off (Loshchilov and Hutter 2019)."""
    with_, without = (
        strategy_with(partial(torch.optim.AdamW, weight_decay=decay), learning_rate=0.01)
        for decay in (0.5, 0.0)
    )
    fitness = torch.randn(16)
    plain = without.tell(without.init(start()), fitness).params
    decayed = with_.tell(with_.init(start()), fitness).params
    for name, p in start().items():
        torch.testing.assert_close(plain[name] - decayed[name], 0.01 * 0.5 * p)


def test_the_default_is_adam():
    own = evolution(16, 0.1, learning_rate=0.05, noise=Dense(), averaging=0.0)
    given = strategy_with(partial(torch.optim.Adam, betas=(0.9, 0.999)))
    first, second = (run(s, s.init(start()), 4) for s in (own, given))
    assert all(torch.equal(p, second.params[name]) for name, p in first.params.items())


class TestStepped:
    def test_is_pure(self):
        params, gradient, factors = start(), start(), {"a": 1.0, "b": 3.0}
        make = torch.optim.Adam
        state = fresh_optimiser(make, params, 0.1, factors).state_dict()
        results = [stepped(make, params, gradient, 0.1, factors, state) for _ in range(2)]
        for moved, after in results:
            assert torch.equal(moved["b"], results[0][0]["b"])
            assert after["state"].keys() == {0, 1}
        assert state["state"] == {}
        assert all(torch.equal(p, start()[name]) for name, p in params.items())
        assert all(p.grad is None for p in params.values())

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
    def test_what_would_not_be_finite_is_not_taken(self, bad):
        """The square of 1e30 is infinite in Adam's state: no parameter would ever move again."""
        params, factors = start(), {"a": 1.0, "b": 1.0}
        state = fresh_optimiser(torch.optim.Adam, params, 0.1, factors).state_dict()
        gradient = {"a": torch.zeros(3, 4), "b": torch.full((3, 4), bad)}
        assert stepped(torch.optim.Adam, params, gradient, 0.1, factors, state) is None


def test_a_generation_whose_update_is_not_finite_is_lost_and_said_so():
    strategy = strategy_with(torch.optim.SGD, shaping="raw")
    state = run(strategy, strategy.init(start()), 2)
    after = strategy.tell(state, torch.tensor([3e38, -3e38] * 8))
    assert (after.told, after.lost, after.generation) == ("update not finite", 1, 3)
    assert all(torch.equal(p, state.params[name]) for name, p in after.params.items())
    again = run(strategy, after, 1)
    assert (again.told, again.lost) == ("moved", 1)


SLOW = partial(torch.optim.Adam, betas=(1 - 2**-53, 0.999))


class TestStepsThatCannotBeTaken:
    """A step that overflows would end a run with PyTorch's own error, in its first generation."""

    @pytest.mark.parametrize(
        "strategy",
        [
            evolution(population=4, learning_rate=1e300),
            evolution(population=4, learning_rate=lambda _: 1e300, optimiser=SLOW),
            EvolutionStrategy(Activations(), learning_rate=1e23),
        ],
    )
    def test_are_refused_before_the_first(self, strategy):
        with pytest.raises(ArgumentError) as caught:
            strategy.init(start())
        assert str(caught.value).startswith(
            "learning_rate: needed a number of at most 3.778e+22, as steps are taken in float32, "
        )

    def test_those_of_a_schedule_when_they_come(self):
        strategy = evolution(population=4, learning_rate=lambda g: 1e300 if g else 0.1)
        state = strategy.tell(strategy.init(start()), torch.arange(4.0))
        with pytest.raises(ArgumentError, match="learning_rate: needed a number of at most"):
            strategy.tell(state, torch.arange(4.0))

    def test_the_largest_is_taken_or_counted_as_lost(self):
        strategy = evolution(population=4, learning_rate=3.7e22, optimiser=SLOW, averaging=0.0)
        state = strategy.tell(strategy.init(start()), torch.arange(4.0))
        assert state.told in ("moved", "update not finite")

    def test_double_precision_holds_larger_ones(self):
        params = {name: value.double() for name, value in start().items()}
        assert evolution(population=4, learning_rate=1e200).init(params).generation == 0

    def test_small_types_are_moved_by_steps_in_float32(self):
        params = {name: value.half() for name, value in start().items()}
        assert evolution(population=4, learning_rate=0.1).init(params).generation == 0
