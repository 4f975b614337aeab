"""What every population has in common: its contract, its slices, a member as a module."""

from __future__ import annotations

import copy
import operator
from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any, Protocol, TypeVar, overload, runtime_checkable

from torch import Tensor, nn

from tinkering.errors import ArgumentError
from tinkering.graph.copies import copied_with

_KINDS = ("parameter", "buffer")
ParamsAndBuffers = tuple[dict[str, Tensor], dict[str, Tensor]]
"""A parameter set as ``torch.func`` wants it: ``(parameters by name, buffers by name)``."""


@runtime_checkable
class Population(Protocol):
    """Many parameter sets for one architecture, whichever way they are held.

    How many members there are is no part of it: where activations are perturbed, that depends on
    the examples and the layers of an evaluation. Those that can be counted are a
    `CountedPopulation` as well.
    """

    @property
    def template(self) -> nn.Module | None:
        """The architecture, where it is known."""

    @property
    def buffers(self) -> Mapping[str, Tensor]:
        """By name: one set for all members, or stacked as the parameters are."""

    @property
    def centre(self) -> Mapping[str, Tensor] | None:
        """What all members share but for their noise; None where each has its own."""

    @property
    def like(self) -> ParamsAndBuffers:
        """Tensors of the names, shapes, dtypes and device of a member's; no noise is drawn."""

    @property
    def differing(self) -> frozenset[str]:
        """Names of the parameters and buffers that members have values of their own for."""

    @property
    def likeness(self) -> Hashable:
        """Equal for populations that are evaluated in the same way, whatever their numbers."""

    def with_buffers(self, buffers: Mapping[str, Tensor]) -> Population:
        """Return the same members with other buffers."""

    def member(self, index: int) -> ParamsAndBuffers:
        """Return one member's ``(params, buffers)``, ready for `functional_forward_core`."""

    def materialise(self, index: int, model: nn.Module | None = None) -> nn.Module:
        """Return one member as a module of its own."""

    def stack(self) -> CountedPopulation:
        """Return the same members, each with parameters of its own in memory."""


@runtime_checkable
class CountedPopulation(Population, Protocol):
    """A population whose members are there before anything is evaluated."""

    @property
    def size(self) -> int:
        """Members of the whole population, of which this may be a part."""

    @property
    def members(self) -> range:
        """Which members of the whole population these are."""

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, index: int) -> ParamsAndBuffers: ...
    @overload
    def __getitem__(self, index: slice) -> CountedPopulation: ...

    def with_buffers(self, buffers: Mapping[str, Tensor]) -> CountedPopulation:
        """Return the same members with other buffers."""


_HELD = {"params", "buffers", "base"}
"""What populations call the tensors that they hold, by name."""
Some = TypeVar("Some", bound="Members")


class Members:
    """How members are counted, sliced and built, whichever way a population holds them."""

    template: nn.Module | None
    """The architecture, where it is known."""
    buffers: dict[str, Tensor]
    size: int
    """Members of the whole population, of which this may be a part."""
    members: range
    """Which members of the whole population these are."""

    def __len__(self) -> int:
        return len(self.members)

    @overload
    def __getitem__(self, index: int) -> ParamsAndBuffers: ...
    @overload
    def __getitem__(self: Some, index: slice) -> Some: ...
    def __getitem__(self: Some, index: int | slice) -> ParamsAndBuffers | Some:
        """Return one member's ``(params, buffers)``, or the population of a contiguous slice."""
        if not isinstance(index, slice):
            return self.member(operator.index(index))
        part = copy.copy(self)
        part.members = part_of(self.members, index)
        return part

    @property
    def centre(self) -> Mapping[str, Tensor] | None:
        """What all members share but for their noise; None where each has its own."""
        return None

    def with_buffers(self: Some, buffers: Mapping[str, Tensor]) -> Some:
        """Return the same members with other buffers, such as fresh BatchNorm statistics."""
        population = copy.copy(self)
        population.buffers = dict(buffers)
        return population

    def snapshot(self: Some) -> Some:
        """Return the same members in memory of their own, which no later change reaches."""
        population = copy.copy(self)
        for name in _HELD & vars(self).keys():
            held = {key: _copied(value) for key, value in vars(self)[name].items()}
            setattr(population, name, held)
        return population

    @abstractmethod
    def member(self, index: int) -> ParamsAndBuffers:
        """Return member `index` as ``(params, buffers)``, ready for `functional_forward_core`.

        Raises:
            IndexError: there is no such member.
        """

    def materialise(self, index: int, model: nn.Module | None = None) -> nn.Module:
        """Return member `index` as a module of its own; nothing is shared with the population.

        Args:
            index: the member.
            model: the architecture, where the population was built without a module. The
                result has its modes (train or eval).

        Raises:
            ArgumentError: (a ``ValueError``) there is no module, or it has not this
                population's parameters.
            IndexError: there is no such member.
        """
        return as_module(self.template if model is None else model, self.member(index))


def _copied(value: Tensor) -> Tensor:
    """Return a copy; what was expanded along its first axis is again."""
    if value.dim() and not value.stride(0):
        return value[:1].clone().expand(value.shape)
    return value.clone()


def part_of(members: range, index: slice) -> range:
    """Return the members of ``population[index]``, contiguous and not empty.

    Raises:
        ArgumentError: (a ``ValueError``) the slice is empty or has a step.

    Example:
        >>> part_of(range(10, 20), slice(-3, None))
        range(17, 20)
    """
    part = members[index]
    if part.step != 1 or not part:
        raise ArgumentError(
            "population[a:b]", f"a contiguous, non-empty part of {len(members)} members", index
        )
    return part


def as_module(model: nn.Module | None, member: ParamsAndBuffers) -> nn.Module:
    """Return a copy of `model` that holds `member`; it shares no memory with either.

    Dtype and device are the member's; modes, ties between parameters and all that the
    member does not have (such as parameters that do not evolve) are the model's.

    Args:
        model: the architecture; its own values are not read, so that it may be on "meta".
        member: ``(parameters by name, buffers by name)``.

    Raises:
        ArgumentError: (a ``ValueError``) there is no module, or one that lacks a parameter
            or buffer of the member's, or has it in another shape.

    Example:
        >>> import torch
        >>> layer = as_module(nn.Linear(1, 1, bias=False), ({"weight": torch.ones(1, 1)}, {}))
        >>> layer(torch.tensor([3.0]))
        tensor([3.], grad_fn=...)
    """
    if model is None:
        raise ArgumentError(
            "model",
            "a module, because this population was built from parameters alone",
            None,
            "Call materialise(index, model).",
        )
    copies: dict[int, Any] = {}
    params, buffers = (_own(model, kind, held) for kind, held in zip(_KINDS, member, strict=True))
    for parameter, value in params:
        copies[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    for buffer, value in buffers:
        copies[id(buffer)] = value
    return copied_with(model, copies)


def _own(model: nn.Module, kind: str, values: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the model's tensors of these names, each with a copy of the value for it."""
    held = dict(model.named_parameters() if kind == "parameter" else model.named_buffers())
    pairs = []
    for name, value in values.items():
        if name not in held:
            raise ArgumentError(
                "model", f"a module with this population's {kind}s", f"one without {name}"
            )
        if held[name].shape != value.shape:
            raise ArgumentError(
                "model",
                f"a module with the {kind} {name!r} of shape {list(value.shape)}",
                list(held[name].shape),
            )
        pairs.append((held[name], value.detach().clone()))
    return pairs
