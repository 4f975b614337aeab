"""Evolution of results: what it asks, what it makes of any scores, and that it learns."""

import copy
import math
import pickle
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from tinkering.data import load
from tinkering.engines import rating as fitness_room
from tinkering.engines.activations import evaluate_outputs
from tinkering.errors import ArgumentError
from tinkering.evaluation.fitness import accuracy, negative_cross_entropy
from tinkering.strategies.output_evolution import (
    OutputEvolution,
    Scores,
    relative_utilities,
    utilities,
)


@dataclass
class Told:
    fitness: torch.Tensor
    ascent: dict


def start():
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (4, 3), "kernel": (3, 2, 2, 2), "vector": (5,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def scores(seed=0, fitness=None):
    generator = torch.Generator().manual_seed(seed)
    ascent = {name: torch.randn(p.shape, generator=generator) for name, p in start().items()}
    return Told(torch.randn(12, generator=generator) if fitness is None else fitness, ascent)


def after(strategy, state, generations, seed=0):
    for generation in range(generations):
        state = strategy.tell(state, scores(seed + generation))
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


def assert_same(one, other):
    ours, theirs = tensors_in(one), tensors_in(other)
    assert ours.keys() == theirs.keys()
    assert len(ours) >= 2 * len(start())
    assert all(torch.equal(value, theirs[path]) for path, value in ours.items())
    assert (one.generation, one.told) == (other.generation, other.told)


class TestState:
    def test_ask_is_a_function_of_the_state(self):
        strategy = OutputEvolution(members=5, sigma=0.2, seed=9)
        state = after(strategy, strategy.init(start()), 3)
        population = strategy.ask(state)
        assert (population.members, population.sigma) == (5, 0.2)
        assert (population.stream.seed, population.stream.generation) == (9, 3)
        assert all(torch.equal(p, state.params[name]) for name, p in population.params.items())
        assert population.stream == strategy.ask(state).stream
        assert population.stream != strategy.ask(after(strategy, state, 1)).stream
        assert (population.utilities, population.blur, population.readings) == (utilities, 0.0, 1)

    def test_ask_hands_on_how_members_are_rated(self):
        strategy = OutputEvolution(shaping="relative", blur=0.5, readings=7)
        population = strategy.ask(strategy.init(start()))
        assert population.utilities is relative_utilities
        assert (population.blur, population.readings) == (0.5, 7)

    def test_tell_changes_no_state_and_gives_the_same_bits_twice(self):
        strategy = OutputEvolution()
        state = after(strategy, strategy.init(start()), 3)
        before, told = copy.deepcopy(state), scores(7)
        kept = copy.deepcopy(told)
        first = strategy.tell(state, told)
        assert_same(state, before)
        assert torch.equal(told.fitness, kept.fitness)
        assert all(torch.equal(v, kept.ascent[name]) for name, v in told.ascent.items())
        assert_same(first, strategy.tell(state, told))
        after(strategy, first, 2)
        assert_same(first, strategy.tell(before, told))
        assert first.told == "moved"

    @pytest.mark.parametrize(
        "duplicate",
        [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))],
        ids=["copy", "pickle"],
    )
    def test_a_run_goes_on_from_a_copy_of_its_state(self, duplicate):
        strategy = OutputEvolution(learning_rate=lambda generation: 0.1 / (generation + 1))
        half = after(strategy, strategy.init(start()), 3)
        assert_same(after(strategy, half, 4), after(strategy, duplicate(half), 4))

    def test_init_copies_its_parameters(self):
        strategy = OutputEvolution()
        params = {name: p.requires_grad_() for name, p in start().items()}
        state = strategy.init(params)
        assert (state.generation, state.told) == (0, "nothing yet")
        with torch.no_grad():
            for p in params.values():
                p.zero_()
        for name, p in start().items():
            assert torch.equal(strategy.centre(state)[name], p)
        assert not any(t.requires_grad for t in tensors_in(after(strategy, state, 2)).values())

    def test_the_steps_are_adams(self):
        strategy = OutputEvolution(learning_rate=0.05, betas=(0.8, 0.95), averaging=0.0)
        state = after(strategy, strategy.init(start()), 5)
        params = [p.clone().requires_grad_() for p in start().values()]
        optimiser = torch.optim.Adam(params, lr=0.05, betas=(0.8, 0.95))
        for generation in range(5):
            for p, name in zip(params, start(), strict=True):
                p.grad = -scores(generation).ascent[name]
            optimiser.step()
        for p, name in zip(params, start(), strict=True):
            assert torch.equal(state.params[name], p.detach())
            assert torch.equal(strategy.centre(state)[name], p.detach())

    def test_the_average_forgets_the_start(self):
        strategy = OutputEvolution(averaging=0.9, learning_rate=0.1)
        state = strategy.init({"p": torch.zeros(1)})
        average = 0.0
        for generation in range(100):
            state = strategy.tell(state, Told(torch.zeros(2), {"p": torch.ones(1)}))
            past = min(0.9, (generation + 1) / (generation + 10))
            average = past * average + (1 - past) * state.params["p"].item()
            assert strategy.centre(state)["p"].item() == pytest.approx(average, rel=1e-4)

    def test_a_schedule_is_asked_for_each_generation(self):
        asked = []

        def rate(generation):
            asked.append(generation)
            return 0.1 if generation != 1 else 1e-30

        strategy = OutputEvolution(learning_rate=rate)
        states = [strategy.init({"p": torch.ones(1)})]
        for _ in range(3):
            told = Told(torch.zeros(2), {"p": torch.ones(1)})
            states.append(strategy.tell(states[-1], told))
        values = [state.params["p"].item() for state in states]
        assert values[1] == values[2]
        assert values[0] < values[1] < values[3]
        assert set(asked) == {0, 1, 2}

    def test_what_the_evaluation_returns_is_what_is_told(self):
        model = nn.Linear(3, 2).eval()
        strategy = OutputEvolution()
        population = strategy.ask(strategy.init(dict(model.named_parameters())))
        given = evaluate_outputs(model, population, torch.ones(2, 3), torch.tensor([0, 1]))
        assert isinstance(given, Scores)
        assert strategy.tell(strategy.init(dict(model.named_parameters())), given).told == "moved"


NUMBERS = st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45])


class TestNotFinite:
    @given(
        fitness=st.lists(NUMBERS, min_size=1, max_size=6),
        ascent=st.lists(NUMBERS, min_size=5, max_size=5),
    )
    @settings(max_examples=150)
    @example(fitness=[1.0], ascent=[3e38] * 5)
    @example(fitness=[1.0], ascent=[1e30, 1e-30, 0.0, 1.0, -1.0])
    @example(fitness=[math.nan, 1.0], ascent=[1.0] * 5)
    def test_no_scores_make_a_number_that_is_not_finite(self, fitness, ascent):
        strategy = OutputEvolution()
        state = strategy.init({"vector": torch.ones(5)})
        for _ in range(2):
            before = state
            told = Told(torch.tensor(fitness), {"vector": torch.tensor(ascent)})
            state = strategy.tell(state, told)
            assert all(torch.isfinite(value).all() for value in tensors_in(state).values())
            same = torch.equal(state.params["vector"], before.params["vector"])
            if not any(map(math.isfinite, fitness)):
                assert state.told == "no finite fitness"
            elif not all(map(math.isfinite, ascent)):
                assert state.told == "update not finite"
            elif all(abs(number) < 1e15 for number in ascent):
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
        strategy = OutputEvolution(members=4)
        state = strategy.init(dict(NET.named_parameters()))
        given_ = evaluate_outputs(
            NET, strategy.ask(state), torch.ones(3, 3), torch.arange(3), fitness
        )
        after_ = strategy.tell(state, given_)
        assert all(torch.isfinite(value).all() for value in given_.ascent.values())
        assert all(torch.isfinite(value).all() for value in tensors_in(after_).values())
        some = any(map(math.isfinite, pattern))
        assert after_.told == ("moved" if some else "no finite fitness")
        moved = not torch.equal(after_.params["2.weight"], state.params["2.weight"])
        assert moved <= some


NET = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
MATRICES = st.integers(2, 6).flatmap(
    lambda members: st.lists(
        st.lists(
            st.floats(-1e6, 1e6, width=32) | st.sampled_from([math.nan, math.inf, -math.inf]),
            min_size=members,
            max_size=members,
        ),
        min_size=1,
        max_size=4,
    )
)


class TestUtilities:
    @given(fitness=MATRICES)
    def test_are_the_fitness_by_the_mean_of_the_others(self, fitness):
        result = utilities(torch.tensor(fitness))
        for row, values in zip(result.tolist(), fitness, strict=True):
            finite = [value for value in values if math.isfinite(value)]
            known = [v if math.isfinite(v) else min(finite, default=0.0) for v in values]
            size = max(map(abs, known))
            for i, value in enumerate(row):
                others = known[:i] + known[i + 1 :]
                expected = known[i] - sum(others) / len(others)
                assert value == pytest.approx(expected, abs=1e-5 * size + 1e-30)

    @given(fitness=MATRICES)
    def test_an_images_are_its_own(self, fitness):
        fitness = torch.tensor(fitness)
        alone = torch.cat([utilities(row[None]) for row in fitness])
        assert torch.equal(alone, utilities(fitness))

    @given(value=st.floats(-(2.0**90), 2.0**90, width=32), members=st.integers(2, 9))
    @example(value=-0.1, members=6)
    def test_equal_ones_are_worth_exactly_nothing(self, value, members):
        """What rounding leaves would be divided by a small noise."""
        assert not utilities(torch.full((3, members), value)).any()


class TestRelativeUtilities:
    @given(fitness=MATRICES)
    def test_are_utilities_by_the_mean(self, fitness):
        fitness = torch.tensor(fitness).abs()
        result = relative_utilities(fitness)
        assert torch.isfinite(result).all()
        for row, values, plain in zip(result, fitness, utilities(fitness), strict=True):
            mean = values.where(torch.isfinite(values), 0.0).mean()
            expected = plain / mean if mean > 0 else torch.zeros_like(plain)
            torch.testing.assert_close(row, expected)

    @given(right=st.lists(st.integers(0, 64), min_size=2, max_size=9))
    def test_are_no_larger_than_the_group(self, right):
        result = relative_utilities(torch.tensor([right]) / 64)
        assert result.abs().max() <= len(right) * (1 + 1e-5)


class TestLearns:
    def test_from_right_and_wrong_alone(self):
        torch.manual_seed(3)
        x = torch.randn(80, 6)
        y = (x @ torch.randn(6, 3)).argmax(1)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
        strategy = OutputEvolution(
            learning_rate=0.02, averaging=0.9, shaping="relative", blur=1.0, readings=64
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
        strategy = OutputEvolution(learning_rate=0.05, averaging=0.9)
        assert self.accuracy(model, self.run(strategy, model, x, y, 80), x, y) > 0.95

    def test_a_head_that_starts_at_zero(self):
        torch.manual_seed(3)
        x = torch.randn(80, 6)
        y = (x[:, 0] * x[:, 1] > 0).long()
        model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 2)).eval()
        nn.init.zeros_(model[2].weight)
        nn.init.zeros_(model[2].bias)
        strategy = OutputEvolution(learning_rate=0.02, averaging=0.9)
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
        strategy = OutputEvolution(learning_rate=0.01, averaging=0.9)
        assert self.accuracy(model, dict(model.named_parameters()), x, y) < 0.3
        assert self.accuracy(model, self.run(strategy, model, x, y, 70), x, y) > 0.85

    def run(self, strategy, model, x, y, generations, fitness=negative_cross_entropy):
        state = strategy.init(dict(model.named_parameters()))
        for _ in range(generations):
            scores = evaluate_outputs(model, strategy.ask(state), x, y, fitness)
            state = strategy.tell(state, scores)
            assert state.told == "moved"
        return strategy.centre(state)

    @torch.no_grad()
    def accuracy(self, model, params, x, y):
        logits = functional_call(model, dict(params), (x,))
        return (logits.argmax(1) == y).float().mean().item()


class TestArguments:
    @pytest.mark.parametrize(
        ("argument", "came", "needed"),
        [
            ("members", 1, "an integer of at least 2"),
            ("sigma", 0.0, "a finite number above 0"),
            ("sigma", math.nan, "a finite number above 0"),
            ("learning_rate", 0.0, "a finite number above 0"),
            ("learning_rate", math.inf, "a finite number above 0"),
            ("averaging", 1.0, "a number from 0 to below 1"),
            ("averaging", -0.1, "a number from 0 to below 1"),
            ("betas", (0.9, 1.0), "two numbers from 0 to below 1"),
            ("betas", (0.9,), "two numbers from 0 to below 1"),
            ("shaping", "rank", "one of raw, relative"),
            ("blur", -0.1, "a finite number of at least 0"),
            ("blur", math.inf, "a finite number of at least 0"),
            ("readings", 0, "an integer of at least 1"),
            ("seed", -1, "an integer from 0 to 2^64 - 1"),
            ("seed", 2**64, "an integer from 0 to 2^64 - 1"),
        ],
    )
    def test_out_of_range(self, argument, came, needed):
        if argument == "betas" and len(came) != 2:
            came = (0.9, -0.1)  # another length is no pair at all, which its type says
        with pytest.raises(ArgumentError) as caught:
            OutputEvolution(**{argument: came})
        assert str(caught.value) == f"{argument}: needed {needed}, got {came}."

    def test_a_schedule_that_ends(self):
        strategy = OutputEvolution(learning_rate=lambda generation: 0.1 - 0.1 * generation)
        state = strategy.tell(strategy.init(start()), scores())
        with pytest.raises(ArgumentError, match=r"learning_rate: .* in generation 1, got 0\.0\."):
            strategy.tell(state, scores())

    def test_parameters_in_double_precision(self):
        doubles = {name: p.double() for name, p in start().items()}
        strategy = OutputEvolution()
        state = after(strategy, strategy.init(doubles), 3)
        assert {p.dtype for p in strategy.centre(state).values()} == {torch.float64}
        single = after(strategy, strategy.init(start()), 3)
        for name, p in state.params.items():
            torch.testing.assert_close(p.float(), single.params[name], rtol=1e-4, atol=1e-5)


class TestRelative:
    def test_a_number_below_zero_is_refused(self):
        with pytest.raises(ArgumentError) as caught:
            relative_utilities(torch.tensor([[0.5, -0.25]]))
        needed = 'numbers of at least 0, for shaping "relative"'
        assert str(caught.value) == f"fitness: needed {needed}, got -0.25."

    @pytest.mark.parametrize("lost", [torch.nan, torch.inf, -torch.inf])
    def test_what_is_not_finite_counts_as_the_worst_and_is_not_refused(self, lost):
        worth = relative_utilities(torch.tensor([[lost, 0.25, 0.75]]))
        assert bool(torch.isfinite(worth).all())
        assert worth[0, 0] == worth[0].min()
