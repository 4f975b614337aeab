"""Where the images are in a value of a captured graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
_MERGES = (_aten.reshape.default, _aten.view.default, _aten.flatten.using_ints)


@dataclass(frozen=True)
class Placement:
    """Images along an axis, or inside one: it counts ``outer * images * inner``."""

    axis: int
    outer: int = 1
    inner: int = 1

    @property
    def is_first(self) -> bool:
        """Whether the first axis is that of the images."""
        return self.axis == 0 and self.outer == self.inner == 1

    def first(self, x: Tensor, images: int) -> Tensor:
        """Return `x` with the images along the first axis, and nothing else on it.

        Example:
            >>> x = torch.arange(12).view(6, 2)  # [3 tokens x 2 images, features]
            >>> Placement(0, outer=3).first(x, images=2).shape
            torch.Size([2, 3, 1, 2])
        """
        sizes = [*x.shape[: self.axis], self.outer, images, self.inner]
        split = x.reshape(*sizes, *x.shape[self.axis + 1 :])
        return split.movedim(self.axis + 1, 0)

    def back(self, x: Tensor) -> Tensor:
        """Return what `first` returned as it was."""
        return x.movedim(0, self.axis + 1).flatten(self.axis, self.axis + 2)

    def unfolded(self, x: Tensor, members: int) -> Tensor:
        """Return each member's part of the images of all, ``[members, ...]``.

        Example:
            >>> x = torch.arange(12).view(6, 2)  # [2 members x 3 images, features]
            >>> Placement(0).unfolded(x, members=2).shape
            torch.Size([2, 3, 2])
        """
        before, after = x.shape[: self.axis], x.shape[self.axis + 1 :]
        split = x.reshape(*before, self.outer, members, -1, *after)
        return split.movedim(self.axis + 1, 0).flatten(self.axis + 1, self.axis + 2)

    def folded(self, x: Tensor) -> Tensor:
        """Return what `unfolded` returned as it was."""
        before, after = x.shape[: self.axis + 1], x.shape[self.axis + 2 :]
        split = x.reshape(*before, self.outer, -1, *after)
        return split.movedim(0, self.axis + 1).flatten(self.axis, self.axis + 2)


def place_images(node: fx.Node, images: fx.Node) -> Placement | None:
    """Return where the images are in a node's value; None where it cannot be told.

    Args:
        node: any node of a graph that ``torch.export`` captured for any number of images.
        images: the placeholder of the images.
    """
    if "placement" not in node.meta:
        found = place_sizes(_shape(node), images)
        node.meta["placement"] = _followed(node, images) if found is None else found
    placement: Placement | None = node.meta["placement"]
    return placement


def _followed(node: fx.Node, images: fx.Node) -> Placement | None:
    """Return where the images are on an axis that counts more than images, from its sources.

    [7, images, 4] -> [7 * images, 4]: what stood before the images now lies outside them.
    """
    shape = _shape(node)
    merged = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
    if len(merged) != 1:
        return None
    axis, found = merged[0], set()
    if node.target is _aten.repeat.default:
        return _repeated(node, axis, images)
    for source in node.all_input_nodes:
        before = place_images(source, images) if _shape(source) else None
        if before is None:
            continue
        sizes = _shape(source)
        if node.target in _MERGES:
            left = _product(sizes[: before.axis]) * before.outer
            right = _product(sizes[before.axis + 1 :]) * before.inner
            outer, rest = divmod(left, _product(shape[:axis]))
            inner, more = divmod(right, _product(shape[axis + 1 :]))
            found.add(None if rest or more else Placement(axis, outer, inner))
        elif str(sizes[before.axis]) == str(shape[axis]):
            found.add(replace(before, axis=axis))
    return found.pop() if len(found) == 1 else None


def _repeated(node: fx.Node, axis: int, images: fx.Node) -> Placement | None:
    """Return where the images are in a copy, for each of them, of what has none."""
    source, counts = node.args[:2]
    sizes = _shape(source)  # type: ignore[arg-type]
    size = sizes[axis - len(_shape(node)) + len(sizes)] if sizes else 1
    count = counts[axis]  # type: ignore[index]
    known = isinstance(count, fx.Node) and str(count.meta["val"]) == _count(images)
    fits = axis >= len(_shape(node)) - len(sizes) and isinstance(size, int)
    return Placement(axis, inner=int(size)) if known and fits else None


def place_sizes(shape: Sequence[int | torch.SymInt], images: fx.Node) -> Placement | None:
    """Return where the images are in a value of some shape: the axis that counts them."""
    count, sizes = _count(images), [str(size) for size in shape]
    return Placement(sizes.index(count)) if sizes.count(count) == 1 else None


def count_of(node: fx.Node, images: fx.Node, count: int) -> int:
    """Return the value of a number that depends on how many examples there are.

    Args:
        node: the number.
        images: a placeholder that has an axis of examples.
        count: how many there are.
    """
    symbol = images.meta["val"].shape[0].node.expr
    return int(node.meta["val"].node.expr.subs(symbol, count))


def _count(images: fx.Node) -> str:
    """Return how many images there are: a symbol; equal text is an equal number."""
    return str(images.meta["val"].shape[0])


def _product(sizes: tuple[int | torch.SymInt, ...]) -> int:
    return math.prod(int(size) for size in sizes)


def _shape(node: fx.Node) -> tuple[int | torch.SymInt, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()
