"""The ways to evolve that `tinkering evolve` has: how flags become a strategy and a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tinkering.data import Dataset
from tinkering.engines.rating import Fitness
from tinkering.errors import ArgumentError
from tinkering.evaluation.fitness import accuracy, negative_cross_entropy
from tinkering.noise import LowRank
from tinkering.strategies.evolution_strategy import EvolutionStrategy
from tinkering.strategies.output_evolution import OutputEvolution
from tinkering.strategies.schedules import Schedule, inverse_sqrt, require_positive
from tinkering.tasks.classification import Classification
from tinkering.tasks.output_classification import OutputClassification

FITNESS: Mapping[str, Fitness] = {
    "cross-entropy": negative_cross_entropy,
    "accuracy": accuracy,
}
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
    if group < 2:
        raise ArgumentError("group", "an integer of at least 2", group)
    if population < group or population % group:
        raise ArgumentError("population", f"a multiple of the group of {group}", population)
    return int(population // group)


def _steps(settings: Settings) -> Schedule:
    require_positive("learning_rate", settings["learning_rate"])
    return inverse_sqrt(settings["learning_rate"], settings["decay"])


def _weights(settings: Settings) -> EvolutionStrategy:
    _groups(settings)
    return EvolutionStrategy(
        population=settings["population"],
        sigma=settings["sigma"],
        learning_rate=_steps(settings),
        averaging=settings["averaging"],
        shaping=settings["shaping"],
        noise=LowRank(settings["rank"]),
        seed=settings["seed"],
        antithetic=settings["antithetic"],
        group=settings["group"],
    )


def _weights_task(settings: Settings, model: nn.Module, dataset: Dataset) -> Classification:
    return Classification(
        model,
        dataset,
        seed=settings["seed"],
        fitness=FITNESS[settings["fitness"]],
        dtype=getattr(torch, settings["dtype"]),
        memory=settings["memory"],
        shift=settings["shift"],
        statistics=settings["statistics"],
        # One batch for all need not be held once a member.
        group=None if settings["group"] == settings["population"] else settings["group"],
        batch=settings["images"],
    )


def _outputs(settings: Settings) -> OutputEvolution:
    _groups(settings)
    if settings["shaping"] == "relative" and settings["fitness"] != "accuracy":
        needed = "raw, or --fitness accuracy (relative is for a fitness of at least 0)"
        raise ArgumentError("shaping", needed, "relative")
    return OutputEvolution(
        members=settings["group"],
        sigma=settings["sigma"],
        learning_rate=_steps(settings),
        averaging=settings["averaging"],
        seed=settings["seed"],
        shaping=settings["shaping"],
        blur=settings["blur"],
        readings=settings["readings"],
    )


def _outputs_task(settings: Settings, model: nn.Module, dataset: Dataset) -> OutputClassification:
    return OutputClassification(
        model,
        dataset,
        images=_groups(settings),
        seed=settings["seed"],
        fitness=FITNESS[settings["fitness"]],
        dtype=getattr(torch, settings["dtype"]),
        memory=settings["memory"],
        shift=settings["shift"],
    )


def _said(where: str) -> Callable[[Settings], str]:
    return lambda settings: (
        f"{settings['population']:,} members{where}, {settings['group']} to an image"
    )


RECIPES: Mapping[str, Recipe] = {
    "activations": Recipe(_outputs, _outputs_task, _said(" at each layer")),
    "weights": Recipe(_weights, _weights_task, _said("")),
}
"""The ways by the name that ``--strategy`` takes."""
