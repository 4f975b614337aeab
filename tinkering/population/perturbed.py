"""A centre plus noise: members that exist only when asked for."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from tinkering.errors import ArgumentError
from tinkering.noise import (
    Address,
    Blocks,
    Factors,
    LowRank,
    Mapped,
    Noise,
    Stream,
    living,
    on_device,
    weighted_noise,
)
from tinkering.population.member import Members, ParamsAndBuffers
from tinkering.population.stacked import StackedPopulation
from tinkering.ranges import require_at_least, require_not_negative
from tinkering.required import require_floating_point, require_kind, require_named

Sigma = float | Mapping[str, float]
"""One standard deviation for all parameters, or one for each by its name."""


@dataclass(frozen=True)
class Draw:
    """The noise of some members as it was drawn: once for the two members of a pair."""

    noise: dict[str, Factors]
    """Factors of each parameter, with a row a pair and unit variance."""
    rows: Tensor
    """``[members]``: the row of each member's pair."""
    signs: Tensor
    """``[members]``: +1 or -1."""


class PerturbedPopulation(Members):
    """A centre plus ``sigma * noise``: members exist only when asked for.

    Member i's parameters are ``centre + sigma * sign * noise(seed, generation, pair)``, where
    sigma may be one number for each parameter. With
    `antithetic`, members 2p and 2p + 1 are the pair p, with signs + and - (mirrored
    sampling, Brockhoff et al. 2010); otherwise every member has noise of its own. All
    members share the centre's buffers, thus its BatchNorm statistics.

    Noise is drawn again whenever it is needed, for some members at a time, so memory does
    not grow with the population; `keeping` has some of it drawn once. The parameters are
    the module's own tensors, not copies: a module that is changed moves the centre.

    Args:
        model: the centre: a module, or its parameters by name (then there are no buffers,
            and `materialise` needs a module).
        size: members; even if `antithetic`.
        sigma: standard deviation of each parameter's perturbation: a number, or numbers by
            the parameters' names, exactly those of `model`. To leave a parameter out, hand in
            the others as a dict: 0 perturbs it by nothing, yet takes the time of one.
        noise: kind of the noise.
        seed: 0 to 2^64 - 1.
        generation: from 0; another generation draws independent noise.
        antithetic: whether members come in mirrored pairs.

    Raises:
        ArgumentError: (a ``ValueError``) one of these is out of range.

    Example:
        >>> population = PerturbedPopulation(nn.Linear(8, 4), size=6, sigma=0.1)
        >>> len(population), len(population[2:4])
        (6, 2)
        >>> params, buffers = population[3]
        >>> params["weight"].shape
        torch.Size([4, 8])
        >>> population.materialise(3)
        Linear(in_features=8, out_features=4, bias=True)
        >>> sigma = {"weight": 0.1, "bias": 0.5}
        >>> PerturbedPopulation(nn.Linear(8, 4), size=6, sigma=sigma).sigma_of("bias")
        0.5
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, Tensor],
        size: int,
        sigma: Sigma,
        noise: Noise | None = None,
        seed: int = 0,
        generation: int = 0,
        antithetic: bool = True,
    ) -> None:
        for name, value in (("size", size), ("seed", seed), ("generation", generation)):
            require_kind(name, value, Integral, "an integer")
        if size < 1:
            raise ArgumentError("size", "at least one member", size)
        if antithetic and size % 2:
            raise ArgumentError(
                "size", "an even number of members, because they come in antithetic pairs", size
            )
        if not 0 <= seed < 2**64:
            raise ArgumentError("seed", "an integer from 0 to 2^64 - 1", seed)
        require_at_least(0, generation=generation)
        self.template, self.buffers = None, {}
        if isinstance(model, nn.Module):
            self.template = model
            self.params = {name: p.detach() for name, p in model.named_parameters()}
            self.buffers = dict(model.named_buffers())
        else:
            require_named("model", model)
            self.params = dict(model)
        require_floating_point("model", self.params)
        self.sigma = _checked(sigma, self.params)
        self.noise: Noise = LowRank(rank=1) if noise is None else noise
        require_kind("noise", self.noise, Noise, "a kind of noise, such as LowRank(1)")
        self.stream = Stream(seed, generation)
        self.antithetic = antithetic
        self.size, self.members = size, range(size)
        self._blocks = self._unkept()

    def _unkept(self) -> Blocks:
        """Return the noise of all members, none of which is kept."""
        shapes = tuple((name, p.shape) for name, p in self.params.items())
        pairs = self.size // 2 if self.antithetic else self.size
        return Blocks(Address(self.noise, self.stream, shapes, pairs), most=0)

    def __copy__(self) -> PerturbedPopulation:
        population = object.__new__(type(self))
        vars(population).update(vars(self))
        return population

    def __getstate__(self) -> dict[str, Any]:
        # What is kept stays in this process: elsewhere it is drawn again.
        return {name: value for name, value in vars(self).items() if name != "_blocks"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._blocks = self._unkept()

    @property
    def centre(self) -> Mapping[str, Tensor]:
        """The parameters that all members share but for their noise."""
        return self.params

    @property
    def like(self) -> ParamsAndBuffers:
        """The centre: tensors of the shapes of a member's."""
        return self.params, self.buffers

    @property
    def differing(self) -> frozenset[str]:
        """Names of the parameters and buffers that members have values of their own for."""
        return frozenset(self.params)

    @property
    def likeness(self) -> Hashable:
        """Equal for populations that are evaluated in the same way, whatever their numbers."""
        return type(self), len(self), self.antithetic, self.noise, tuple(self.params)

    def sigma_of(self, name: str) -> float:
        """Return the standard deviation of one parameter's perturbation."""
        return self.sigma[name] if isinstance(self.sigma, Mapping) else self.sigma

    def member(self, index: int) -> ParamsAndBuffers:
        """Return member `index` as ``(params, buffers)``, ready for `functional_forward_core`.

        Raises:
            IndexError: there is no such member.
        """
        position = range(len(self))[index]  # an IndexError of Python's own, with its rules
        return self._perturbed(self[position : position + 1].draw(), 0), self.buffers

    def _perturbed(self, drawn: Draw, at: int) -> dict[str, Tensor]:
        """Return the parameters of one of the members that noise was drawn for."""
        row, sign = drawn.rows[at : at + 1], drawn.signs[at : at + 1]
        params = {}
        for name, centre in self.params.items():
            noise = drawn.noise[name][row].scaled(sign * self.sigma_of(name))
            params[name] = centre + noise.dense()[0].to(centre)
        return params

    def stack(self) -> StackedPopulation:
        """Return the same members, each with parameters of its own in memory.

        Example:
            >>> around = PerturbedPopulation(nn.Linear(8, 4), size=6, sigma=0.1)
            >>> around.stack().params["weight"].shape
            torch.Size([6, 4, 8])
        """
        drawn, size = self.draw(), len(self)
        members = [self._perturbed(drawn, at) for at in range(size)]
        params = {name: torch.stack([own[name] for own in members]) for name in self.params}
        buffers = {name: b.expand(size, *b.shape) for name, b in self.buffers.items()}
        return StackedPopulation(params, buffers, self.template)

    def keeping(self, most: int) -> PerturbedPopulation:
        """Return the same members, whose noise is drawn once where it fits some memory.

        Populations of the same members, such as that of an evaluation and that of an update, share
        what was drawn for as long as one of them lives. It changes no number.

        Args:
            most: bytes that may be kept.

        Example:
            >>> around = PerturbedPopulation(nn.Linear(8, 4), size=6, sigma=0.1).keeping(1 << 20)
            >>> around.draw().noise["weight"].left.shape
            torch.Size([3, 1, 4])
        """
        population = copy.copy(self)
        population._blocks = living(self._blocks.address, most)
        return population

    def draw(self) -> Draw:
        """Return the noise of these members; it is drawn now, unless it is kept."""
        members = torch.arange(self.members.start, self.members.stop, device="cpu")
        pairs = self._pairs
        if self.antithetic:
            rows, signs = members // 2 - pairs.start, (1 - 2 * (members % 2)).float()
        else:
            rows = members - pairs.start
            signs = torch.ones(len(self), dtype=torch.float32, device="cpu")
        noise = self._blocks.draw(pairs)
        device = self._device
        if device != rows.device:  # the same numbers on every device: they come from the CPU
            noise = {name: on_device(factors, device) for name, factors in noise.items()}
        return Draw(noise, rows.to(device), signs.to(device))

    def weighted_noise(self, weights: Tensor, mapped: Mapped = map) -> dict[str, Tensor]:
        """Return ``sum_i weights[i] * sign_i * noise_i`` for every parameter.

        The noise has unit variance (it is not multiplied by sigma). Nothing of the size
        of members x parameters is built.

        Args:
            weights: ``[members]``.
            mapped: goes through portions of the work; one that does some of them side by side
                changes no bit.

        Raises:
            ArgumentError: (a ``ValueError``) the weights have another shape.
        """
        if weights.shape != (len(self),):
            raise ArgumentError("weights", f"a tensor of shape [{len(self)}]", list(weights.shape))
        of_pairs = weights.to(self._device, torch.float32)
        if self.antithetic:
            missing = self.members.start % 2, self.members.stop % 2  # of a pair that is cut
            plus, minus = nn.functional.pad(of_pairs, missing).view(-1, 2).unbind(1)
            of_pairs = plus - minus
        total = weighted_noise(self._blocks, self._pairs, of_pairs, mapped)
        return {name: noise.to(self.params[name].dtype) for name, noise in total.items()}

    @property
    def _pairs(self) -> range:
        """The pairs of these members, or the members themselves."""
        if not self.antithetic:
            return self.members
        return range(self.members.start // 2, (self.members.stop + 1) // 2)

    @property
    def _device(self) -> torch.device:
        return next((p.device for p in self.params.values()), torch.device("cpu"))


def _checked(sigma: Sigma, params: Mapping[str, Tensor]) -> Sigma:
    """Return sigma, in the order of the parameters where it has their names.

    Raises:
        ArgumentError: (a ``ValueError``) a number is out of range, or the names are others.
    """
    if not isinstance(sigma, Mapping):
        require_kind("sigma", sigma, Real, "a number, or one for each parameter")
        require_not_negative(sigma=sigma)
        return float(sigma)
    for name in params:
        if name not in sigma:
            raise ArgumentError("sigma", f"a number for the parameter {name!r}", "none")
    for name, value in sigma.items():
        if name not in params:
            raise ArgumentError("sigma", "only names of the population's parameters", repr(name))
        if not 0 <= value < float("inf"):
            raise ArgumentError("sigma", f"a finite number of at least 0 for {name!r}", value)
    return {name: float(sigma[name]) for name in params}
