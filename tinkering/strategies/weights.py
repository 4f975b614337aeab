"""Weights are perturbed: every member is a network of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from tinkering.engines.evaluation import Evaluation
from tinkering.engines.thread_pool import map_in_order, one_thread_inside
from tinkering.errors import ArgumentError
from tinkering.noise import LowRank, Noise
from tinkering.population import PerturbedPopulation
from tinkering.ranges import require_at_least, require_positive
from tinkering.strategies.perturbation import Generation
from tinkering.strategies.schedules import LARGEST_FLOAT, Schedule, value_at
from tinkering.strategies.shaping import (
    SHAPINGS,
    Compared,
    group_advantages,
    pair_advantages,
)
from tinkering.strategies.told import finite_fitness

_KEPT = 256 << 20
"""Bytes of a generation's noise, at most, that its update need not draw again."""


@dataclass(frozen=True)
class Weights:
    """Noise on the parameters: the gradient estimate is the mean of ``utility * noise``.

    Salimans et al. 2017, "Evolution Strategies as a Scalable Alternative to Reinforcement
    Learning" (arXiv 1703.03864), section 2, with the low-rank noise of arXiv 2511.16652.

    With antithetic pairs (mirrored sampling) all even orders of the fitness cancel out of the
    estimate. Without, every member is a direction of its own, twice as many for as many
    evaluations, and is compared with its `group`. That pays where a direction tells little,
    with far more parameters than members.

    Args:
        population: members a generation; a multiple of `group`.
        sigma: standard deviation of a member's perturbation of each parameter, or a schedule
            of it (`tinkering.strategies.schedules`).
        noise: kind of the noise.
        antithetic: whether members come in mirrored pairs; the group is 2 then.
        group: members that lie beside each other and are compared with each other, because
            they are evaluated on the same examples; at least 2.

    Raises:
        ArgumentError: (a ``ValueError``) one of these is out of range.

    Example:
        >>> from tinkering.noise import Stream
        >>> centre = {"position": torch.tensor([3.0, -2.0])}
        >>> pairs = Weights(population=64, sigma=0.1)
        >>> len(pairs.around(Generation(centre, {"position": 1.0}, Stream(0, 0), "z-score")))
        64
    """

    population: int = 1024
    sigma: float | Schedule = 0.02
    noise: Noise = field(default_factory=LowRank)
    antithetic: bool = True
    group: int = 2

    usual_shaping: ClassVar[str] = "z-score"
    usual_learning_rate: ClassVar[float] = 0.03

    def __post_init__(self) -> None:
        if not callable(self.sigma):
            require_positive("sigma", self.sigma, LARGEST_FLOAT)
        if self.antithetic:
            if self.population < 2 or self.population % 2:
                raise ArgumentError(
                    "population",
                    "an even number of members, at least 2, because they come in antithetic pairs",
                    self.population,
                )
            if self.group != 2:
                advice = "Groups of another size need antithetic=False."
                raise ArgumentError("group", "2, because pairs are antithetic", self.group, advice)
            return
        require_at_least(2, group=self.group)
        if self.population < 1 or self.population % self.group:
            needed = f"a multiple of {self.group}, because members are compared in groups of it"
            raise ArgumentError("population", needed, self.population)

    @property
    def compared(self) -> Compared:
        """With whom members are compared."""
        return "pairs" if self.antithetic else "groups"

    def around(self, generation: Generation) -> PerturbedPopulation:
        """Return the population of a generation.

        Raises:
            ArgumentError: (a ``ValueError``) the schedule of sigma returned a number that is
                not above 0.
        """
        stream, factors = generation.stream, generation.factors
        sigma = value_at("sigma", self.sigma, stream.generation, most=LARGEST_FLOAT)
        alike = all(factor == 1 for factor in factors.values())
        return PerturbedPopulation(
            generation.centre,
            self.population,
            sigma if alike else {name: sigma * factor for name, factor in factors.items()},
            noise=self.noise,
            seed=stream.seed,
            generation=stream.generation,
            antithetic=self.antithetic,
        ).keeping(_KEPT)

    def gradient(self, generation: Generation, evaluation: Evaluation) -> dict[str, Tensor] | None:
        """Return the gradient estimate: the mean over directions of utility times noise.

        Raises:
            ArgumentError: (a ``ValueError``) fitness has not the shape ``[population]``.
        """
        # Portions side by side, and no threads inside: in operations so short they would wait.
        mapped = partial(map_in_order, threads=torch.get_num_threads())
        with one_thread_inside():
            utilities = self._utilities(generation, evaluation)
            if utilities is None:
                return None
            population = self.around(generation)
            total = population.weighted_noise(utilities / self.population, mapped)
            if generation.shaping == "raw":  # the gradient itself: fitness per unit of parameter
                return {name: noise / population.sigma_of(name) for name, noise in total.items()}
            return {name: noise / generation.factors[name] for name, noise in total.items()}

    def learn(self, generation: Generation, evaluation: Evaluation) -> Mapping[str, Tensor]:
        """Return nothing: each generation stands for itself."""
        del evaluation
        return generation.learned

    def _utilities(self, generation: Generation, evaluation: Evaluation) -> Tensor | None:
        """Return one scalar per member, or None where none of the fitness is finite."""
        fitness = finite_fitness(evaluation, self.population)
        if fitness is None:
            return None
        shaping = SHAPINGS[self.compared][generation.shaping]
        if not self.antithetic:
            return shaping(group_advantages(fitness, self.group))
        utilities = shaping(pair_advantages(fitness))
        # Half of a pair's utility for either member: their noise is the same but for sign.
        return torch.stack([utilities, -utilities], dim=1).flatten()
