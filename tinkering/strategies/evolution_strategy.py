"""Evolution strategy: a centre follows the fitness differences of antithetic pairs.

Salimans et al. 2017, "Evolution Strategies as a Scalable Alternative to Reinforcement
Learning" (arXiv 1703.03864), with the low-rank noise of arXiv 2511.16652 by default.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tinkering.errors import ArgumentError
from tinkering.noise import LowRank, Noise
from tinkering.population import PerturbedPopulation
from tinkering.strategies.shaping import SHAPINGS, replace_non_finite


@dataclass(frozen=True)
class EvolutionState:
    """Where a run stands; `EvolutionStrategy.tell` returns a new one and changes none."""

    generation: int
    """Generations told so far."""
    params: Mapping[str, Tensor]
    """The centre that the next population is drawn around."""
    average: Mapping[str, Tensor]
    """The running average of the centre: the network to use."""
    optimiser: Mapping[str, Any] = field(repr=False)
    """``state_dict`` of the optimiser."""


@dataclass(frozen=True)
class EvolutionStrategy:
    """Ask for antithetic pairs around a centre, tell their fitness, move the centre.

    The gradient of the expected fitness is estimated as the mean over pairs of
    ``utility * noise`` (section 2 of the paper, with mirrored sampling), where utilities
    are the shaped differences of the pair; Adam follows it. No backpropagation anywhere.

    The centre is averaged over generations (Polyak and Juditsky 1992): the estimate is
    noisy, so the average is better than the latest centre.

    Args:
        population: members a generation; even.
        sigma: standard deviation of a member's perturbation of each parameter.
        learning_rate: Adam's step; it is about the change of a parameter in a generation.
        decay: generations until the step begins to shrink: in generation g it is
            ``learning_rate / sqrt(1 + g / decay)``. The estimate is so noisy that a step
            which is right early on leads nowhere later.
        betas: Adam's decay of its running means.
        averaging: weight of the past in the running average, 0 (the latest centre) to 1
            (excluded); early on it is less, so that the random start is forgotten.
        shaping: ``"z-score"`` or ``"rank"``.
        noise: kind of the noise.
        seed: of the noise, 0 to 2^64 - 1.

    Raises:
        ArgumentError: (a ``ValueError``) one of these is out of range.

    Example:
        >>> strategy = EvolutionStrategy(population=64, sigma=0.1, learning_rate=0.1)
        >>> state = strategy.init({"position": torch.tensor([3.0, -2.0])})
        >>> for _ in range(100):
        ...     population = strategy.ask(state)
        ...     members = [population.member(i)[0] for i in range(len(population))]
        ...     fitness = torch.stack([-m["position"].square().sum() for m in members])
        ...     state = strategy.tell(state, fitness)
        >>> bool(state.average["position"].norm() < 0.5)
        True
    """

    population: int = 1024
    sigma: float = 0.02
    learning_rate: float = 0.03
    decay: float = 50.0
    betas: tuple[float, float] = (0.9, 0.999)
    averaging: float = 0.98
    shaping: str = "z-score"
    noise: Noise = field(default_factory=LowRank)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.population < 2 or self.population % 2:
            raise ArgumentError(
                "population",
                "an even number of members, at least 2, because they come in antithetic pairs",
                self.population,
            )
        for name in ("sigma", "learning_rate", "decay"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ArgumentError(name, "a finite number above 0", value)
        if not 0 <= self.averaging < 1:
            raise ArgumentError("averaging", "a number from 0 to below 1", self.averaging)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ArgumentError("betas", "two numbers from 0 to below 1", self.betas)
        if not 0 <= self.seed < 2**64:
            raise ArgumentError("seed", "an integer from 0 to 2^64 - 1", self.seed)
        if self.shaping not in SHAPINGS:
            raise ArgumentError("shaping", f"one of {', '.join(SHAPINGS)}", self.shaping)

    def init(self, params: Mapping[str, Tensor]) -> EvolutionState:
        """Return the state before the first generation, with a copy of `params` as centre."""
        centre = {name: p.detach().clone() for name, p in params.items()}
        average = {name: p.clone() for name, p in centre.items()}
        return EvolutionState(0, centre, average, self._optimiser(centre).state_dict())

    def ask(self, state: EvolutionState) -> PerturbedPopulation:
        """Return the population of the state's generation: `population` members."""
        return PerturbedPopulation(
            state.params,
            self.population,
            self.sigma,
            noise=self.noise,
            seed=self.seed,
            generation=state.generation,
        )

    def tell(self, state: EvolutionState, fitness: Tensor) -> EvolutionState:
        """Return the state after a generation whose members had this fitness.

        A fitness that is not finite counts as the worst finite one. Where none is finite,
        the generation is counted and the centre stays.

        Args:
            state: the state that `ask` was given.
            fitness: ``[population]``, the larger the better, in the members' order.

        Raises:
            ArgumentError: (a ``ValueError``) fitness has another shape.
        """
        if fitness.shape != (self.population,):
            raise ArgumentError(
                "fitness", f"a tensor of shape [{self.population}]", list(fitness.shape)
            )
        finite = replace_non_finite(fitness.detach().double())
        if finite is None:
            return EvolutionState(
                state.generation + 1, state.params, state.average, state.optimiser
            )
        # Halves, because a difference could overflow; utilities do not depend on scale.
        utilities = SHAPINGS[self.shaping](finite[0::2] / 2 - finite[1::2] / 2)
        # Half of a pair's utility for either member: their noise is the same but for sign.
        weights = torch.stack([utilities, -utilities], dim=1).flatten() / self.population
        ascent = self.ask(state).weighted_noise(weights)

        params = {name: p.clone() for name, p in state.params.items()}
        optimiser = self._optimiser(params)
        optimiser.load_state_dict(copy.deepcopy(dict(state.optimiser)))
        for group in optimiser.param_groups:
            group["lr"] = self.learning_rate / math.sqrt(1 + state.generation / self.decay)
        for name, p in params.items():
            p.grad = -ascent[name].to(p)  # the optimiser descends
        optimiser.step()
        params = {name: p.detach() for name, p in params.items()}

        past = min(self.averaging, (state.generation + 1) / (state.generation + 10))
        average = {name: p.lerp(state.average[name], past) for name, p in params.items()}
        return EvolutionState(state.generation + 1, params, average, optimiser.state_dict())

    def centre(self, state: EvolutionState) -> Mapping[str, Tensor]:
        """Return the parameters of the network to use: the running average."""
        return state.average

    def _optimiser(self, params: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(params.values()), lr=self.learning_rate, betas=self.betas)
