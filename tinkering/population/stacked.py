"""Explicit members, each with parameters of its own, stacked along a first axis."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Mapping
from typing import overload

import torch
from torch import Tensor, nn

from tinkering.errors import ArgumentError
from tinkering.population.alike import detached, in_order_of, require_alike, require_members
from tinkering.population.member import CountedPopulation, Members, ParamsAndBuffers
from tinkering.population.patterns import Patterns, matching
from tinkering.required import kind_of, require_tensor


class StackedPopulation(Members):
    """Explicit members: every parameter (and buffer) of all members in one tensor.

    It takes what ``torch.func.stack_module_state(models)`` returns. The tensors are held,
    not copied: a member and a slice are views, and whoever writes to them writes here.

    Args:
        params: parameters by name, each ``[members, *shape]``.
        buffers: buffers by name, each ``[members, *shape]``; ``{}`` if there are none.
        model: the architecture, for `materialise`; its own values are not read. If given,
            `params` and `buffers` are the model's, all of them, and in its order.

    Raises:
        ArgumentError: (a ``ValueError``) there is no tensor or no member, tensors differ
            in their number of members, or names or shapes are not the model's.

    Example:
        >>> models = [nn.Linear(8, 4) for _ in range(6)]
        >>> population = StackedPopulation(*torch.func.stack_module_state(models))
        >>> len(population), len(population[2:4])
        (6, 2)
        >>> params, buffers = population[3]
        >>> torch.equal(params["weight"], models[3].weight)
        True
        >>> population.materialise(3, models[0])
        Linear(in_features=8, out_features=4, bias=True)
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        model: nn.Module | None = None,
    ) -> None:
        self.template: nn.Module | None = model
        self.params = detached("params", params)
        """``[members, *shape]`` by name."""
        self.buffers = detached("buffers", buffers)
        """``[members, *shape]`` by name."""
        first = next(iter((self.params | self.buffers).items()), None)
        if first is None:
            raise ArgumentError("params", "at least one parameter or buffer", "none")
        self.size = len(first[1])
        self.members = range(self.size)
        for argument, stack in (("params", self.params), ("buffers", self.buffers)):
            require_members(argument, stack, self.size, f"as {first[0]!r} has")
        if not self.size:
            argument = "params" if self.params else "buffers"
            needed = f"at least one member along the first axis of {first[0]!r}"
            raise ArgumentError(argument, needed, 0)
        if model is not None:
            shapes = {name: p.shape for name, p in model.named_parameters()}
            self.params = in_order_of("params", self.params, shapes)
            shapes = {name: b.shape for name, b in model.named_buffers()}
            self.buffers = in_order_of("buffers", self.buffers, shapes)

    @classmethod
    def from_modules(cls, models: Iterable[nn.Module]) -> StackedPopulation:
        """Return the population of some modules of one architecture; their state is copied.

        The first module is the template. Whatever is not a parameter, a buffer, a mode or
        the type of a submodule, such as a stride, is taken from it unseen.

        Args:
            models: at least one; all have the same parameters and buffers (name, shape,
                dtype and device) and the same submodules (name, type, train or eval mode).

        Raises:
            ArgumentError: (a ``ValueError``) there is none, or they differ.

        Example:
            >>> models = [nn.Linear(8, 4) for _ in range(6)]
            >>> StackedPopulation.from_modules(models).params["weight"].shape
            torch.Size([6, 4, 8])
        """
        if not isinstance(models, Iterable):
            raise ArgumentError("models", "modules, one a member", kind_of(models))
        modules = list(models)
        require_alike(modules)
        params = _stack([dict(module.named_parameters()) for module in modules])
        buffers = _stack([dict(module.named_buffers()) for module in modules])
        return cls(params, buffers, modules[0])

    @classmethod
    def from_members(cls, population: CountedPopulation) -> StackedPopulation:
        """Return the members of any population; what all of them share is not copied.

        Args:
            population: such as a centre and noise. Its buffers are one set for all members.
        """
        members = [population.member(index)[0] for index in range(len(population))]
        buffers = {n: b.expand(len(members), *b.shape) for n, b in population.buffers.items()}
        return cls(_stack(members), buffers, population.template)

    def stack(self) -> StackedPopulation:
        """Return this population, whose members have parameters of their own."""
        return self

    @classmethod
    def from_vectors(
        cls,
        model: nn.Module,
        vectors: Tensor,
        buffers: Mapping[str, Tensor] | None = None,
        parameters: Patterns = "*",
    ) -> StackedPopulation:
        """Return the population whose members' parameters are the rows of a matrix.

        The parameters are views of the matrix, where its layout allows, with its dtype and
        device. A parameter that has two names (tied weights) is there once. Those that the
        matrix does not have are the model's own: they are expanded and not copied.

        Args:
            model: the architecture.
            vectors: ``[members, parameters]``, each row in the order of
                ``torch.nn.utils.parameters_to_vector(model.parameters())``.
            buffers: each ``[members, *shape]``; by default all members share the model's
                own, which are expanded and not copied.
            parameters: those that the matrix has: a pattern over their names or several, as
                `tinkering.strategies.groups` has them, such as ``"fc.*"``.

        Raises:
            ArgumentError: (a ``ValueError``) the matrix has another width, a pattern matches no
                parameter, or the buffers are not the model's.

        Example:
            >>> model = nn.Linear(2, 1)
            >>> population = StackedPopulation.from_vectors(model, torch.tensor([[1.0, 2.0, 3.0]]))
            >>> population.params["weight"], population.params["bias"]
            (tensor([[[1., 2.]]]), tensor([[3.]]))
            >>> heads = StackedPopulation.from_vectors(model, torch.zeros(5, 1), parameters="bias")
            >>> heads.params["weight"].shape, heads.to_vectors("bias").shape
            (torch.Size([5, 1, 2]), torch.Size([5, 1]))
        """
        require_tensor("vectors", vectors)
        own = {name: p.detach() for name, p in model.named_parameters()}
        chosen = matching("parameters", own, parameters)
        width = sum(own[name].numel() for name in chosen)
        if vectors.ndim != 2 or vectors.shape[1] != width:
            of = "the model has" if len(chosen) == len(own) else f"{', '.join(chosen)} have"
            needed = f"a matrix of shape [members, {width}], as {of} {width} parameters"
            raise ArgumentError("vectors", needed, list(vectors.shape))
        members = vectors.shape[0]
        if not members:
            raise ArgumentError("vectors", "at least one member, a row each", "none")
        if len(chosen) < len(own) and vectors.dtype != own[chosen[0]].dtype:
            needed = f"a matrix of {own[chosen[0]].dtype}, as the model's other parameters are"
            raise ArgumentError("vectors", needed, vectors.dtype)
        params, start = {name: p.expand(members, *p.shape) for name, p in own.items()}, 0
        for name in chosen:
            stop = start + own[name].numel()
            params[name] = vectors[:, start:stop].reshape(members, *own[name].shape)
            start = stop
        if buffers is None:
            shared = {name: b.detach() for name, b in model.named_buffers()}
            buffers = {name: b.expand(members, *b.shape) for name, b in shared.items()}
        return cls(params, buffers, model)

    def to_vectors(self, parameters: Patterns = "*") -> Tensor:
        """Return the parameters as ``[members, parameters]``, the inverse of `from_vectors`.

        Each row is ``torch.nn.utils.parameters_to_vector`` of that member. Buffers are left
        out. The matrix is a new one.

        Args:
            parameters: those that it shall have: a pattern over their names or several.

        Raises:
            ArgumentError: (a ``ValueError``) a pattern matches no parameter.

        Example:
            >>> vectors = torch.randn(6, 36)
            >>> population = StackedPopulation.from_vectors(nn.Linear(8, 4), vectors)
            >>> torch.equal(population.to_vectors(), vectors)
            True
        """
        chosen = matching("parameters", self.params, parameters)
        held = [self.params[name] for name in chosen]
        columns = [p.reshape(len(self), p[0].numel()) for p in held]
        return torch.cat(columns, dim=1) if columns else torch.zeros(len(self), 0)

    @overload
    def __getitem__(self, index: int) -> ParamsAndBuffers: ...
    @overload
    def __getitem__(self, index: slice) -> StackedPopulation: ...
    def __getitem__(self, index: int | slice) -> ParamsAndBuffers | StackedPopulation:
        """Return one member's ``(params, buffers)``, or the population of a contiguous slice."""
        part = super().__getitem__(index)
        if isinstance(index, slice) and isinstance(part, StackedPopulation):
            part.params = {name: p[index] for name, p in self.params.items()}
            part.buffers = {name: b[index] for name, b in self.buffers.items()}
        return part

    @property
    def like(self) -> ParamsAndBuffers:
        """The first member: views."""
        return self.member(0)

    @property
    def differing(self) -> frozenset[str]:
        """Names of the parameters and buffers that members have values of their own for."""
        held = (self.params | self.buffers).items()
        # What was expanded is one tensor for all.
        return frozenset(name for name, value in held if len(self) == 1 or value.stride(0))

    @property
    def likeness(self) -> Hashable:
        """Equal for populations that are evaluated in the same way, whatever their numbers."""
        return type(self), len(self), tuple(self.params), tuple(self.buffers), self.differing

    def with_buffers(self, buffers: Mapping[str, Tensor]) -> StackedPopulation:
        """Return the same members with other buffers, such as fresh BatchNorm statistics.

        Args:
            buffers: each ``[members, *shape]``. One set is handed to all members with
                ``{name: b.expand(members, *b.shape) for name, b in buffers.items()}``.

        Raises:
            ArgumentError: (a ``ValueError``) a buffer is not for as many members, or the
                buffers are not the model's.
        """
        population = copy.copy(self)
        population.buffers = detached("buffers", buffers)
        require_members("buffers", population.buffers, len(self), "as this population has")
        if self.buffers or self.template is not None:
            shapes = {name: b.shape[1:] for name, b in self.buffers.items()}
            population.buffers = in_order_of("buffers", population.buffers, shapes)
        return population

    def member(self, index: int) -> ParamsAndBuffers:
        """Return member `index` as ``(params, buffers)``, ready for `functional_forward_core`.

        They are views: in train mode, a BatchNorm layer writes its statistics to them.

        Raises:
            IndexError: there is no such member.
        """
        position = range(len(self))[index]  # an IndexError of Python's own, with its rules
        params = {name: p[position] for name, p in self.params.items()}
        return params, {name: b[position] for name, b in self.buffers.items()}


def _stack(members: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([own[name].detach() for own in members]) for name in members[0]}
