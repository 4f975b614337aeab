"""Trees of values, such as dicts and tuples, seen as the list of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree

from tinkering.errors import ArgumentError
from tinkering.required import kind_of

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Tree:
    """What a tree of values is like without the numbers in its tensors."""

    spec: _pytree.TreeSpec
    leaves: tuple[Any, ...]
    """The values that are no tensors, and None in the place of tensors."""
    places: tuple[int, ...]
    """Of the tensors among the leaves."""
    label: Callable[[Path], str]
    """What a leaf is called in messages, by the way to it."""

    def filled(self, tensors: Sequence[Any]) -> Any:
        """Return the tree with these tensors in their places."""
        leaves = list(self.leaves)
        for at, tensor in zip(self.places, tensors, strict=True):
            leaves[at] = tensor
        return _pytree.tree_unflatten(leaves, self.spec)

    def labels(self) -> list[str]:
        """Return what each leaf is called in messages."""
        filled = _pytree.tree_unflatten(list(range(len(self.leaves))), self.spec)
        return [self.label(path) for path, _ in _pytree.tree_flatten_with_path(filled)[0]]

    def names(self) -> list[str]:
        """Return what each tensor is called in messages."""
        labels = self.labels()
        return [labels[at] for at in self.places]

    def tensors(self, value: Any) -> list[Tensor]:
        """Return the tensors of another tree of the same structure.

        Raises:
            ArgumentError: (a ``ValueError``) it has another structure, or holds other values
                that are no tensors; it names the leaf.
        """
        try:  # in this tree's order, whatever the order of a dict's keys
            leaves = self.spec.flatten_up_to(value)
        except ValueError as error:
            raise self._difference(value) from error
        tensors = []
        for at, (came, known) in enumerate(zip(leaves, self.leaves, strict=True)):
            if at in self.places:
                if not isinstance(came, Tensor):
                    raise ArgumentError(self.labels()[at], "a tensor", kind_of(came), AS_TENSOR)
                tensors.append(came)
            elif not is_same(came, known):
                said = kind_of(came) if isinstance(came, Tensor) else repr(came)
                raise ArgumentError(self.labels()[at], f"{known!r}, as before", said, _FIXED)
        return tensors

    def _difference(self, value: Any) -> ArgumentError:
        """Return what to say of a tree of another structure."""
        mine = self.labels()
        came = [self.label(path) for path, _ in _pytree.tree_flatten_with_path(value)[0]]
        for label in mine:
            if label not in came:
                return ArgumentError(label, "a value, as before", "none")
        for label in came:
            if label not in mine:
                return ArgumentError(label, "no such value, as before", "one")
        return ArgumentError(mine[0], f"a value in {self.spec}, as before", "another structure")


def is_same(one: Any, other: Any) -> bool:
    """Return whether two values that are no tensors are the same."""
    if one is other:
        return True
    if type(one) is not type(other) or isinstance(one, Tensor):
        return False
    return bool(one == other) or (one != one and other != other)  # a NaN is no other


AS_TENSOR = "Call torch.as_tensor on it."
_FIXED = "What is no tensor is a part of what was bound: bind again for another."


def tree_of(value: Any, label: Callable[[Path], str]) -> tuple[Tree, list[Tensor]]:
    """Return a value's tree, and its tensors.

    Args:
        value: any; what ``torch.utils._pytree`` does not know is a leaf.
        label: what a leaf is called in messages, by the way to it.

    Example:
        >>> import torch
        >>> tree, tensors = tree_of({"x": torch.zeros(3), "scale": 2.0}, _pytree.keystr)
        >>> tree.labels(), tree.filled(["here"])
        (["['x']", "['scale']"], {'x': 'here', 'scale': 2.0})
    """
    found, spec = _pytree.tree_flatten(value)
    places = tuple(at for at, leaf in enumerate(found) if isinstance(leaf, Tensor))
    leaves = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in found)
    return Tree(spec, leaves, places, label), [found[at] for at in places]
