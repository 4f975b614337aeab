"""Functions with known optima, for many members at once, and runs of a strategy on them."""

from dataclasses import dataclass, fields
from functools import cache

import cmaes
import numpy as np
import torch
import torch.nn.functional as F

from tinkering.population import PerturbedPopulation
from tinkering.strategies.evolution_strategy import EvolutionStrategy
from tinkering.strategies.weights import Weights

SIZE = 24


def evolution(population=Weights.population, sigma=Weights.sigma, **settings):
    """A strategy that perturbs weights, whose settings and own need not be told apart."""
    names = {field.name for field in fields(Weights)} & settings.keys()
    perturb = Weights(population, sigma, **{name: settings.pop(name) for name in names})
    return EvolutionStrategy(perturb, **settings)


def stacked(population):
    """All members' parameters, ``[members, *shape]`` by name."""
    if not isinstance(population, PerturbedPopulation):
        members = [population[i][0] for i in range(len(population))]
        return {name: torch.stack([m[name] for m in members]) for name in members[0]}
    draw = population.draw()
    return {
        name: centre
        + draw.noise[name][draw.rows].scaled(draw.signs * population.sigma_of(name)).dense()
        for name, centre in population.params.items()
    }


@dataclass(frozen=True)
class Problem:
    """A function to be maximised, over vectors of `SIZE` numbers."""

    name: str

    def fitness(self, vectors):
        """The fitness of each row, ``[rows, SIZE] -> [rows]``; its maximum is 0."""
        return {"sphere": _sphere, "rotated ellipsoid": _ellipsoid, "logistic": _logistic}[
            self.name
        ](vectors)

    def of(self, population):
        params = stacked(population)
        return self.fitness(torch.cat([p.flatten(1) for p in params.values()], 1))

    def gap(self, params):
        """How far below the maximum a parameter set is."""
        vector = torch.cat([p.flatten() for p in params.values()])
        return -self.fitness(vector[None]).item()


PROBLEMS = [Problem("sphere"), Problem("rotated ellipsoid"), Problem("logistic")]


def start():
    """A kernel that low-rank and separable noise have forms of their own for, and a vector."""
    return {"kernel": torch.full((2, 2, 2, 2), 1.0), "vector": torch.full((8,), 1.0)}


def _sphere(x):
    return -x.square().sum(1)


def _ellipsoid(x):
    """Axes from 1 to 1/30 of the curvature, in directions that no parameter's axis is."""
    return -((x @ _turn().T).square() @ torch.logspace(0, -1.5, SIZE))


@cache
def _turn():
    generator = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator)).Q


def _logistic(x):
    """Mean log-likelihood with a ridge, less what Newton's method finds to be its maximum."""
    return _likelihood(x.double(), *_points()) - _best()


def _likelihood(x, features, labels):
    margins = (x @ features.T) * labels
    return F.logsigmoid(margins).mean(1) - 0.01 * x.square().sum(1)


@cache
def _points():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(200, SIZE, generator=generator).double()
    true = torch.randn(SIZE, generator=generator).double()
    noise = torch.randn(200, generator=generator).double()
    return features, (features @ true + 2 * noise).sign()


@cache
def _best():
    features, labels = _points()
    x = torch.zeros(SIZE, dtype=torch.float64)
    for _ in range(20):  # Newton's method, with the derivatives by hand
        wrong = torch.sigmoid(-(features @ x) * labels)
        gradient = features.T @ (wrong * labels) / len(labels) - 0.02 * x
        curved = features * (wrong * (1 - wrong)).unsqueeze(1) / len(labels)
        x += torch.linalg.solve(features.T @ curved + 0.02 * torch.eye(SIZE), gradient)
    return _likelihood(x[None], features, labels)[0]


def run(strategy, problem, evaluations):
    """The gap that is left of the start's, after about so many evaluations."""
    state = strategy.init(start())
    before = problem.gap(strategy.centre(state))
    for _ in range(evaluations // getattr(strategy, "perturb", strategy).population):
        state = strategy.tell(state, problem.of(strategy.ask(state)))
    return problem.gap(strategy.centre(state)) / before


def run_cma(problem, evaluations, sigma=0.3):
    """What the CMA-ES of the package cmaes leaves of the gap (Hansen 2016, arXiv 1604.00772)."""
    mean = np.concatenate([p.flatten().numpy() for p in start().values()]).astype(float)
    optimiser = cmaes.CMA(mean, sigma, seed=1)

    def gap(vector):
        return -problem.fitness(torch.tensor(np.array(vector)).float()).numpy()

    before = gap(mean[None])[0]
    for _ in range(evaluations // optimiser.population_size):
        vectors = [optimiser.ask() for _ in range(optimiser.population_size)]
        optimiser.tell(list(zip(vectors, gap(vectors).tolist(), strict=True)))
    return gap(optimiser.mean[None])[0] / before
