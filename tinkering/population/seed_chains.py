"""Members as chains of seeds: a base, and the addresses of the noise that was added to it.

Such et al. 2017, "Deep Neuroevolution" (arXiv 1712.06567), section 3.1 and equation 1:
a member's parameters are a function of the short list of seeds that made them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from tinkering.errors import ArgumentError
from tinkering.noise import LowRank, Noise, Stream, draw, on_device
from tinkering.population.member import Members, ParamsAndBuffers
from tinkering.population.stacked import StackedPopulation
from tinkering.required import require_floating_point, require_named


class Mutation(NamedTuple):
    """The address of some noise, and what it is multiplied by."""

    generation: int
    """In which it was drawn, from 0."""
    member: int
    """That it was drawn for, in that generation's population."""
    sigma: float


Chain = tuple[Mutation, ...]
"""A member's mutations, the oldest first. Members with a common past share the objects."""


class SeedChainPopulation(Members):
    """A base plus each member's own sum of mutations: members exist only when asked for.

    Member i's parameters are ``base + sum_j sigma_j * noise(seed, generation_j, member_j)``,
    summed over its chain in order. A member takes the memory of its chain, eight bytes a
    mutation, however many parameters it has. All members share the base's buffers.

    Rebuilding a member costs a draw of all parameters' noise for each of its mutations. The
    parameters that were behind the last mutation of the member rebuilt last are kept: one
    parameter set. So where members of one parent lie beside each other, as those of
    `GeneticAlgorithm` do, the parent is rebuilt once and each of them takes one draw. In any
    other order each takes its whole chain.

    Args:
        model: the base: a module, or its parameters by name (then there are no buffers, and
            `materialise` needs a module).
        chains: of each member; an empty chain is the base.
        noise: kind of the noise.
        seed: 0 to 2^64 - 1.

    Raises:
        ArgumentError: (a ``ValueError``) there is no member, or the seed is out of range.

    Example:
        >>> parent = (Mutation(generation=0, member=3, sigma=0.1),)
        >>> chains = [parent, (*parent, Mutation(generation=1, member=7, sigma=0.1))]
        >>> population = SeedChainPopulation(nn.Linear(8, 4), chains)
        >>> len(population), population[1][0]["weight"].shape
        (2, torch.Size([4, 8]))
        >>> population.materialise(1)
        Linear(in_features=8, out_features=4, bias=True)
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, Tensor],
        chains: Sequence[Chain],
        noise: Noise | None = None,
        seed: int = 0,
    ) -> None:
        if not chains:
            raise ArgumentError("chains", "a chain for each of at least one member", "none")
        Stream(seed, generation=0)  # refuses a seed that is out of range
        self.template, self.buffers = None, {}
        if isinstance(model, nn.Module):
            self.template = model
            self.base = {name: p.detach() for name, p in model.named_parameters()}
            self.buffers = dict(model.named_buffers())
        else:
            require_named("model", model)
            self.base = dict(model)
        require_floating_point("model", self.base)
        self.chains: tuple[Chain, ...] = tuple(chains)
        """Of each member."""
        self.noise: Noise = LowRank(rank=1) if noise is None else noise
        self.seed = seed
        self.size = len(self.chains)
        self.members = range(self.size)
        # Replaced as one object: threads that race rebuild a parent twice, and no worse.
        self._kept: list[tuple[Chain, dict[str, Tensor]]] = [((), self.base)]

    @property
    def like(self) -> ParamsAndBuffers:
        """The base: tensors of the shapes of a member's."""
        return self.base, self.buffers

    @property
    def differing(self) -> frozenset[str]:
        """Names of the parameters and buffers that members have values of their own for."""
        return frozenset(self.base)

    @property
    def likeness(self) -> Hashable:
        """Equal for populations that are evaluated in the same way, whatever their numbers."""
        return type(self), len(self), tuple(self.base)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: all but the parent that is kept."""
        return {**self.__dict__, "_kept": [((), self.base)]}

    def __copy__(self) -> SeedChainPopulation:
        """Return a copy that keeps its parents in the same place."""
        population = object.__new__(type(self))
        population.__dict__.update(self.__dict__)
        return population

    def snapshot(self) -> SeedChainPopulation:
        """Return the same members in memory of their own, which no later change reaches."""
        population = super().snapshot()
        population._kept = [((), population.base)]
        return population

    def member(self, index: int) -> ParamsAndBuffers:
        """Return member `index` as ``(params, buffers)``, ready for `functional_forward_core`.

        Raises:
            IndexError: there is no such member.
        """
        position = self.members[index]  # an IndexError of Python's own, with its rules
        chain = self.chains[position]
        if not chain:
            return {name: base.clone() for name, base in self.base.items()}, self.buffers
        params = self._mutated(self._parent(chain[:-1]), chain[-1])
        return params, self.buffers

    def stack(self) -> StackedPopulation:
        """Return the same members, each with parameters of its own in memory.

        Example:
            >>> mutated = (Mutation(generation=0, member=3, sigma=0.1),)
            >>> family = SeedChainPopulation(nn.Linear(8, 4), chains=[(), mutated])
            >>> family.stack().params["weight"].shape
            torch.Size([2, 4, 8])
        """
        return StackedPopulation.from_members(self)

    def _parent(self, chain: Chain) -> dict[str, Tensor]:
        """Return the parameters behind a chain, from those kept where it goes on from there."""
        behind, params = self._kept[0]
        if chain[: len(behind)] != behind:
            behind, params = (), self.base
        for mutation in chain[len(behind) :]:
            params = self._mutated(params, mutation)
        self._kept[0] = (chain, params)
        return params

    def _mutated(self, params: dict[str, Tensor], mutation: Mutation) -> dict[str, Tensor]:
        """Return other parameters: these, plus the mutation's noise."""
        shapes = {name: value.shape for name, value in params.items()}
        stream, at = Stream(self.seed, mutation.generation), mutation.member
        noise = draw(self.noise, stream, shapes, range(at, at + 1))
        return {
            name: value.add(
                on_device(noise[name], value.device).dense()[0].to(value.dtype),
                alpha=mutation.sigma,
            )
            for name, value in params.items()
        }
