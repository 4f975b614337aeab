"""The evolution strategy against analytic gradients, and Adam and averaging in NumPy."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from problems import evolution, stacked

from tinkering.engines.evaluation import Evaluation
from tinkering.errors import TinkeringError
from tinkering.noise import Dense, LowRank, Separable, Stream, draw

BETAS = (0.9, 0.999)
"""Of Adam, where nothing else is asked for."""
KINDS = [Dense(), LowRank(1), LowRank(2), Separable(1)]


def start(shape=(8, 6)):
    return {"w": torch.randn(shape, generator=torch.Generator().manual_seed(0))}


def fitness_of(strategy, state, function):
    return torch.stack([function(w) for w in stacked(strategy.ask(state))["w"]])


def estimate(strategy, state, fitness):
    """The estimate that Adam was handed in the first generation: its running mean says it."""
    (slots,) = strategy.tell(state, fitness).optimiser["state"].values()
    return -slots["exp_avg"] / (1 - BETAS[0])


def quadratic(shape=(8, 6)):
    """``-(w - target)' A (w - target)`` with its analytic gradient."""
    generator = torch.Generator().manual_seed(1)
    size = math.prod(shape)
    root = torch.randn(size, size, generator=generator) / math.sqrt(size)
    matrix = root.T @ root + torch.eye(size) / 10
    target = torch.randn(size, generator=generator)

    def function(w):
        x = w.flatten() - target
        return -(x @ matrix @ x)

    def gradient(w):
        return (-2 * matrix @ (w.flatten() - target)).view(shape)

    return function, gradient


def linear(shape=(8, 6)):
    slope = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    return (lambda w: (slope * w).sum()), (lambda _: slope)


class TestEstimate:
    @pytest.mark.parametrize("kind", KINDS, ids=str)
    def test_is_the_mean_over_pairs_of_utility_times_noise(self, kind):
        strategy = evolution(population=10, sigma=0.1, noise=kind, seed=4)
        state = strategy.init(start())
        fitness = fitness_of(strategy, state, quadratic()[0])
        differences = (fitness[0::2] - fitness[1::2]).double().numpy()
        utilities = differences / np.sqrt((differences**2).mean())
        expected = np.zeros((8, 6))
        for pair, utility in enumerate(utilities):
            noise = draw(kind, Stream(4, 0), {"w": (8, 6)}, range(pair, pair + 1))["w"].dense()[0]
            expected += utility * noise.double().numpy() / 5
        result = estimate(strategy, state, fitness)
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("shaping", ["z-score", "rank"])
    @pytest.mark.parametrize("kind", KINDS, ids=str)
    @pytest.mark.parametrize("problem", [linear, quadratic])
    def test_turns_towards_the_gradient_as_pairs_grow(self, problem, kind, shaping):
        function, gradient = problem()
        cosines = []
        for pairs in (8, 128, 2048):
            strategy = evolution(2 * pairs, 0.01, noise=kind, shaping=shaping)
            state = strategy.init(start())
            found = estimate(strategy, state, fitness_of_many(strategy, state, function))
            true = gradient(start()["w"])
            cosines.append(torch.cosine_similarity(found.flatten(), true.flatten(), dim=0).item())
        # sqrt(n / (n + D)) for n directions of normals among D parameters, here 48.
        assert cosines == sorted(cosines)
        assert cosines[0] < 0.75
        assert cosines[1] > 0.7
        assert cosines[2] > 0.95

    def test_does_not_depend_on_what_both_members_of_a_pair_share(self):
        strategy = evolution(population=16, sigma=0.1)
        state = strategy.init(start())
        fitness = fitness_of(strategy, state, quadratic()[0])
        difficulty = torch.randn(8).repeat_interleave(2)
        torch.testing.assert_close(
            estimate(strategy, state, fitness + difficulty),
            estimate(strategy, state, fitness),
            rtol=1e-3,
            atol=1e-4,
        )

    @pytest.mark.parametrize("shaping", ["z-score", "rank"])
    def test_does_not_depend_on_the_scale_of_fitness(self, shaping):
        strategy = evolution(population=16, sigma=0.1, shaping=shaping)
        state = strategy.init(start())
        fitness = fitness_of(strategy, state, quadratic()[0])
        for scale in (2.0**-20, 4.0, 2.0**30):
            torch.testing.assert_close(
                estimate(strategy, state, fitness * scale), estimate(strategy, state, fitness)
            )

    def test_fitness_in_double_precision_keeps_its_digits(self):
        strategy = evolution(population=8, sigma=0.1)
        state = strategy.init(start())
        small = torch.tensor([3.0, 1.0, -2.0, 0.5, 0.0, 1.0, 4.0, -1.0], dtype=torch.float64)
        for shifted in (1e9 + small, 1e300 * small):
            torch.testing.assert_close(
                estimate(strategy, state, shifted), estimate(strategy, state, small)
            )


def fitness_of_many(strategy, state, function):
    """As `fitness_of`, with the noise of all members drawn at once."""
    w = state.params["w"]
    pairs = strategy.perturb.population // 2
    stream = Stream(strategy.seed, 0)
    noise = draw(strategy.perturb.noise, stream, {"w": w.shape}, range(pairs))["w"].dense()
    members = [w + s * strategy.perturb.sigma * n for n in noise for s in (1, -1)]
    # In double precision: differences of small perturbations would drown in float32.
    return torch.stack([function(m) for m in members])


class TestSteps:
    def test_are_adams(self):
        """Kingma and Ba 2014 (arXiv 1412.6980), algorithm 1, on the estimates by hand."""
        adam = partial(torch.optim.Adam, betas=(0.8, 0.95))
        strategy = evolution(8, 0.1, learning_rate=0.03, decay=10.0, optimiser=adam, seed=2)
        function, _ = quadratic()
        state = strategy.init(start())
        w = start()["w"].double().numpy()
        mean, square = np.zeros_like(w), np.zeros_like(w)
        for step in range(1, 6):
            fitness = fitness_of(strategy, state, function)
            differences = (fitness[0::2] - fitness[1::2]).double().numpy()
            utilities = differences / np.sqrt((differences**2).mean())
            noise = draw(LowRank(1), Stream(2, step - 1), {"w": (8, 6)}, range(4))["w"].dense()
            gradient = -np.tensordot(utilities, noise.double().numpy(), 1) / 4
            mean = 0.8 * mean + 0.2 * gradient
            square = 0.95 * square + 0.05 * gradient**2
            corrected = np.sqrt(square / (1 - 0.95**step)) + 1e-8
            rate = 0.03 / math.sqrt(1 + (step - 1) / 10)
            w = w - rate * mean / (1 - 0.8**step) / corrected
            state = strategy.tell(state, fitness)
            np.testing.assert_allclose(state.params["w"], w, rtol=1e-3, atol=1e-3)

    def test_ask_perturbs_the_latest_centre_and_the_average_is_handed_out(self):
        strategy = evolution(8, 0.1)
        state = strategy.init(start())
        for _ in range(3):
            state = strategy.tell(state, fitness_of(strategy, state, quadratic()[0]))
        population = strategy.ask(state)
        middle = (population.member(2)[0]["w"] + population.member(3)[0]["w"]) / 2
        torch.testing.assert_close(middle, state.params["w"])
        assert strategy.centre(state) is state.average
        assert not torch.equal(state.average["w"], state.params["w"])

    @pytest.mark.parametrize(
        ("generation", "decay", "step"),
        [(0, 10.0, 0.04), (30, 10.0, 0.02), (150, 10.0, 0.01), (150, 1e9, 0.04)],
    )
    def test_the_step_shrinks_with_the_generations(self, generation, decay, step):
        """Adam's first step has the length of its learning rate in every parameter."""
        strategy = evolution(8, 0.1, learning_rate=0.04, decay=decay)
        start = strategy.init({"position": torch.zeros(20)})
        state = replace(start, generation=generation)
        after = strategy.tell(state, torch.randn(8)).params["position"]
        torch.testing.assert_close(after.abs(), torch.full((20,), step), rtol=1e-3, atol=0)

    def test_no_averaging_hands_out_the_latest_centre(self):
        strategy = evolution(8, 0.1, averaging=0.0)
        state = strategy.init(start())
        for _ in range(3):
            state = strategy.tell(state, fitness_of(strategy, state, quadratic()[0]))
            assert torch.equal(strategy.centre(state)["w"], state.params["w"])

    def test_the_average_forgets_the_start_early_and_then_keeps_its_weight(self):
        strategy = evolution(4, 0.1, averaging=0.9)
        state = strategy.init(start((3,)))
        weights = []
        for _ in range(120):
            after = strategy.tell(state, torch.rand(4))
            old, new = state.average["w"], after.params["w"]
            step = after.average["w"] - old
            assert torch.cosine_similarity(step, new - old, dim=0) > 0.99
            weights.append(1 - (step.norm() / (new - old).norm()).item())
            state = after
        assert weights[0] < 0.5
        assert weights == sorted(weights) or max(np.diff(weights) * -1) < 1e-3
        assert weights[-1] == pytest.approx(0.9, abs=1e-3)
        assert max(weights) < 0.9 + 1e-3

    def test_the_average_is_nearer_to_the_optimum_than_the_latest_centre(self):
        strategy = evolution(8, 0.1, learning_rate=0.1)
        state = strategy.init(start((20,)))
        for _ in range(200):
            state = strategy.tell(state, fitness_of(strategy, state, lambda w: -w.square().sum()))
        assert state.average["w"].norm() < 0.7 * state.params["w"].norm()


class TestMistakes:
    EVEN = "an even number of members, at least 2, because they come in antithetic pairs"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"population": 7}, f"population: needed {EVEN}, got 7."),
            ({"population": 0}, f"population: needed {EVEN}, got 0."),
            ({"population": -2}, f"population: needed {EVEN}, got -2."),
            ({"sigma": 0.0}, "sigma: needed a finite number above 0, got 0.0."),
            ({"sigma": math.nan}, "sigma: needed a finite number above 0, got nan."),
            ({"learning_rate": -1.0}, "learning_rate: needed a finite number above 0, got -1.0."),
            (
                {"learning_rate": math.inf},
                "learning_rate: needed a finite number above 0, got inf.",
            ),
            ({"decay": 0.0}, "decay: needed a finite number above 0, got 0.0."),
            ({"decay": math.nan}, "decay: needed a finite number above 0, got nan."),
            ({"averaging": 1.0}, "averaging: needed a number from 0 to below 1, got 1.0."),
            ({"averaging": -0.1}, "averaging: needed a number from 0 to below 1, got -0.1."),
            ({"averaging": math.nan}, "averaging: needed a number from 0 to below 1, got nan."),
            (
                {"shaping": "softmax"},
                "shaping: needed one of raw, z-score, rank, sign, got softmax.",
            ),
            (
                {"group": 4},
                "group: needed 2, because pairs are antithetic, got 4. "
                "Groups of another size need antithetic=False.",
            ),
            (
                {"group": 1, "antithetic": False},
                "group: needed an integer of at least 2, got 1.",
            ),
            (
                {"population": 12, "group": 8, "antithetic": False},
                "population: needed a multiple of 8, because members are compared in groups of "
                "it, got 12.",
            ),
            ({"seed": -1}, "seed: needed an integer from 0 to 2^64 - 1, got -1."),
            ({"seed": 2**64}, f"seed: needed an integer from 0 to 2^64 - 1, got {2**64}."),
        ],
    )
    def test_message(self, arguments, message):
        with pytest.raises(ValueError, match="needed") as caught:
            evolution(**arguments)
        assert str(caught.value) == message
        assert isinstance(caught.value, TinkeringError)


def test_what_is_told_may_be_an_evaluation_or_the_fitness_alone():
    strategy = evolution(8, 0.1)
    state, fitness = strategy.init(start()), torch.arange(8.0)
    alone, whole = (strategy.tell(state, told) for told in (fitness, Evaluation(fitness)))
    assert torch.equal(alone.params["w"], whole.params["w"])
