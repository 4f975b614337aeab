"""Evolution strategy: a centre follows the fitness differences of its members.

Salimans et al. 2017, "Evolution Strategies as a Scalable Alternative to Reinforcement
Learning" (arXiv 1703.03864), with the low-rank noise of arXiv 2511.16652 by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from tinkering.errors import ArgumentError
from tinkering.noise import LowRank, Noise
from tinkering.population import PerturbedPopulation
from tinkering.required import require_decimals, require_named, require_tensor
from tinkering.strategies.groups import Group, group_of_each
from tinkering.strategies.schedules import (
    LARGEST_FLOAT,
    Schedule,
    inverse_sqrt,
    require_positive,
    value_at,
)
from tinkering.strategies.shaping import (
    GROUP_SHAPINGS,
    SHAPINGS,
    group_advantages,
    pair_advantages,
    replace_non_finite,
)
from tinkering.strategies.stepping import MakeOptimiser, fresh_optimiser, stepped
from tinkering.strategies.told import Told


@dataclass(frozen=True)
class EvolutionState:
    """Where a run stands; `EvolutionStrategy.tell` returns a new one and changes none."""

    generation: int
    """Generations told so far."""
    params: Mapping[str, Tensor]
    """The centre that the next population is drawn around: the parameters that evolve."""
    average: Mapping[str, Tensor]
    """The running average of the centre: the network to use."""
    optimiser: Mapping[str, Any] = field(repr=False)
    """``state_dict`` of the optimiser."""
    fixed: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """The parameters that do not evolve, as `init` was given them."""
    told: Told = "nothing yet"
    """What the latest generation came to."""
    lost: int = 0
    """Generations that moved nothing, of those told so far."""


@dataclass(frozen=True)
class EvolutionStrategy:
    """Ask for members around a centre, tell their fitness, move the centre.

    The gradient of the expected fitness is estimated as the mean of ``utility * noise``
    (section 2 of the paper), where utilities are shaped advantages: see
    `tinkering.strategies.shaping`. An optimiser follows it. No backpropagation anywhere.

    With antithetic pairs (mirrored sampling) all even orders of the fitness cancel out of the
    estimate. Without, every member is a direction of its own, twice as many for as many
    evaluations, and is compared with its `group`. That pays where a direction tells little,
    with far more parameters than members.

    The centre is averaged over generations (Polyak and Juditsky 1992): the estimate is
    noisy, so the average is better than the latest centre.

    Args:
        population: members a generation; a multiple of `group`.
        sigma: standard deviation of a member's perturbation of each parameter, or a schedule
            of it (`tinkering.strategies.schedules`).
        learning_rate: the optimiser's step, or a schedule of it. With Adam it is about the
            change of a parameter in a generation.
        decay: generations until the step begins to shrink: in generation g it is
            ``learning_rate / sqrt(1 + g / decay)``. The estimate is so noisy that a step
            which is right early on leads nowhere later. A schedule replaces it.
        betas: Adam's decay of its running means, where no `optimiser` is given.
        averaging: weight of the past in the running average, 0 (the latest centre) to 1
            (excluded); early on it is less, so that the random start is forgotten.
        shaping: ``"raw"``, ``"z-score"``, ``"rank"`` or ``"sign"``. With ``"raw"`` the
            optimiser is handed the gradient itself, in fitness per unit of a parameter; with
            the others its length says nothing.
        noise: kind of the noise.
        seed: of the noise, 0 to 2^64 - 1.
        optimiser: makes the optimiser, as ``optimiser(params, learning_rate)``: a class of
            ``torch.optim`` that steps without a closure, or one with settings of its own,
            such as ``functools.partial(torch.optim.AdamW, weight_decay=0.01)``. Adam by
            default.
        groups: `Group` by patterns over the parameters' names, such as
            ``{"head.*": Group(sigma=0.5, step=2.0), "*bias": Group(sigma=0)}``: factors on
            sigma and on the step. The first match wins; a sigma of 0 leaves parameters as
            they are, and out of the population. A factor on sigma does not change the
            direction that is estimated: noise is divided by it.
        antithetic: whether members come in mirrored pairs; the group is 2 then.
        group: members that lie beside each other and are compared with each other, because
            they are evaluated on the same images; at least 2.

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
    sigma: float | Schedule = 0.02
    learning_rate: float | Schedule = 0.03
    decay: float = 50.0
    betas: tuple[float, float] = (0.9, 0.999)
    averaging: float = 0.98
    shaping: str = "z-score"
    noise: Noise = field(default_factory=LowRank)
    seed: int = 0
    optimiser: MakeOptimiser | None = None
    groups: Mapping[str, Group] = field(default_factory=dict, hash=False)
    antithetic: bool = True
    group: int = 2

    def __post_init__(self) -> None:
        self._require_groups()
        for name, most in (("sigma", LARGEST_FLOAT), ("learning_rate", inf), ("decay", inf)):
            if not callable(getattr(self, name)):
                require_positive(name, getattr(self, name), most)
        if not 0 <= self.averaging < 1:
            raise ArgumentError("averaging", "a number from 0 to below 1", self.averaging)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ArgumentError("betas", "two numbers from 0 to below 1", self.betas)
        if not 0 <= self.seed < 2**64:
            raise ArgumentError("seed", "an integer from 0 to 2^64 - 1", self.seed)
        if self.shaping not in SHAPINGS:
            raise ArgumentError("shaping", f"one of {', '.join(SHAPINGS)}", self.shaping)

    def init(self, params: Mapping[str, Tensor]) -> EvolutionState:
        """Return the state before the first generation, with a copy of `params` as centre.

        Raises:
            ArgumentError: (a ``ValueError``) a pattern of `groups` matches no parameter, or
                no parameter evolves.
        """
        require_named("params", params)
        of_each = group_of_each(params, self.groups)
        copies = {name: p.detach().clone() for name, p in params.items()}
        centre = {name: p for name, p in copies.items() if of_each[name].sigma}
        fixed = {name: p for name, p in copies.items() if not of_each[name].sigma}
        require_decimals("params", centre)
        average = {name: p.clone() for name, p in centre.items()}
        factors = {name: of_each[name].step for name in centre}
        optimiser = fresh_optimiser(self._make_optimiser, centre, self._rate(0), factors)
        return EvolutionState(0, centre, average, optimiser.state_dict(), fixed)

    def ask(self, state: EvolutionState) -> PerturbedPopulation:
        """Return the population of the state's generation: `population` members.

        Raises:
            ArgumentError: (a ``ValueError``) the schedule of sigma returned a number that is
                not above 0.
        """
        sigma = value_at("sigma", self.sigma, state.generation, most=LARGEST_FLOAT)
        factors = {name: group.sigma for name, group in self._groups_of(state).items()}
        alike = all(factor == 1 for factor in factors.values())
        return PerturbedPopulation(
            state.params,
            self.population,
            sigma if alike else {name: sigma * factor for name, factor in factors.items()},
            noise=self.noise,
            seed=self.seed,
            generation=state.generation,
            antithetic=self.antithetic,
        )

    def tell(self, state: EvolutionState, fitness: Tensor) -> EvolutionState:
        """Return the state after a generation whose members had this fitness.

        A fitness that is not finite counts as the worst finite one. Where none is finite, or
        the update would not be, the generation is counted, in `EvolutionState.lost` too, and
        nothing else changes; `EvolutionState.told` says why.

        Args:
            state: the state that `ask` was given.
            fitness: ``[population]``, the larger the better, in the members' order.

        Raises:
            ArgumentError: (a ``ValueError``) fitness has another shape, or a schedule
                returned a number that cannot be used.
        """
        require_tensor("fitness", fitness, f"a tensor of shape [{self.population}]")
        if fitness.shape != (self.population,):
            raise ArgumentError(
                "fitness", f"a tensor of shape [{self.population}]", list(fitness.shape)
            )
        finite = replace_non_finite(fitness.detach().double())
        if finite is None:
            return _lost(state, "no finite fitness")
        after = stepped(
            self._make_optimiser,
            state.params,
            self._ascent(state, finite),
            self._rate(state.generation),
            {name: group.step for name, group in self._groups_of(state).items()},
            state.optimiser,
        )
        if after is None:
            return _lost(state, "update not finite")
        params, optimiser = after
        past = min(self.averaging, (state.generation + 1) / (state.generation + 10))
        average = {name: p.lerp(state.average[name], past) for name, p in params.items()}
        return EvolutionState(
            state.generation + 1, params, average, optimiser, state.fixed, "moved", state.lost
        )

    def centre(self, state: EvolutionState) -> Mapping[str, Tensor]:
        """Return the parameters of the network to use: the running average.

        Those that do not evolve are among them, as `init` was given them.
        """
        return {**state.average, **state.fixed} if state.fixed else state.average

    def _ascent(self, state: EvolutionState, fitness: Tensor) -> dict[str, Tensor]:
        """Return the estimate: the mean over directions of utility times noise."""
        if self.antithetic:
            utilities = SHAPINGS[self.shaping](pair_advantages(fitness))
            # Half of a pair's utility for either member: their noise is the same but for sign.
            utilities = torch.stack([utilities, -utilities], dim=1).flatten()
        else:
            utilities = GROUP_SHAPINGS[self.shaping](group_advantages(fitness, self.group))
        population = self.ask(state)
        total = population.weighted_noise(utilities / self.population)
        if self.shaping == "raw":  # the gradient itself: fitness per unit of the parameter
            return {name: noise / population.sigma_of(name) for name, noise in total.items()}
        groups = self._groups_of(state)
        return {name: noise / groups[name].sigma for name, noise in total.items()}

    def _rate(self, generation: int) -> float:
        rate = self.learning_rate
        schedule = rate if callable(rate) else inverse_sqrt(rate, self.decay)
        return value_at("learning_rate", schedule, generation, zero=True)

    def _groups_of(self, state: EvolutionState) -> dict[str, Group]:
        """Return the group of each parameter that evolves."""
        of_each = group_of_each([*state.params, *state.fixed], self.groups)
        return {name: of_each[name] for name in state.params}

    def _make_optimiser(self, groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
        if self.optimiser is not None:
            return self.optimiser(groups, rate)
        return torch.optim.Adam(groups, lr=rate, betas=self.betas)

    def _require_groups(self) -> None:
        """Refuse a population that is not made of whole groups."""
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
        elif self.group < 2:
            raise ArgumentError("group", "an integer of at least 2", self.group)
        elif self.population < 1 or self.population % self.group:
            needed = f"a multiple of {self.group}, because members are compared in groups of it"
            raise ArgumentError("population", needed, self.population)


def _lost(state: EvolutionState, why: Told) -> EvolutionState:
    """Return the state after a generation that moved nothing."""
    return replace(state, generation=state.generation + 1, told=why, lost=state.lost + 1)
