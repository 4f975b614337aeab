"""Which parameters evolve: patterns, factors on sigma and on the step, and what stays."""

import copy
import pickle

import pytest
import torch
from problems import evolution
from torch import nn

from tinkering import evaluate
from tinkering.noise import Dense
from tinkering.strategies.groups import Group, group_of_each

NAMES = ["bn1.weight", "bn1.bias", "layer4.0.conv.weight", "layer4.0.bn.bias", "head.weight"]
SGD = torch.optim.SGD


def make_model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3))


def init(strategy):
    return strategy.init(dict(make_model().named_parameters()))


class TestPatterns:
    def test_the_first_match_wins(self):
        first, second, third = Group(sigma=0.5), Group(step=2.0), Group(sigma=0.0)
        groups = {"layer4.*": first, "*.bias": second, "*": third}
        found = group_of_each(NAMES, groups)
        assert found == {
            "bn1.weight": third,
            "bn1.bias": second,
            "layer4.0.conv.weight": first,
            "layer4.0.bn.bias": first,
            "head.weight": third,
        }

    def test_no_match_is_the_strategys_own(self):
        assert set(group_of_each(NAMES, {}).values()) == {Group()}

    def test_a_pattern_that_others_came_before_is_fine(self):
        assert group_of_each(NAMES, {"*": Group(step=3.0), "bn1.*": Group()})["bn1.bias"].step == 3

    @pytest.mark.parametrize("pattern", ["layer5.*", "BN1.*", "bn", ""])
    def test_a_pattern_that_matches_nothing_is_refused_with_the_names(self, pattern):
        strategy = evolution(groups={"*.bias": Group(), pattern: Group(sigma=0.0)})
        with pytest.raises(ValueError, match="groups") as caught:
            strategy.init({name: torch.zeros(2) for name in NAMES})
        assert str(caught.value) == (
            f"groups: needed patterns that match a parameter's name, got {pattern!r}. The "
            f"parameters are {', '.join(map(repr, NAMES))}."
        )

    def test_something_has_to_evolve(self):
        with pytest.raises(ValueError, match="a sigma above 0 for some parameter"):
            init(evolution(groups={"*": Group(sigma=0.0)}))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"sigma": -1.0}, "Group.sigma: needed a finite number of at least 0, got -1.0."),
            (
                {"sigma": float("nan")},
                "Group.sigma: needed a finite number of at least 0, got nan.",
            ),
            (
                {"step": 0.0},
                "Group.step: needed a finite number above 0, got 0.0. "
                "Group(sigma=0) keeps parameters as they are.",
            ),
        ],
    )
    def test_message(self, arguments, message):
        with pytest.raises(ValueError, match="needed") as caught:
            Group(**arguments)
        assert str(caught.value) == message


class TestSigma:
    GROUPS = {"3.*": Group(sigma=3.0), "1.*": Group(sigma=0.0)}  # noqa: RUF012

    def test_is_a_factor_and_zero_leaves_the_population(self):
        plain, grouped = evolution(6, 0.1), evolution(6, 0.1, groups=self.GROUPS)
        ordinary, population = plain.ask(init(plain)), grouped.ask(init(grouped))
        assert list(population.params) == ["0.weight", "0.bias", "3.weight", "3.bias"]
        centre = dict(make_model().named_parameters())
        for name, value in population[4][0].items():
            factor = 3.0 if name.startswith("3.") else 1.0
            expected = factor * (ordinary[4][0][name] - centre[name])
            torch.testing.assert_close(value - centre[name], expected.detach())

    def test_without_factors_the_population_has_one_number(self):
        groups = {"3.*": Group(step=2.0), "1.*": Group(sigma=0.0)}
        strategy = evolution(6, 0.1, groups=groups)
        assert strategy.ask(init(strategy)).sigma == 0.1

    def test_what_does_not_evolve_is_in_the_centre_as_it_was_given(self):
        strategy = evolution(6, 0.1, groups=self.GROUPS)
        state, model = init(strategy), make_model()
        for _ in range(3):
            state = strategy.tell(state, torch.randn(6))
        centre = strategy.centre(state)
        assert set(centre) == {name for name, _ in model.named_parameters()}
        for name, p in model.named_parameters():
            assert torch.equal(centre[name], p) == name.startswith("1.")
        model.load_state_dict(centre)

    @pytest.mark.parametrize("shaping", ["raw", "z-score"])
    def test_does_not_change_the_direction_that_is_estimated(self, shaping):
        """On a linear fitness, for which the estimate does not depend on sigma at all."""
        slope = {"a": torch.randn(6), "b": torch.randn(6)}
        estimates = []
        for factor in (1.0, 20.0):
            strategy = evolution(
                40_000,
                0.01,
                shaping=shaping,
                noise=Dense(),
                optimiser=SGD,
                learning_rate=1.0,
                groups={"b": Group(sigma=factor)},
                averaging=0.0,
            )
            state = strategy.init({"a": torch.zeros(6), "b": torch.zeros(6)})
            population = strategy.ask(state)
            draw = population.draw()
            fitness = sum(
                (draw.noise[n].dense() @ s)[draw.rows] * draw.signs * population.sigma_of(n)
                for n, s in slope.items()
            )
            moved = strategy.tell(state, fitness).params
            estimates.append(torch.cat([moved["a"], moved["b"]]))
        true = torch.cat([slope["a"], slope["b"]])
        for estimate in estimates:
            assert torch.cosine_similarity(estimate, true, dim=0) > 0.97
        if shaping == "raw":
            torch.testing.assert_close(estimates[0], true, rtol=0.1, atol=0.1)

    def test_is_evaluated_with_the_models_own_for_the_rest(self):
        model, strategy = make_model().eval(), evolution(6, 0.1, groups=self.GROUPS)
        population, x = strategy.ask(init(strategy)), torch.randn(4, 6)
        y = torch.tensor([0, 1, 2, 0])
        together, apart = (
            evaluate(model, population, x, y, engine=engine).fitness
            for engine in ("factored", "sequential")
        )
        torch.testing.assert_close(together, apart)


class TestStep:
    def test_is_a_factor_on_the_change(self):
        groups = {"3.*": Group(step=4.0), "0.bias": Group(step=0.5)}
        for optimiser in (SGD, torch.optim.Adam):
            changes = []
            for these in ({}, groups):
                strategy = evolution(8, 0.1, optimiser=optimiser, groups=these, decay=5.0)
                state = init(strategy)
                for fitness in torch.randn(3, 8, generator=torch.Generator().manual_seed(0)):
                    state = strategy.tell(state, fitness)
                start = dict(make_model().named_parameters())
                changes.append({n: (p - start[n]).detach() for n, p in state.params.items()})
            for name, change in changes[1].items():
                factor = {"0.bias": 0.5, "3.weight": 4.0, "3.bias": 4.0}.get(name, 1.0)
                torch.testing.assert_close(change, factor * changes[0][name], rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
    def test_goes_on_from_a_copy(self, duplicate):
        groups = {"3.*": Group(sigma=0.5, step=4.0), "0.bias": Group(sigma=0.0)}
        strategy = evolution(8, 0.1, groups=groups)
        state = strategy.tell(init(strategy), torch.arange(8.0))
        fitness = torch.randn(8)
        first, second = (strategy.tell(s, fitness) for s in (state, duplicate(state)))
        assert all(torch.equal(p, second.params[name]) for name, p in first.params.items())
