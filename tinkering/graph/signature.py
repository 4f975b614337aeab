"""What a module is called with: where the tensors are, and which axes they begin with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils import _pytree

from tinkering.errors import ArgumentError
from tinkering.graph.tree import AS_TENSOR, Path, Tree, tree_of
from tinkering.required import kind_of

InDims = tuple[Any, Any]
"""Of the population and of the inputs, as in ``torch.vmap``: ``(0, None)``, ``(0, 0)``, or with a
tree of 0 and None for the inputs."""


@dataclass(frozen=True)
class Axes:
    """What the axes of a tensor begin with."""

    members: bool
    """Whether the first is that of the members, each of whom has values of its own."""
    examples: bool = True
    """Whether the first, or the one behind the members', is that of the examples."""


@dataclass(frozen=True)
class Signature:
    """The structure of a call, and what the axes of its tensors mean."""

    tree: Tree
    """Of ``(args, kwargs)``."""
    axes: tuple[Axes, ...]
    """Of each tensor."""
    is_plain: bool
    """Whether a call has tensors as positional arguments, and nothing else."""

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return ``(args, kwargs)`` with these tensors in their places."""
        args, kwargs = self.tree.filled(tensors)
        return args, kwargs

    def tensors(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[Tensor]:
        """Return the tensors of another call.

        Raises:
            ArgumentError: (a ``ValueError``) it has another structure; it names the leaf.
        """
        is_plain = self.is_plain and not kwargs and len(args) == len(self.axes)
        if is_plain and all(isinstance(value, Tensor) for value in args):
            return args
        return self.tree.tensors((args, dict(kwargs)))


def sign(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], root: str = "args", is_one: bool = False
) -> tuple[Signature, list[Tensor]]:
    """Return the signature of a call and its tensors; their axes are those of one shared batch.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        root: what the positional arguments are called in messages.
        is_one: whether that is the name of the only one, and not of the tuple.

    Raises:
        ArgumentError: (a ``ValueError``) there is no tensor.

    Example:
        >>> import torch
        >>> signature, tensors = sign((torch.zeros(5, 3),), {"scale": 2.0})
        >>> signature.tree.labels(), len(tensors)
        (['args[0]', "kwargs['scale']"], 1)
    """
    tree, tensors = tree_of((args, dict(kwargs)), partial(_label, root, is_one))
    if not tensors:
        came = kind_of(tree.leaves[0]) if tree.leaves else "none"
        raise ArgumentError(tree.labels()[0] if tree.leaves else root, "a tensor", came, AS_TENSOR)
    for at, leaf in enumerate(tree.leaves):
        if isinstance(leaf, np.ndarray):
            raise ArgumentError(tree.labels()[at], "a tensor", kind_of(leaf), AS_TENSOR)
    axes = (Axes(members=False),) * len(tensors)
    is_plain = all(isinstance(value, Tensor) for value in args) and not kwargs
    return Signature(tree, axes, is_plain), tensors


def _label(root: str, is_one: bool, path: Path) -> str:
    """Return ``args[0]['x']`` or ``kwargs['mask']``."""
    kind, *rest = path
    if kind.idx:
        return "kwargs" + _pytree.keystr(tuple(rest))
    return root + _pytree.keystr(tuple(rest[1:] if is_one else rest))


def with_members(
    signature: Signature, of_args: Any, of_kwargs: Any, argument: str = "in_dims"
) -> Signature:
    """Return a signature that knows which tensors have an axis of members.

    Args:
        signature: of a call.
        of_args: 0 or None for all of the positional arguments, or a tree of these for its parts.
        of_kwargs: likewise for keyword arguments.
        argument: what the first of these is called in messages.

    Raises:
        ArgumentError: (a ``ValueError``) it holds anything else, or is of another structure.
    """
    flags: list[bool] = []
    given = {argument: of_args, "kwargs_in_dims": of_kwargs}
    for at, (name, dims) in enumerate(given.items()):
        spec = signature.tree.spec.child(at)
        flat = _pytree._broadcast_to_and_flatten(
            tuple(dims) if isinstance(dims, list) and spec.type is tuple else dims, spec
        )
        if flat is None:
            needed = "0, None, or a tree of these that the inputs have as well"
            raise ArgumentError(name, needed, repr(dims))
        for value in flat:
            if value is not None and (type(value) is not int or value):
                advice = "Move the members' axis to the front: x.movedim(axis, 0)."
                raise ArgumentError(name, "0 or None for every tensor", repr(value), advice)
        flags += [value is not None for value in flat]
    axes = tuple(Axes(members=flags[at]) for at in signature.tree.places)
    return replace(signature, axes=axes)


@dataclass(frozen=True)
class Batch:
    """The tensors of a call, and how they belong to members and examples."""

    signature: Signature
    tensors: tuple[Tensor, ...]
    members: int
    examples: int
    """Of each member."""

    @property
    def is_shared(self) -> bool:
        """Whether all members see the same."""
        return not any(axes.members for axes in self.signature.axes)

    def of_member(self, index: int) -> list[Tensor]:
        """Return the tensors that one member sees."""
        pairs = zip(self.tensors, self.signature.axes, strict=True)
        return [value[index] if axes.members else value for value, axes in pairs]

    def for_members(self, count: int) -> list[Tensor]:
        """Return tensors of the same kind for so many members, who all see what the first does."""
        pairs = zip(self.tensors, self.signature.axes, strict=True)
        return [v[:1].expand(count, *v.shape[1:]) if axes.members else v for v, axes in pairs]

    def of_members(self, members: slice) -> Batch:
        """Return what some members see."""
        count = len(range(self.members)[members])
        if count == self.members:
            return self
        pairs = zip(self.tensors, self.signature.axes, strict=True)
        tensors = tuple(value[members] if axes.members else value for value, axes in pairs)
        return replace(self, tensors=tensors, members=count)

    def of_examples(self, size: int) -> Iterator[Batch]:
        """Yield some examples of every member at a time."""
        if size >= self.examples:
            yield self
            return
        for start in range(0, self.examples, size):
            yield self.narrowed(slice(start, min(start + size, self.examples)))

    def narrowed(self, examples: slice) -> Batch:
        """Return some examples of every member."""
        many = examples.stop - examples.start
        tensors = [
            value.narrow(int(axes.members), examples.start, many) if axes.examples else value
            for value, axes in zip(self.tensors, self.signature.axes, strict=True)
        ]
        return replace(self, tensors=tuple(tensors), examples=many)

    def folded(self) -> list[Tensor]:
        """Return the tensors of one batch of all members' examples, member by member.

        What has no axis of examples is shared, and handed on as it is.
        """
        values = []
        for value, axes in zip(self.tensors, self.signature.axes, strict=True):
            if axes.examples:
                own = value if axes.members else value.expand(self.members, *value.shape)
                value = own.flatten(0, 1)
            values.append(value)
        return values


def batch_of(signature: Signature, tensors: Sequence[Tensor], members: int) -> Batch:
    """Return the batch that some tensors are.

    Raises:
        ArgumentError: (a ``ValueError``) one is not for as many members, or has not as many
            examples as the others, or none; it names the leaf.
    """
    examples: int | None = None
    for at, (value, axes) in enumerate(zip(tensors, signature.axes, strict=True)):
        shape = value.shape
        if axes.members and (len(shape) < 1 + axes.examples or shape[0] != members):
            needed = f"[members, batch, ...] with {members} members"
            raise ArgumentError(signature.tree.names()[at], needed, list(shape))
        if axes.examples:
            if not shape:
                raise ArgumentError(signature.tree.names()[at], "[batch, ...]", [])
            came = shape[1] if axes.members else shape[0]
            if examples is None:
                examples = came
            elif came != examples:
                needed = f"{examples} examples, as the other inputs have"
                raise ArgumentError(signature.tree.names()[at], needed, f"{came}: {list(shape)}")
        if not value.numel() and (not at or examples == 0):
            raise ArgumentError(signature.tree.names()[at], "at least one example", list(shape))
    return Batch(signature, tuple(tensors), members, examples or 1)
