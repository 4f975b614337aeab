"""Strategies with a problem of their own, and how they stand after some generations."""

from functools import partial

import torch

from tinkering.evaluation.entry import evaluate
from tinkering.noise import Dense, LowRank
from tinkering.runs.evolve import Limits, evolve
from tinkering.strategies.activations import Activations
from tinkering.strategies.evolution_strategy import EvolutionStrategy
from tinkering.strategies.feedback import Feedback
from tinkering.strategies.genetic_algorithm import GeneticAlgorithm
from tinkering.strategies.groups import Group
from tinkering.strategies.schedules import cosine, inverse_sqrt
from tinkering.strategies.weights import Weights


def _evolution(learning_rate=0.1, shaping=None, optimiser=torch.optim.Adam, groups=None, **own):
    perturb = Weights(**{"population": 12, "sigma": 0.05, **own})
    return EvolutionStrategy(
        perturb, learning_rate, shaping=shaping, optimiser=optimiser, groups=groups or {}
    )


STRATEGIES = {
    "Adam": _evolution(),
    "AdamW": _evolution(optimiser=partial(torch.optim.AdamW, weight_decay=0.01), noise=LowRank(2)),
    "SGD with momentum": _evolution(optimiser=partial(torch.optim.SGD, momentum=0.9)),
    "SGD": _evolution(optimiser=torch.optim.SGD, shaping="raw", learning_rate=0.001),
    "schedules": _evolution(
        sigma=cosine(0.1, 6, 0.01), learning_rate=inverse_sqrt(0.1, 2.0), noise=Dense()
    ),
    "groups": _evolution(
        groups={"head.bias": Group(sigma=0), "head*": Group(sigma=0.5, step=2.0)},
        antithetic=False,
        group=4,
        shaping="rank",
    ),
    "activations": EvolutionStrategy(Activations(samples=4), cosine(0.05, 6, 0.01)),
    "feedback": EvolutionStrategy(Feedback(), cosine(0.05, 6, 0.01)),
    "genetic algorithm": GeneticAlgorithm(population=12, sigma=0.1, parents=4, elites=2),
}


class Task:
    """A small network whose logits shall say the sign of a number, on other ones every time."""

    def __init__(self):
        torch.manual_seed(3)
        nn = torch.nn
        self.model = nn.Sequential()
        self.model.add_module("body", nn.Linear(4, 5))
        self.model.add_module("relu", nn.ReLU())
        self.model.add_module("head", nn.Linear(5, 2))
        self.model.eval()

    def params(self):
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def evaluate(self, population, generation):
        x, y = self._batch(generation)
        return evaluate(self.model, population, x, y)

    def measure(self, params):
        with torch.no_grad():
            x, y = self._batch(1000)
            logits = torch.func.functional_call(self.model, dict(params), (x,))
            loss = torch.nn.functional.cross_entropy(logits, y).item()
        return {"test_accuracy": (logits.argmax(1) == y).float().mean().item(), "test_loss": loss}

    def _batch(self, generation):
        generator = torch.Generator().manual_seed(generation)
        x = torch.randn(8, 4, generator=generator)
        return x, (x[:, 0] > 0).long()


def begin(strategy, task):
    return strategy.init(task.params())


def after(strategy, generations, **more):
    """The outcome after so many generations from the start."""
    task = Task()
    limits = Limits(generations=generations, measure_every=1e9)
    return evolve(strategy, begin(strategy, task), task, limits, **more)


def same_bits(a, b):
    """Equal to the last bit, in value and in type."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        alike = (a.dtype, a.shape) == (b.dtype, b.shape)
        return alike and a.detach().numpy().tobytes() == b.detach().numpy().tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_bits, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return same_bits(vars(a), vars(b))
    return a == b
