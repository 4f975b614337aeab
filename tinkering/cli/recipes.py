"""The two ways to evolve that `tinkering evolve` has, and what suits each.

Where the defaults come from: docs/recipes.md.
"""

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
_WIDTH = 8
"""That the defaults were found with."""
Settings = Mapping[str, Any]
"""The flags of `tinkering evolve` by name, with no default left open."""


@dataclass(frozen=True)
class Recipe:
    """A way to evolve: the defaults of flags, and how they become a strategy and a task."""

    defaults: Mapping[str, int | float | str]
    accuracy: Mapping[str, int | float | str]
    """Those that are others with ``--fitness accuracy``."""
    strategy: Callable[[Settings], Any]
    task: Callable[[Settings, nn.Module, Dataset], Any]
    members: Callable[[Settings], str]
    """Says what a generation consists of."""

    def defaults_for(self, fitness: str, width: int) -> Mapping[str, int | float | str]:
        """Return the defaults with a fitness of `FITNESS`, for a network of this width.

        Adam moves every weight by its step, so what a layer puts out moves in proportion to its
        inputs, of which a wider network has more: there the step is smaller by as much. See Yang
        et al. 2021, "Tensor Programs V" (arXiv 2203.03466).
        """
        defaults = {**self.defaults, **(self.accuracy if fitness == "accuracy" else {})}
        step = float(defaults["learning_rate"]) * min(1.0, _WIDTH / max(1, width))
        return {**defaults, "learning_rate": step}


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
    "activations": Recipe(
        {
            "population": 512,
            "group": 8,
            "sigma": 0.1,
            "learning_rate": 0.004,
            "decay": 200.0,
            "shaping": "raw",
            "blur": 0.0,
            "readings": 1,
            "shift": 2,
        },
        {
            "shaping": "relative",
            "blur": 2.0,
            "readings": 1024,
        },
        _outputs,
        _outputs_task,
        _said(" at each layer"),
    ),
    "weights": Recipe(
        {
            "population": 1024,
            "group": 8,
            "sigma": 0.005,
            "learning_rate": 0.004,
            "decay": 100.0,
            "shaping": "z-score",
            "blur": 0.0,
            "readings": 1,
            "shift": 0,
        },
        {},
        _weights,
        _weights_task,
        _said(""),
    ),
}
"""The ways by the name that ``--strategy`` takes."""
