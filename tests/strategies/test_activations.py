"""Perturbed activations: what is asked, what is made of any evaluation, and that it learns."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from tinkering.data import load
from tinkering.engines import rating as fitness_room
from tinkering.engines.evaluation import Evaluation
from tinkering.errors import ArgumentError
from tinkering.evaluation.entry import evaluate
from tinkering.evaluation.fitness import accuracy, negative_cross_entropy
from tinkering.strategies.activations import Activations
from tinkering.strategies.evolution_strategy import EvolutionStrategy
from tinkering.strategies.groups import Group
from tinkering.strategies.schedules import constant
from tinkering.strategies.shaping import by_the_others, relative

ADAM = partial(torch.optim.Adam, betas=(0.8, 0.95))


def ours(**settings):
    return EvolutionStrategy(Activations(), **settings)


def start():
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (4, 3), "kernel": (3, 2, 2, 2), "vector": (5,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def evaluation(seed=0):
    generator = torch.Generator().manual_seed(seed)
    gradient = {name: torch.randn(p.shape, generator=generator) for name, p in start().items()}
    return Evaluation(torch.randn(12, generator=generator), gradient)


def after(strategy, state, generations, seed=0):
    for generation in range(generations):
        state = strategy.tell(state, evaluation(seed + generation))
    return state


def tensors_in(value, path="state"):
    if hasattr(value, "__dataclass_fields__"):
        value = {name: getattr(value, name) for name in value.__dataclass_fields__}
    elif isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, torch.Tensor):
        return {path: value}
    if not isinstance(value, dict):
        return {}
    parts = [tensors_in(inner, f"{path}/{key}") for key, inner in value.items()]
    return {name: tensor for part in parts for name, tensor in part.items()}


class TestState:
    def test_ask_is_a_function_of_the_state(self):
        strategy = EvolutionStrategy(Activations(samples=5, sigma=0.2), seed=9)
        state = after(strategy, strategy.init(start()), 3)
        population = strategy.ask(state)
        assert (population.samples, population.sigma) == (5, 0.2)
        assert (population.stream.seed, population.stream.generation) == (9, 3)
        assert all(torch.equal(p, state.params[name]) for name, p in population.params.items())
        assert population.stream == strategy.ask(state).stream
        assert population.stream != strategy.ask(after(strategy, state, 1)).stream
        assert population.utilities is by_the_others
        assert (population.blur, population.readings) == (0.0, 1)

    def test_ask_hands_on_how_members_are_rated(self):
        strategy = EvolutionStrategy(Activations(blur=0.5, readings=7), shaping="relative")
        population = strategy.ask(strategy.init(start()))
        assert population.utilities is relative
        assert (population.blur, population.readings) == (0.5, 7)

    def test_the_steps_are_adams(self):
        strategy = ours(learning_rate=constant(0.05), optimiser=ADAM, averaging=0.0)
        state = after(strategy, strategy.init(start()), 5)
        params = [p.clone().requires_grad_() for p in start().values()]
        optimiser = ADAM(params, lr=0.05)
        for generation in range(5):
            for p, name in zip(params, start(), strict=True):
                p.grad = -evaluation(generation).gradient[name]
            optimiser.step()
        for p, name in zip(params, start(), strict=True):
            assert torch.equal(state.params[name], p.detach())
            assert torch.equal(strategy.centre(state)[name], p.detach())

    def test_a_schedule_is_asked_for_each_generation(self):
        asked = []

        def rate(generation):
            asked.append(generation)
            return 0.1 if generation != 1 else 1e-30

        strategy = ours(learning_rate=rate)
        states = [strategy.init({"p": torch.ones(1)})]
        for _ in range(3):
            told = Evaluation(torch.zeros(2), {"p": torch.ones(1)})
            states.append(strategy.tell(states[-1], told))
        values = [state.params["p"].item() for state in states]
        assert values[1] == values[2]
        assert values[0] < values[1] < values[3]
        assert set(asked) == {0, 1, 2}

    def test_what_the_evaluation_returns_is_what_is_told(self):
        model = nn.Linear(3, 2).eval()
        strategy = ours()
        population = strategy.ask(strategy.init(dict(model.named_parameters())))
        given = evaluate(model, population, torch.ones(2, 3), torch.tensor([0, 1]))
        assert isinstance(given, Evaluation)
        assert strategy.tell(strategy.init(dict(model.named_parameters())), given).told == "moved"


NUMBERS = st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45])


class TestNotFinite:
    @given(
        fitness=st.lists(NUMBERS, min_size=1, max_size=6),
        gradient=st.lists(NUMBERS, min_size=5, max_size=5),
    )
    @settings(max_examples=150)
    @example(fitness=[1.0], gradient=[3e38] * 5)
    @example(fitness=[1.0], gradient=[1e30, 1e-30, 0.0, 1.0, -1.0])
    @example(fitness=[math.nan, 1.0], gradient=[1.0] * 5)
    def test_no_evaluation_makes_a_number_that_is_not_finite(self, fitness, gradient):
        strategy = ours()
        state = strategy.init({"vector": torch.ones(5)})
        for _ in range(2):
            before = state
            told = Evaluation(torch.tensor(fitness), {"vector": torch.tensor(gradient)})
            state = strategy.tell(state, told)
            assert all(torch.isfinite(value).all() for value in tensors_in(state).values())
            same = torch.equal(state.params["vector"], before.params["vector"])
            if not any(map(math.isfinite, fitness)):
                assert state.told == "no finite fitness"
            elif not all(map(math.isfinite, gradient)):
                assert state.told == "update not finite"
            elif all(abs(number) < 1e15 for number in gradient):
                assert state.told == "moved"
            assert same or state.told == "moved"
        assert state.generation == 2

    @given(
        pattern=st.lists(
            st.sampled_from([0.0, math.nan, math.inf, -math.inf]), min_size=24, max_size=24
        )
    )
    @settings(max_examples=40)
    @example(pattern=[math.nan] * 24)
    @example(pattern=[math.nan] * 23 + [0.0])
    @example(pattern=[math.inf, 0.0] * 12)
    def test_no_fitness_makes_a_parameter_that_is_not_finite(self, pattern):
        """Through the evaluation: three images, two layers, four members."""
        waiting = list(pattern)

        def fitness(logits, labels):
            own = -F.cross_entropy(logits[:, 0], labels[:, 0], reduction="none")
            return own + torch.tensor([waiting.pop() for _ in own])

        fitness_room._independent.add(fitness)  # so that it is not called twice for a member
        strategy = EvolutionStrategy(Activations(samples=4))
        state = strategy.init(dict(NET.named_parameters()))
        given_ = evaluate(NET, strategy.ask(state), torch.ones(3, 3), torch.arange(3), fitness)
        after_ = strategy.tell(state, given_)
        assert all(torch.isfinite(value).all() for value in given_.gradient.values())
        assert all(torch.isfinite(value).all() for value in tensors_in(after_).values())
        some = any(map(math.isfinite, pattern))
        assert after_.told == ("moved" if some else "no finite fitness")
        moved = not torch.equal(after_.params["2.weight"], state.params["2.weight"])
        assert moved <= some


NET = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).eval()


class TestLearns:
    def test_from_right_and_wrong_alone(self):
        torch.manual_seed(3)
        x = torch.randn(80, 6)
        y = (x @ torch.randn(6, 3)).argmax(1)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
        perturb = Activations(blur=1.0, readings=64)
        strategy = EvolutionStrategy(
            perturb, learning_rate=constant(0.02), averaging=0.9, shaping="relative"
        )
        assert self.accuracy(model, dict(model.named_parameters()), x, y) < 0.5
        params = self.run(strategy, model, x, y, 100, accuracy)
        assert self.accuracy(model, params, x, y) > 0.9

    def test_a_logistic_regression(self):
        torch.manual_seed(3)
        x = torch.randn(80, 6)
        y = (x @ torch.randn(6, 3)).argmax(1)
        model = nn.Linear(6, 3).eval()
        assert self.accuracy(model, dict(model.named_parameters()), x, y) < 0.5
        strategy = ours(learning_rate=constant(0.05), averaging=0.9)
        assert self.accuracy(model, self.run(strategy, model, x, y, 80), x, y) > 0.95

    def test_a_head_that_starts_at_zero(self):
        torch.manual_seed(3)
        x = torch.randn(80, 6)
        y = (x[:, 0] * x[:, 1] > 0).long()
        model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 2)).eval()
        nn.init.zeros_(model[2].weight)
        nn.init.zeros_(model[2].bias)
        strategy = ours(learning_rate=constant(0.02), averaging=0.9)
        assert self.accuracy(model, self.run(strategy, model, x, y, 100), x, y) > 0.85

    def test_a_convolutional_network(self):
        digits = load("mnist5k").subset(train=50, test=1).train
        x, y = digits.images(), digits.labels
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=3),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, 10),
        ).eval()
        strategy = ours(learning_rate=constant(0.01), averaging=0.9)
        assert self.accuracy(model, dict(model.named_parameters()), x, y) < 0.3
        assert self.accuracy(model, self.run(strategy, model, x, y, 70), x, y) > 0.85

    def run(self, strategy, model, x, y, generations, fitness=negative_cross_entropy):
        state = strategy.init(dict(model.named_parameters()))
        for _ in range(generations):
            evaluation = evaluate(model, strategy.ask(state), x, y, fitness)
            state = strategy.tell(state, evaluation)
            assert state.told == "moved"
        return strategy.centre(state)

    @torch.no_grad()
    def accuracy(self, model, params, x, y):
        logits = functional_call(model, dict(params), (x,))
        return (logits.argmax(1) == y).float().mean().item()


class TestGroups:
    def test_what_does_not_evolve_is_no_layer_that_is_perturbed(self):
        groups = {"2.*": Group(sigma=0), "0.bias": Group(step=0.5)}
        strategy = ours(groups=groups, learning_rate=0.1, averaging=0.0)
        state = strategy.init(dict(NET.named_parameters()))
        population = strategy.ask(state)
        assert population.params.keys() == {"0.weight", "0.bias"}
        told = evaluate(NET, population, torch.ones(2, 3), torch.tensor([0, 1]))
        assert len(told.fitness) == 2 * 8  # one layer's
        after_ = strategy.centre(strategy.tell(state, told))
        for name, start_ in NET.named_parameters():
            assert torch.equal(after_[name], start_) == name.startswith("2.")
        # Adam's first step has the length of its learning rate.
        moved = (after_["0.bias"] - NET[0].bias).abs()
        torch.testing.assert_close(moved, torch.full((4,), 0.05), rtol=1e-3, atol=0)

    def test_a_size_of_its_own_is_refused(self):
        strategy = ours(groups={"0.*": Group(sigma=0.5)})
        with pytest.raises(ArgumentError) as caught:
            strategy.ask(strategy.init(dict(NET.named_parameters())))
        needed = "a sigma of 0 or 1 where activations are perturbed"
        assert str(caught.value) == f"groups: needed {needed}, got 0.5 for '0.weight'."


class TestArguments:
    @pytest.mark.parametrize(
        ("argument", "came", "needed"),
        [
            ("samples", 1, "an integer of at least 2"),
            ("sigma", 0.0, "a finite number above 0"),
            ("sigma", math.nan, "a finite number above 0"),
            ("blur", -0.1, "a finite number of at least 0"),
            ("blur", math.inf, "a finite number of at least 0"),
            ("readings", 0, "an integer of at least 1"),
        ],
    )
    def test_out_of_range(self, argument, came, needed):
        with pytest.raises(ArgumentError) as caught:
            Activations(**{argument: came})
        assert str(caught.value) == f"{argument}: needed {needed}, got {came}."

    def test_a_shaping_for_weights(self):
        with pytest.raises(ArgumentError) as caught:
            ours(shaping="rank")
        assert str(caught.value) == "shaping: needed one of raw, relative, got rank."

    @pytest.mark.parametrize(
        ("told", "came"),
        [
            (torch.ones(3), "none"),
            (Evaluation(torch.ones(3)), "none"),
            (Evaluation(torch.ones(3), {"matrix": torch.ones(4, 3)}), "one for matrix"),
        ],
        ids=["fitness alone", "no gradient", "of another centre"],
    )
    def test_an_evaluation_without_the_gradient_estimate(self, told, came):
        strategy = ours()
        with pytest.raises(ArgumentError) as caught:
            strategy.tell(strategy.init(start()), told)
        assert str(caught.value) == (
            "evaluation: needed an Evaluation with a gradient estimate for each parameter that "
            f"evolves, got {came}. evaluate returns one."
        )

    def test_a_schedule_that_goes_below_zero(self):
        strategy = ours(learning_rate=lambda generation: 0.1 - 0.2 * generation)
        state = strategy.tell(strategy.init(start()), evaluation())
        with pytest.raises(ArgumentError, match=r"learning_rate: .* in generation 1, got -0\.1\."):
            strategy.tell(state, evaluation())
