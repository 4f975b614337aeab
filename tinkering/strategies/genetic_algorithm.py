"""Genetic algorithm: the fittest are copied and mutated, and nothing is averaged.

Such et al. 2017, "Deep Neuroevolution: Genetic Algorithms Are a Competitive Alternative for
Training Deep Neural Networks for Reinforcement Learning" (arXiv 1712.06567), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tinkering.engines.evaluation import Evaluation
from tinkering.errors import ArgumentError
from tinkering.noise import Dense, Noise
from tinkering.population import Chain, Mutation, SeedChainPopulation
from tinkering.ranges import require_positive
from tinkering.required import require_floating_point
from tinkering.strategies.schedules import LARGEST_FLOAT, Schedule, value_at
from tinkering.strategies.told import Told, as_evaluation, finite_fitness


@dataclass(frozen=True)
class GeneticState:
    """Where a run stands; `GeneticAlgorithm.tell` returns a new one and changes none.

    It holds one parameter set, the base, and some addresses a parent.
    """

    generation: int
    """Generations told so far."""
    base: Mapping[str, Tensor] = field(repr=False)
    """The parameters that all chains start from."""
    parents: tuple[Chain, ...] = field(repr=False)
    """Of the next generation, the fittest first."""
    fitness: tuple[float, ...] = ()
    """Of the parents, as they were told."""
    told: Told = "nothing yet"
    """What the latest generation came to."""
    lost: int = 0
    """Generations without a finite fitness, of those told so far."""


@dataclass(frozen=True)
class GeneticAlgorithm:
    """Ask for mutated copies of the parents, tell their fitness, keep the fittest as parents.

    Truncation selection: the `parents` fittest members are those of the next generation, whose
    other members are a parent plus ``sigma * noise`` each; there is no crossover. Every parent
    has as many children as the others (but for a remainder, which goes to the fittest), where
    the paper draws a parent for each child. The `elites` fittest are handed on as they are,
    and evaluated anew with all others: on examples that change, a fitness of another generation
    compares with nothing, and a lucky one would stay for ever.

    A member is a chain of addresses (section 3.1 of the paper), whose noise is drawn again
    when the member is needed. In generation g a parent takes up to g draws of all parameters'
    noise to rebuild, and each of its children one more, so evaluating takes up to
    ``parents * g + population`` draws: runs of many thousand generations get slow.

    Args:
        population: members a generation.
        sigma: standard deviation of a mutation of each parameter, or a schedule of it
            (`tinkering.strategies.schedules`).
        parents: members that are chosen, 1 to `population`.
        elites: members that are handed on as they are, 0 to `parents`, below `population`.
        seed: of the noise, 0 to 2^64 - 1.
        noise: kind of the noise.

    Raises:
        ArgumentError: (a ``ValueError``) one of these is out of range.

    Example:
        >>> strategy = GeneticAlgorithm(population=64, sigma=0.2, parents=8, elites=1)
        >>> state = strategy.init({"position": torch.tensor([3.0, -2.0])})
        >>> for _ in range(30):
        ...     population = strategy.ask(state)
        ...     members = [population.member(i)[0] for i in range(len(population))]
        ...     fitness = torch.stack([-m["position"].square().sum() for m in members])
        ...     state = strategy.tell(state, fitness)
        >>> bool(strategy.centre(state)["position"].norm() < 0.1)
        True
    """

    population: int = 1000
    sigma: float | Schedule = 0.02
    parents: int = 20
    elites: int = 1
    seed: int = 0
    noise: Noise = field(default_factory=Dense)

    def __post_init__(self) -> None:
        if self.population < 2:
            raise ArgumentError("population", "at least 2 members", self.population)
        if not callable(self.sigma):
            require_positive("sigma", self.sigma, LARGEST_FLOAT)
        if not 1 <= self.parents <= self.population:
            needed = f"an integer from 1 to population, {self.population}"
            raise ArgumentError("parents", needed, self.parents)
        most = min(self.parents, self.population - 1)
        if not 0 <= self.elites <= most:
            needed = f"an integer from 0 to {most}, because they are parents, and not all members"
            raise ArgumentError("elites", needed, self.elites)
        if not 0 <= self.seed < 2**64:
            raise ArgumentError("seed", "an integer from 0 to 2^64 - 1", self.seed)

    def init(self, params: Mapping[str, Tensor]) -> GeneticState:
        """Return the state before the first generation, with a copy of `params` as parent."""
        require_floating_point("params", params)
        base = {name: p.detach().clone() for name, p in params.items()}
        return GeneticState(0, base, parents=((),))

    def ask(self, state: GeneticState) -> SeedChainPopulation:
        """Return the population of the state's generation: elites first, then the children.

        Children of one parent lie beside each other, so that it is rebuilt once.

        Raises:
            ArgumentError: (a ``ValueError``) the schedule of sigma returned a number that is
                not above 0.
        """
        return self._population(state, self._chains(state))

    def tell(self, state: GeneticState, evaluation: Evaluation | Tensor) -> GeneticState:
        """Return the state after a generation whose members had this fitness.

        A member whose fitness is not finite is no parent, even if there are fewer parents
        then. Where none is finite, the generation is counted, in `GeneticState.lost` too, and
        the parents stay.

        Args:
            state: the state that `ask` was given.
            evaluation: of the population that `ask` returned, or the fitness alone,
                ``[population]``, the larger the better, in the members' order.

        Raises:
            ArgumentError: (a ``ValueError``) fitness has another shape.
        """
        told, generation = as_evaluation(evaluation), state.generation + 1
        finite = finite_fitness(told, self.population)
        if finite is None:
            lost = state.lost + 1
            return replace(state, generation=generation, told="no finite fitness", lost=lost)
        values = torch.where(torch.isfinite(told.fitness), finite, -torch.inf)
        # Stable: of equal members the earlier one, so that elites are not given up for nothing.
        best = values.argsort(descending=True, stable=True)[: self.parents].tolist()
        best = [member for member in best if values[member].isfinite()]
        chains = self._chains(state)
        return replace(
            state,
            generation=generation,
            parents=tuple(chains[member] for member in best),
            fitness=tuple(values[member].item() for member in best),
            told="moved",
        )

    def centre(self, state: GeneticState) -> Mapping[str, Tensor]:
        """Return the parameters of the network to use: those of the fittest parent.

        It was the fittest on what its generation was evaluated on; it is rebuilt here, which
        takes a draw for each of its mutations.
        """
        return self._population(state, state.parents[:1]).member(0)[0]

    def _population(self, state: GeneticState, chains: tuple[Chain, ...]) -> SeedChainPopulation:
        return SeedChainPopulation(state.base, chains, self.noise, self.seed)

    def _chains(self, state: GeneticState) -> tuple[Chain, ...]:
        """Return the chain of each member of the state's generation."""
        sigma = value_at("sigma", self.sigma, state.generation, most=LARGEST_FLOAT)
        elites = state.parents[: self.elites]
        children = range(len(elites), self.population)
        each, more = divmod(len(children), len(state.parents))
        counts = [each + (place < more) for place in range(len(state.parents))]
        parents = [p for p, n in zip(state.parents, counts, strict=True) for _ in range(n)]
        mutated = (
            (*parent, Mutation(state.generation, member, sigma))
            for parent, member in zip(parents, children, strict=True)
        )
        return (*elites, *mutated)
