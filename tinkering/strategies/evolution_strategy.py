"""Evolution strategy: a centre follows the fitness differences of its members.

What is perturbed, weights or activations, is an argument: `Weights`, `Activations`, `Feedback`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from tinkering.engines.evaluation import Evaluation
from tinkering.engines.thread_pool import one_thread_inside
from tinkering.errors import ArgumentError
from tinkering.noise import Stream
from tinkering.population import Population
from tinkering.ranges import require_positive
from tinkering.required import require_floating_point, require_named
from tinkering.strategies.groups import Group, group_of_each
from tinkering.strategies.perturbation import Generation, Perturbation
from tinkering.strategies.schedules import Schedule, inverse_sqrt, value_at
from tinkering.strategies.shaping import SHAPINGS
from tinkering.strategies.stepping import MakeOptimiser, fresh_optimiser, stepped
from tinkering.strategies.told import Told, as_evaluation
from tinkering.strategies.weights import Weights


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
    learned: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """What the perturbation learned from the generations told so far."""
    told: Told = "nothing yet"
    """What the latest generation came to."""
    lost: int = 0
    """Generations that moved nothing, of those told so far."""


@dataclass(frozen=True)
class EvolutionStrategy:
    """Ask for members around a centre, tell their fitness, move the centre.

    The gradient of the expected fitness is estimated from what members' noise was worth, and an
    optimiser follows it. No backpropagation anywhere.

    The centre is averaged over generations (Polyak and Juditsky 1992): the estimate is
    noisy, so the average is better than the latest centre.

    Args:
        perturb: what members differ in, and how: `Weights`, `Activations` or `Feedback`.
        learning_rate: the optimiser's step, or a schedule of it. With Adam it is about the
            change of a parameter in a generation. By default 0.03 for weights, 0.004 for
            activations and feedback.
        decay: generations until the step begins to shrink: in generation g it is
            ``learning_rate / sqrt(1 + g / decay)``. The estimate is so noisy that a step
            which is right early on leads nowhere later. A schedule replaces it.
        averaging: weight of the past in the running average, 0 (the latest centre) to 1
            (excluded); early on it is less, so that the random start is forgotten.
        shaping: what fitness differences are worth: see `tinkering.strategies.shaping`.
            ``"raw"``, ``"z-score"``, ``"rank"`` or ``"sign"`` for weights, where ``"z-score"`` is
            the default; ``"raw"``, the default, or ``"relative"`` for activations and feedback.
            With ``"raw"`` the optimiser is handed the gradient itself, in fitness per unit of a
            parameter; with the others its length says nothing.
        seed: of the noise, 0 to 2^64 - 1.
        optimiser: makes the optimiser, as ``optimiser(params, learning_rate)``: a class of
            ``torch.optim`` that steps without a closure, or one with settings of its own,
            such as ``functools.partial(torch.optim.AdamW, weight_decay=0.01)``.
        groups: `Group` by patterns over the parameters' names, such as
            ``{"head.*": Group(sigma=0.5, step=2.0), "*bias": Group(sigma=0)}``: factors on
            sigma and on the step. The first match wins; a sigma of 0 leaves parameters as
            they are, and out of the population. A factor on sigma does not change the
            direction that is estimated: noise is divided by it.

    Raises:
        ArgumentError: (a ``ValueError``) one of these is out of range.

    Example:
        >>> strategy = EvolutionStrategy(Weights(population=64, sigma=0.1), learning_rate=0.1)
        >>> state = strategy.init({"position": torch.tensor([3.0, -2.0])})
        >>> for _ in range(100):
        ...     population = strategy.ask(state)
        ...     members = [population.member(i)[0] for i in range(len(population))]
        ...     fitness = torch.stack([-m["position"].square().sum() for m in members])
        ...     state = strategy.tell(state, fitness)
        >>> bool(state.average["position"].norm() < 0.5)
        True
    """

    perturb: Perturbation = field(default_factory=Weights)
    learning_rate: float | Schedule | None = None
    decay: float = 50.0
    averaging: float = 0.98
    shaping: str | None = None
    seed: int = 0
    optimiser: MakeOptimiser = torch.optim.Adam
    groups: Mapping[str, Group] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.perturb, Perturbation):
            raise ArgumentError("perturb", "Weights, Activations or Feedback", repr(self.perturb))
        for name in ("learning_rate", "decay"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                require_positive(name, value, inf)
        if not 0 <= self.averaging < 1:
            raise ArgumentError("averaging", "a number from 0 to below 1", self.averaging)
        if not 0 <= self.seed < 2**64:
            raise ArgumentError("seed", "an integer from 0 to 2^64 - 1", self.seed)
        shapings = SHAPINGS[self.perturb.compared]
        if self._shaping not in shapings:
            raise ArgumentError("shaping", f"one of {', '.join(shapings)}", self.shaping)

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
        require_floating_point("params", centre)
        average = {name: p.clone() for name, p in centre.items()}
        factors = {name: of_each[name].step for name in centre}
        optimiser = fresh_optimiser(self.optimiser, centre, self._rate(0), factors)
        return EvolutionState(0, centre, average, optimiser.state_dict(), fixed)

    def ask(self, state: EvolutionState) -> Population:
        """Return the population of the state's generation.

        Raises:
            ArgumentError: (a ``ValueError``) the schedule of sigma returned a number that is
                not above 0.
        """
        return self.perturb.around(self._generation(state))

    def tell(self, state: EvolutionState, evaluation: Evaluation | Tensor) -> EvolutionState:
        """Return the state after a generation whose members had this fitness.

        A fitness that is not finite counts as the worst finite one. Where none is finite, or
        the update would not be, the generation is counted, in `EvolutionState.lost` too, and
        nothing else changes; `EvolutionState.told` says why.

        Args:
            state: the state that `ask` was given.
            evaluation: of the population that `ask` returned; or, where weights are perturbed,
                the fitness alone, ``[population]``, the larger the better, in the members' order.

        Raises:
            ArgumentError: (a ``ValueError``) fitness has another shape, a gradient estimate is
                missing, or a schedule returned a number that cannot be used.
        """
        generation = self._generation(state)
        gradient = self.perturb.gradient(generation, as_evaluation(evaluation))
        if gradient is None:
            return _lost(state, "no finite fitness")
        rate = self._rate(state.generation)
        factors = {name: group.step for name, group in self._groups_of(state).items()}
        past = min(self.averaging, (state.generation + 1) / (state.generation + 10))
        with one_thread_inside():
            after = stepped(self.optimiser, state.params, gradient, rate, factors, state.optimiser)
            if after is None:
                return _lost(state, "update not finite")
            params, optimiser = after
            average = {name: p.lerp(state.average[name], past) for name, p in params.items()}
            learned = self.perturb.learn(generation, as_evaluation(evaluation))
        return EvolutionState(
            state.generation + 1,
            params,
            average,
            optimiser,
            state.fixed,
            learned,
            "moved",
            state.lost,
        )

    def centre(self, state: EvolutionState) -> Mapping[str, Tensor]:
        """Return the parameters of the network to use: the running average.

        Those that do not evolve are among them, as `init` was given them.
        """
        return {**state.average, **state.fixed} if state.fixed else state.average

    @property
    def _shaping(self) -> str:
        return self.perturb.usual_shaping if self.shaping is None else self.shaping

    def _rate(self, generation: int) -> float:
        rate = self.learning_rate
        rate = self.perturb.usual_learning_rate if rate is None else rate
        schedule = rate if callable(rate) else inverse_sqrt(rate, self.decay)
        return value_at("learning_rate", schedule, generation, zero=True)

    def _generation(self, state: EvolutionState) -> Generation:
        """Return what the state's generation is made of."""
        factors = {name: group.sigma for name, group in self._groups_of(state).items()}
        stream = Stream(self.seed, state.generation)
        return Generation(state.params, factors, stream, self._shaping, state.learned)

    def _groups_of(self, state: EvolutionState) -> dict[str, Group]:
        """Return the group of each parameter that evolves."""
        of_each = group_of_each([*state.params, *state.fixed], self.groups)
        return {name: of_each[name] for name in state.params}


def _lost(state: EvolutionState, why: Told) -> EvolutionState:
    """Return the state after a generation that moved nothing."""
    return replace(state, generation=state.generation + 1, told=why, lost=state.lost + 1)
