"""Tasks for workers, which get this module by value, and populations that say what is done."""

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinkering.data import load
from tinkering.distributed.division import divisible
from tinkering.engines import planning as plan
from tinkering.engines.evaluation import Evaluation
from tinkering.errors import ArgumentError
from tinkering.evaluation.batchnorm import norm_scales
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.strategies.activations import Activations
from tinkering.strategies.evolution_strategy import EvolutionStrategy
from tinkering.strategies.feedback import Feedback
from tinkering.strategies.genetic_algorithm import GeneticAlgorithm
from tinkering.strategies.weights import Weights
from tinkering.tasks.classification import Classification


def small_tiles():
    """Have a few members and images be evaluated at a time, so that there are several parts."""
    plan._NOISE = 1
    plan.images_in_cache = lambda *_: 4
    plan._FEWEST_IMAGES = 1


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 10),
    )


def resnet():
    torch.manual_seed(3)
    return SimpleResNet(BasicBlock, [1, 1, 1, 1], width=2)


def digits():
    return load("mnist5k").subset(train=200, test=20)


def weights(**own):
    small_tiles()
    return Classification(network(), digits(), **own)


class Distance:
    """How far a member's vector is from a point that is another one in every generation."""

    def evaluate(self, population, generation):
        members = [population[i][0] for i in range(len(population))]
        fitness = torch.stack([-(m["vector"] - generation).square().sum() for m in members])
        return Evaluation(fitness, evaluations=len(population))

    def measure(self, params):
        return {"test_accuracy": 0.0, "test_loss": params["vector"].square().sum().item()}


class Obedient:
    """Does with some numbers what they come with."""

    def evaluate(self, population, generation):
        return Evaluation(population.do(population.numbers, generation))

    def measure(self, params):
        del params
        return {}


@dataclass(frozen=True)
class Numbers:
    """A population for `Obedient`."""

    do: Any
    numbers: tuple = tuple(range(16))

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, part):
        return replace(self, numbers=self.numbers[part])


TASKS = {
    "groups": lambda: weights(group=4),
    "pairs": lambda: weights(group=2),
    "one batch": lambda: weights(group=None, batch=8),
    "eight images": lambda: weights(group=2, batch=8),
    "activations": lambda: Classification(resnet(), digits(), batch=40),
    "feedback": lambda: Classification(resnet(), digits(), batch=160, statistics="renewed"),
    "genetic": Distance,
    "obedient": Obedient,
}


@dataclass(frozen=True)
class For:
    """A population, and the name of the task that it is for."""

    task: str
    population: Any


class Everything:
    """All of these tasks in one, so that a few workers do for all tests."""

    def __init__(self):
        self._tasks = {}

    def of(self, name):
        if name not in self._tasks:
            self._tasks[name] = divisible(TASKS[name]())
        return self._tasks[name]

    def evaluate(self, given, generation):
        return self.of(given.task).evaluate(given.population, generation)

    def measure(self, params):
        return {"test_loss": float(len(params))}

    def parts(self, given, count):
        return self.of(given.task).parts(given.population, count)

    def part(self, given, generation, part):
        return self.of(given.task).part(given.population, generation, part)


def _evolution(shaping=None, **own):
    return EvolutionStrategy(Weights(64, 0.02, **own), learning_rate=0.01, shaping=shaping)


STRATEGIES = {
    "pairs": _evolution(group=2, antithetic=True),
    "groups": _evolution(group=4, antithetic=False),
    "one batch": _evolution(shaping="rank"),
    "activations": EvolutionStrategy(Activations(0.1, samples=2), learning_rate=0.01),
    "feedback": EvolutionStrategy(Feedback(cells=32, every=2), learning_rate=0.01),
    "genetic": GeneticAlgorithm(population=30, sigma=0.1, parents=4, elites=2),
}


def start_of(name):
    """The state that a strategy begins with."""
    model = resnet() if name in ("activations", "feedback") else network()
    params = {n: p.detach() for n, p in model.named_parameters() if n not in norm_scales(model)}
    return STRATEGIES[name].init({"vector": torch.ones(5)} if name == "genetic" else params)


def double(numbers, generation):
    return torch.tensor([2.0 * number + generation for number in numbers])


@dataclass(frozen=True)
class Once:
    """Doubles, and does something else with a number the first time that it meets it."""

    marker: Path
    number: int
    what: Any

    def __call__(self, numbers, generation):
        if self.number in numbers and claimed(self.marker):
            self.what()
        return double(numbers, generation)


def claimed(marker):
    """Whether this is the first to ask."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def hang():
    time.sleep(600)


def die_over_six(numbers, generation):
    if 6 in numbers:
        die()
    return double(numbers, generation)


@dataclass(frozen=True)
class OneIsSlow:
    """Doubles; the worker that comes first takes so many seconds for every part."""

    folder: Path
    seconds: float

    def __call__(self, numbers, generation):
        if claimed(self.folder / "first"):
            (self.folder / str(os.getpid())).touch()
        time.sleep(self.seconds if (self.folder / str(os.getpid())).exists() else 0.02)
        return double(numbers, generation)


class OwnError(Exception):
    """A user's."""


class AwkwardError(Exception):
    """One that cannot be made anew from its arguments."""

    def __init__(self, what, where):
        super().__init__(f"{what} in {where}")


def raise_own(numbers, generation):
    raise OwnError("mine", len(numbers), generation)


def raise_ours(numbers, generation):
    del numbers, generation
    raise ArgumentError("images", "some", "none", "Load some.")


def raise_awkward(numbers, generation):
    del numbers, generation
    raise AwkwardError("a leak", "the roof")


def one_number(numbers, generation):
    del numbers, generation
    return torch.tensor(1.0)


def make_badly():
    raise OwnError("no data here")


def make_never():
    die()
