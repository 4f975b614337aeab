"""The ways to evolve that `tinkering evolve` has: how flags become a strategy and a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from tinkering.data import Dataset
from tinkering.engines.rating import Fitness
from tinkering.errors import ArgumentError
from tinkering.evaluation.fitness import accuracy, negative_cross_entropy
from tinkering.noise import LowRank
from tinkering.ranges import require_at_least, require_positive
from tinkering.strategies.activations import Activations
from tinkering.strategies.evolution_strategy import EvolutionStrategy
from tinkering.strategies.feedback import Feedback
from tinkering.strategies.genetic_algorithm import GeneticAlgorithm
from tinkering.strategies.perturbation import Perturbation
from tinkering.strategies.schedules import Schedule, inverse_sqrt
from tinkering.strategies.weights import Weights
from tinkering.tasks.classification import Classification

FITNESS: Mapping[str, Fitness] = {
    "cross-entropy": negative_cross_entropy,
    "accuracy": accuracy,
}
_ADAM = partial(torch.optim.Adam, betas=(0.9, 0.99))
Settings = Mapping[str, Any]
"""The flags of `tinkering evolve` by name, with no default left open."""


@dataclass(frozen=True)
class Recipe:
    """A way to evolve: how flags become a strategy and a task."""

    strategy: Callable[[Settings], Any]
    task: Callable[[Settings, nn.Module, Dataset], Any]
    members: Callable[[Settings], str]
    """Says what a generation consists of."""


def _groups(settings: Settings) -> int:
    population, group = settings["population"], settings["group"]
    require_at_least(2, group=group)
    if population < group or population % group:
        raise ArgumentError("population", f"a multiple of the group of {group}", population)
    return int(population // group)


def _steps(settings: Settings) -> Schedule:
    require_positive("learning_rate", settings["learning_rate"])
    return inverse_sqrt(settings["learning_rate"], settings["decay"])


def _weights(settings: Settings) -> EvolutionStrategy:
    _groups(settings)
    perturb = Weights(
        population=settings["population"],
        sigma=settings["sigma"],
        noise=LowRank(settings["rank"]),
        antithetic=settings["antithetic"],
        group=settings["group"],
    )
    return _evolution(perturb, settings)


def _evolution(perturb: Perturbation, settings: Settings, **more: Any) -> EvolutionStrategy:
    return EvolutionStrategy(
        perturb,
        learning_rate=_steps(settings),
        averaging=settings["averaging"],
        shaping=settings["shaping"],
        seed=settings["seed"],
        **more,
    )


def _task(
    settings: Settings, model: nn.Module, dataset: Dataset, group: int | None, batch: int
) -> Classification:
    return Classification(
        model,
        dataset,
        seed=settings["seed"],
        fitness=FITNESS[settings["fitness"]],
        dtype=getattr(torch, settings["dtype"]),
        statistics=settings["statistics"] or "fixed",
        group=group,
        batch=batch,
        memory=settings["memory"],
        shift=settings["shift"],
    )


def _weights_task(settings: Settings, model: nn.Module, dataset: Dataset) -> Classification:
    # One batch for all need not be held once a member.
    group = None if settings["group"] == settings["population"] else settings["group"]
    return _task(settings, model, dataset, group, settings["images"])


def _require_shaping(settings: Settings) -> None:
    if settings["shaping"] == "relative" and settings["fitness"] != "accuracy":
        needed = "raw, or --fitness accuracy (relative is for a fitness of at least 0)"
        raise ArgumentError("shaping", needed, "relative")


def _activations(settings: Settings) -> EvolutionStrategy:
    _groups(settings)
    _require_shaping(settings)
    perturb = Activations(
        sigma=settings["sigma"],
        samples=settings["group"],
        blur=settings["blur"],
        readings=settings["readings"],
    )
    return _evolution(perturb, settings, optimiser=_ADAM)


def _activations_task(settings: Settings, model: nn.Module, dataset: Dataset) -> Classification:
    return _task(settings, model, dataset, None, _groups(settings))


def _feedback(settings: Settings) -> EvolutionStrategy:
    population, images = settings["population"], settings["images"]
    if population < 1 or max(population, images) % min(population, images):
        needed = f"a multiple of the {images} images, or a part of them that divides them"
        raise ArgumentError("population", needed, population)
    _require_shaping(settings)
    perturb = Feedback(
        sigma=settings["sigma"],
        samples=max(1, population // images),
        every=max(1, images // population),
        cells=settings["cells"],
        readings=settings["readings"],
        blur=settings["blur"],
    )
    return _evolution(perturb, settings, optimiser=_ADAM)


def _feedback_task(settings: Settings, model: nn.Module, dataset: Dataset) -> Classification:
    return _task(settings, model, dataset, None, settings["images"])


def _genetic(settings: Settings) -> GeneticAlgorithm:
    return GeneticAlgorithm(
        population=settings["population"],
        sigma=settings["sigma"],
        parents=settings["parents"],
        elites=settings["elites"],
        seed=settings["seed"],
    )


def _genetic_task(settings: Settings, model: nn.Module, dataset: Dataset) -> Classification:
    # Who is fittest is known only of members that saw the same images.
    return _task(settings, model, dataset, None, settings["images"])


def _said(where: str) -> Callable[[Settings], str]:
    return lambda settings: (
        f"{settings['population']:,} members{where}, {settings['group']} to an image"
    )


def _said_of_all(settings: Settings) -> str:
    return f"{settings['population']:,} members, all on the same {settings['images']:,} images"


def _said_of_feedback(settings: Settings) -> str:
    return f"{settings['images']:,} images, {settings['population']:,} members at each layer"


RECIPES: Mapping[str, Recipe] = {
    "feedback": Recipe(_feedback, _feedback_task, _said_of_feedback),
    "activations": Recipe(_activations, _activations_task, _said(" at each layer")),
    "weights": Recipe(_weights, _weights_task, _said("")),
    "genetic": Recipe(_genetic, _genetic_task, _said_of_all),
}
"""The ways by the name that ``--strategy`` takes."""
