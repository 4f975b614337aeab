"""Learned feedback: what is asked, what is learned of any evaluation, and that it learns."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from tinkering.engines import rating as fitness_room
from tinkering.engines.evaluation import Effect, Evaluation
from tinkering.errors import ArgumentError
from tinkering.evaluation.entry import evaluate
from tinkering.evaluation.fitness import accuracy, negative_cross_entropy
from tinkering.population import FedBackActivations
from tinkering.strategies.evolution_strategy import EvolutionStrategy
from tinkering.strategies.feedback import Feedback
from tinkering.strategies.groups import Group
from tinkering.strategies.schedules import constant
from tinkering.strategies.shaping import by_the_others, relative

NET = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
PARAMS = {name: p.detach() for name, p in NET.named_parameters()}


def told(seed=0, names=("one", "two"), members=24):
    """An evaluation of any numbers."""
    generator = torch.Generator().manual_seed(seed)
    gradient = {name: torch.randn(p.shape, generator=generator) for name, p in PARAMS.items()}
    effects = {n: Effect(torch.randn(4, 6, generator=generator), members) for n in names}
    return Evaluation(torch.randn(12, generator=generator), gradient, effects=effects)


class TestAsks:
    def test_what_it_is_told_to(self):
        perturb = Feedback(0.2, samples=5, every=3, cells=70, readings=9, blur=0.5)
        strategy = EvolutionStrategy(perturb, seed=9, shaping="relative")
        state = strategy.tell(strategy.init(PARAMS), told())
        population = strategy.ask(state)
        assert isinstance(population, FedBackActivations)
        assert (population.sigma, population.samples, population.every) == (0.2, 5, 3)
        assert (population.cells, population.readings, population.blur) == (70, 9, 0.5)
        assert (population.stream.seed, population.stream.generation) == (9, 1)
        assert population.utilities is relative
        assert population.learned is state.learned
        assert not population.renewed
        assert all(torch.equal(p, state.params[name]) for name, p in population.params.items())

    def test_by_default(self):
        strategy = EvolutionStrategy(Feedback())
        state = strategy.init(PARAMS)
        population = strategy.ask(state)
        assert population.utilities is by_the_others
        assert not population.learned
        assert strategy.ask(state).stream == population.stream

    def test_a_size_of_its_own_is_refused(self):
        strategy = EvolutionStrategy(Feedback(), groups={"0.*": Group(sigma=0.5)})
        with pytest.raises(ArgumentError) as caught:
            strategy.ask(strategy.init(PARAMS))
        needed = "a sigma of 0 or 1 where activations are perturbed"
        assert str(caught.value) == f"groups: needed {needed}, got 0.5 for '0.weight'."


class TestLearned:
    def test_is_the_running_mean_of_a_plain_loop(self):
        window, cells = 3.0, 6
        strategy = EvolutionStrategy(Feedback(window=window))
        state = strategy.init(PARAMS)
        mean = {}
        for generation in range(8):
            names = ("one", "two") if generation % 3 else ("one",)
            evaluation = told(generation, names, members=10 + generation)
            before = dict(state.learned)
            state = strategy.tell(state, evaluation)
            for name in names:
                members = evaluation.effects[name].members
                share = members / (members + cells) / window
                for row in range(4):
                    for cell in range(cells):
                        known = mean.get((name, row, cell), 0.0)
                        new = evaluation.effects[name].total[row, cell].item() / members
                        mean[name, row, cell] = known + share * (new - known)
            if "two" not in names and "two" in before:  # what was not tried stays
                assert torch.equal(state.learned["two"], before["two"])
        assert state.learned.keys() == {"one", "two"}
        for (name, row, cell), value in mean.items():
            assert state.learned[name][row, cell].item() == pytest.approx(value, abs=1e-5)

    def test_a_short_window_is_the_latest_generation_alone(self):
        strategy = EvolutionStrategy(Feedback(window=0.1))
        state = strategy.init(PARAMS)
        for generation in range(3):
            state = strategy.tell(state, told(generation))
            latest = told(generation).effects
            for name, value in state.learned.items():
                torch.testing.assert_close(value, latest[name].total / 24)

    def test_states_before_do_not_change(self):
        strategy = EvolutionStrategy(Feedback())
        first = strategy.tell(strategy.init(PARAMS), told())
        kept = {name: value.clone() for name, value in first.learned.items()}
        strategy.tell(first, told(1))
        assert all(torch.equal(value, kept[name]) for name, value in first.learned.items())

    def test_the_first_generation_learns_and_the_second_moves(self):
        strategy = EvolutionStrategy(Feedback(), averaging=0.0)
        states = [strategy.init(PARAMS)]
        x, y = torch.randn(20, 3), torch.arange(20) % 3
        for _ in range(2):
            states.append(strategy.tell(states[-1], evaluate(NET, strategy.ask(states[-1]), x, y)))
        for name in PARAMS:
            assert torch.equal(states[0].params[name], states[1].params[name])
            assert not torch.equal(states[1].params[name], states[2].params[name])
        learned = {"0.weight:result": (4, 4), "2.weight:result": (4, 3)}
        assert {name: tuple(v.shape) for name, v in states[1].learned.items()} == learned


BAD = st.sampled_from([0.0, math.nan, math.inf, -math.inf])


class TestWhatIsNotFinite:
    @given(pattern=st.lists(BAD, min_size=12, max_size=12))
    @settings(max_examples=25)
    @example(pattern=[math.nan] * 12)
    @example(pattern=[math.nan] * 11 + [0.0])
    @example(pattern=[math.inf, 0.0] * 6)
    def test_of_a_fitness_makes_nothing_so(self, pattern):
        """Three images, four readings."""
        waiting = list(pattern)

        def fitness(logits, labels):
            own = -F.cross_entropy(logits[:, 0], labels[:, 0], reduction="none")
            return own + torch.tensor([waiting.pop() for _ in own])

        fitness_room._independent.add(fitness)  # so that it is not called twice for a reading
        strategy = EvolutionStrategy(Feedback(readings=4))
        x, y = torch.ones(3, 3), torch.arange(3)
        state = strategy.init(PARAMS)
        state = strategy.tell(state, evaluate(NET, strategy.ask(state), x, y))
        evaluation = evaluate(NET, strategy.ask(state), x, y, fitness)
        after = strategy.tell(state, evaluation)
        some = any(map(math.isfinite, pattern))
        assert after.told == ("moved" if some else "no finite fitness")
        assert all(torch.isfinite(value).all() for value in evaluation.gradient.values())
        for values in (after.params, after.average, after.learned):
            assert all(torch.isfinite(value).all() for value in values.values())

    @pytest.mark.parametrize("bad", [1e30, 3e38, torch.inf, torch.nan])
    def test_of_an_examples_outputs_makes_nothing_so(self, bad):
        """Outputs of one example are far off; the others are as they are."""
        x, y = torch.randn(6, 3), torch.arange(6) % 3
        x[2] = bad
        strategy = EvolutionStrategy(Feedback())
        state = strategy.init(PARAMS)
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
        for _ in range(3):
            state = strategy.tell(state, evaluate(model, strategy.ask(state), x, y))
            for values in (state.params, state.average, state.learned):
                assert all(torch.isfinite(value).all() for value in values.values())


class TestLearns:
    def data(self):
        torch.manual_seed(3)
        x = torch.randn(128, 6)
        return x, (x @ torch.randn(6, 3)).argmax(1)

    def share_right(self, model, params, x, y):
        logits = functional_call(model, dict(params), (x,))
        return (logits.argmax(1) == y).float().mean().item()

    def learns(self, model, strategy, fitness=negative_cross_entropy, generations=100):
        x, y = self.data()
        state = strategy.init(dict(model.named_parameters()))
        assert self.share_right(model, state.params, x, y) < 0.6
        for _ in range(generations):
            state = strategy.tell(state, evaluate(model, strategy.ask(state), x, y, fitness))
            assert state.told == "moved"
        return self.share_right(model, strategy.centre(state), x, y)

    def strategy(self, perturb, rate=0.03):
        return EvolutionStrategy(perturb, learning_rate=constant(rate), averaging=0.9)

    def test_two_layers(self):
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
        assert self.learns(model, self.strategy(Feedback())) > 0.9

    def test_the_first_layer_alone(self):
        """It gets nothing but what is carried back through what was learned."""
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
        groups = {"2.*": Group(sigma=0)}
        strategy = EvolutionStrategy(
            Feedback(), learning_rate=constant(0.03), averaging=0.9, groups=groups
        )
        assert self.learns(model, strategy) > 0.9

    def test_from_right_and_wrong_alone(self):
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
        assert self.learns(model, self.strategy(Feedback(blur=0.5)), accuracy) > 0.9

    def test_hard_steps(self):
        """Backpropagation finds nothing behind a step."""

        class Steps(nn.Module):
            def forward(self, x):
                return torch.sign(x)

        model = nn.Sequential(nn.Linear(6, 32), Steps(), nn.Linear(32, 3)).eval()
        x, y = self.data()
        F.cross_entropy(model(x), y).backward()
        assert not model[0].weight.grad.any()
        groups = {"2.*": Group(sigma=0)}  # so that only what is in front of the steps can
        strategy = EvolutionStrategy(
            Feedback(sigma=0.5), learning_rate=constant(0.03), averaging=0.9, groups=groups
        )
        assert self.learns(model, strategy) > 0.9


class TestArguments:
    @pytest.mark.parametrize(
        ("argument", "came", "needed"),
        [
            ("samples", 0, "an integer of at least 1"),
            ("every", 0, "an integer of at least 1"),
            ("cells", 0, "an integer of at least 1"),
            ("readings", 1, "an integer of at least 2"),
            ("sigma", 0.0, "a finite number above 0"),
            ("window", 0.0, "a finite number above 0"),
            ("window", math.nan, "a finite number above 0"),
            ("blur", -0.1, "a finite number of at least 0"),
        ],
    )
    def test_out_of_range(self, argument, came, needed):
        with pytest.raises(ArgumentError) as caught:
            Feedback(**{argument: came})
        assert str(caught.value) == f"{argument}: needed {needed}, got {came}."

    def test_a_shaping_for_weights(self):
        with pytest.raises(ArgumentError) as caught:
            EvolutionStrategy(Feedback(), shaping="rank")
        assert str(caught.value) == "shaping: needed one of raw, relative, got rank."

    def test_an_evaluation_that_says_nothing_of_noise(self):
        strategy = EvolutionStrategy(Feedback())
        evaluation = Evaluation(torch.ones(3), {n: torch.ones_like(p) for n, p in PARAMS.items()})
        with pytest.raises(ArgumentError) as caught:
            strategy.tell(strategy.init(PARAMS), evaluation)
        assert str(caught.value) == (
            "evaluation: needed an Evaluation that says what noise did to the outputs, got one "
            "without. evaluate returns one."
        )

    def test_fitness_alone(self):
        strategy = EvolutionStrategy(Feedback())
        with pytest.raises(ArgumentError) as caught:
            strategy.tell(strategy.init(PARAMS), torch.ones(3))
        assert str(caught.value).startswith(
            "evaluation: needed an Evaluation with a gradient estimate for each parameter"
        )
