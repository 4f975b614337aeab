"""What the estimate estimates, by its theory: fixed seeds, analytic gradients.

The estimate is that of raw fitness; a step of 1 along it (plain SGD) shows it.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import evolution, stacked

from tinkering.noise import Dense, LowRank, Separable

SIZES = [32, 128, 512, 2048]
SEEDS = 12


def estimate(function, start, **changes):
    """The gradient as the strategy estimates it, of ``[members, ...] tensors -> [members]``."""
    settings = {"sigma": 0.01, "shaping": "raw", "noise": Dense(), "averaging": 0.0}
    settings |= {"optimiser": torch.optim.SGD, "learning_rate": 1.0, **changes}
    strategy = evolution(**settings)
    state = strategy.init(start)
    after = strategy.tell(state, function(stacked(strategy.ask(state))))
    assert after.told == "moved"
    return torch.cat([(after.params[n] - p).flatten() for n, p in start.items()])


def quadratic():
    """``-(w - t)' A (w - t)`` of 8 x 6 parameters; its smoothed gradient is its gradient."""
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(48, 48, generator=generator).double() / math.sqrt(48)
    matrix = root.T @ root + torch.eye(48) / 10
    start = torch.randn(8, 6, generator=generator).double()

    def function(members):
        x = members["w"].flatten(1)
        return -((x @ matrix) * x).sum(1)

    return function, {"w": start}, (-2 * matrix @ start.flatten())


def network():
    """The log-likelihood of a perceptron of 93 parameters, and its gradient by autograd."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(30, 5, generator=generator).double()
    y = torch.randint(3, (30,), generator=generator)
    shapes = {"0.weight": (10, 5), "0.bias": (10,), "1.weight": (3, 10), "1.bias": (3,)}
    start = {n: torch.randn(s, generator=generator).double() / 2 for n, s in shapes.items()}

    def function(members):
        hidden = torch.tanh(x @ members["0.weight"].mT + members["0.bias"].unsqueeze(1))
        logits = hidden @ members["1.weight"].mT + members["1.bias"].unsqueeze(1)
        targets = y.expand(len(logits), -1).flatten()
        return (
            -F.cross_entropy(logits.flatten(0, 1), targets, reduction="none").view(-1, 30).mean(1)
        )

    params = {name: p.clone().requires_grad_() for name, p in start.items()}
    function({name: p.unsqueeze(0) for name, p in params.items()}).sum().backward()
    return function, start, torch.cat([p.grad.flatten() for p in params.values()])


PROBLEMS = {"quadratic": quadratic(), "network": network()}
FORMS = {
    "pairs": {},
    "pairs, low rank": {"noise": LowRank(1)},
    "groups of 8": {"antithetic": False, "group": 8},
}


def errors_of(problem, changes):
    """The root mean square error over seeds, relative to the gradient, for each size."""
    function, start, true = problem
    errors = []
    for pairs in SIZES:
        results = [
            estimate(function, start, population=2 * pairs, seed=seed, **changes)
            for seed in range(SEEDS)
        ]
        squares = [((result - true).norm() / true.norm()).square().item() for result in results]
        errors.append(math.sqrt(sum(squares) / SEEDS))
    return errors


def expected_errors(name, form, parameters):
    """By theory, for normal noise and for a quadratic with low-rank noise; else None.

    The variance of ``(g . e) e`` is ``|g|^2 (D + 1)`` for normal noise in D parameters, and
    ``|g|^2 ((8 + 2) (6 + 2) - 1)`` for a product of two normals as an 8 x 6 matrix. In groups
    of g, without pairs, a direction is a member, and has the noise of the others in it: there
    are ``members * (g - 1) / g``.
    """
    if form != "pairs, low rank":
        directions = [pairs * 2 * 7 / 8 if form == "groups of 8" else pairs for pairs in SIZES]
        return [math.sqrt((parameters + 1) / n) for n in directions]
    return [math.sqrt(79 / n) for n in SIZES] if name == "quadratic" else None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_estimate_converges_to_the_gradient(name, form):
    errors = errors_of(PROBLEMS[name], FORMS[form])
    slope = np.polyfit(np.log(SIZES), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.06)
    assert errors[-1] < 0.25
    expected = expected_errors(name, form, len(PROBLEMS[name][2]))
    if expected is not None:
        assert errors == pytest.approx(expected, rel=0.2)


def test_members_of_their_own_are_worth_more_than_pairs_where_directions_are_few():
    """The cosine to the gradient, for as many evaluations; on a slope, where sigma is nothing.

    With n directions among many more parameters it is ``sqrt(n / D)``, so it should rise by
    ``sqrt(2 * 7 / 8) = 1.32``.
    """
    slope = torch.randn(60, 50, generator=torch.Generator().manual_seed(5)).double()
    start = {"w": torch.zeros(60, 50).double()}

    def cosine(**changes):
        def function(members):
            return (members["w"] * slope).sum((1, 2))

        results = [estimate(function, start, population=64, seed=s, **changes) for s in range(40)]
        each = [torch.cosine_similarity(r, slope.flatten(), dim=0).item() for r in results]
        return sum(each) / len(each)

    pairs, groups = cosine(), cosine(antithetic=False, group=8)
    assert pairs == pytest.approx(math.sqrt(32 / 3000), rel=0.1)
    assert groups / pairs == pytest.approx(math.sqrt(2 * 7 / 8), rel=0.1)


class TestEvenOrders:
    """At the top of an even function every member of a pair is as fit as the other."""

    START = {"w": torch.zeros(8, 6).double()}  # noqa: RUF012

    @staticmethod
    def even(members):
        w = members["w"].flatten(1)
        return -w.square().sum(1) + 3 * w.pow(4).sum(1) + torch.cos(w).prod(1)

    @pytest.mark.parametrize("shaping", ["raw", "z-score", "rank", "sign"])
    @pytest.mark.parametrize("noise", [Dense(), LowRank(1), Separable(2)], ids=str)
    def test_pairs_remove_them_exactly(self, noise, shaping):
        result = estimate(
            self.even, self.START, population=64, sigma=0.5, noise=noise, shaping=shaping
        )
        assert torch.equal(result, torch.zeros(48).double())

    def test_pairs_remove_them_beside_others(self):
        """So what is left of a slope is the same with a bowl and without."""

        def slope(members):
            return members["w"].sum((1, 2))

        def both(members):
            return slope(members) + self.even(members)

        alone, beside = (estimate(f, self.START, population=64, sigma=0.5) for f in (slope, both))
        torch.testing.assert_close(alone, beside, rtol=1e-5, atol=1e-5)

    def test_one_sided_they_stay(self):
        """``mean(f e) / sigma`` of ``f = -sigma^2 |e|^2``: its square is, in the mean,
        ``sigma^2 D (D + 2) (D + 4) / n``. Comparing with a group takes most of it away."""

        def bowl(members):
            return -members["w"].square().sum((1, 2))

        settings = {"population": 2000, "sigma": 0.5, "antithetic": False, "group": 8}
        strategy = evolution(2000, 0.5, noise=Dense(), antithetic=False)
        population = strategy.ask(strategy.init(self.START))
        fitness = bowl(stacked(population))
        one_sided = population.weighted_noise(fitness / 2000)["w"] / 0.5
        expected = 0.5 * math.sqrt(48 * 50 * 52 / 2000)
        assert one_sided.norm().item() == pytest.approx(expected, rel=0.25)
        grouped = estimate(bowl, self.START, **settings).norm()
        assert 0 < grouped < 0.5 * one_sided.norm()
        assert estimate(bowl, self.START, population=2000, sigma=0.5).norm() == 0


class TestLowRankBias:
    """Low-rank noise has heavier tails, so it smooths the fitness with other weights.

    The estimate's mean is the gradient of ``E f(w + sigma e)``. For ``f = sum of w^4`` that is
    ``4 w^3 + 4 w sigma^2 kurtosis(e)`` in each entry: 3 for normal noise, ``3 + 6 / rank`` for
    a sum of products of two. So the bias is ``24 w sigma^2 / rank``.
    """

    @staticmethod
    def measured(noise, shape=(32, 32), pairs=2048):
        def quartic(members):
            return members["w"].pow(4).flatten(1).sum(1)

        start = {"w": torch.ones(shape).double()}
        results = [
            estimate(quartic, start, population=2 * pairs, sigma=1.0, noise=noise, seed=seed)
            for seed in range(2)
        ]
        return torch.cat(results).mean().item()

    def test_shrinks_as_one_over_the_rank(self):
        ranks = [1, 2, 4, 8]
        normal, low = self.measured(Dense()), [self.measured(LowRank(rank)) for rank in ranks]
        assert normal == pytest.approx(4 + 4 * 3, rel=0.1)
        assert low == pytest.approx([4 + 4 * (3 + 6 / rank) for rank in ranks], rel=0.1)
        biases = [value - normal for value in low]
        assert biases == pytest.approx([24 / rank for rank in ranks], rel=0.25)
