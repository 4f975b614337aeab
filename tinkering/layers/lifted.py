"""Any operation on members' own values, by ``torch.vmap`` over that operation alone.

What members have of their own is built for it, so it costs as much memory as the parameter times
the members of a tile. It is what parameters that are expanded, concatenated or indexed take, which
are small beside activations, and whatever has no better form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree

from tinkering.graph.batch_axis import Placement, count_of, place_images, place_sizes
from tinkering.layers.tile import MemberTile


@dataclass(frozen=True)
class Own:
    """An argument that is a parameter or buffer of the members' own."""

    name: str


@dataclass(frozen=True)
class Made:
    """An argument that was computed from such: it is ``[members, *shape]`` already."""


@dataclass(frozen=True)
class Images:
    """An argument that has examples."""

    placement: Placement


@dataclass(frozen=True)
class Count:
    """An argument that is a number, which depends on how many examples there are."""

    node: fx.Node


Kind = Own | Made | Images | Count | None
"""Of an argument; None: shared by the members."""


class Lifted:
    """An operation for many members at once.

    Args:
        node: the operation.
        kinds: of the nodes among its arguments.
        images: a placeholder that has an axis of examples.

    Raises:
        ValueError: it cannot be told where the examples are in its result.
    """

    def __init__(self, node: fx.Node, kinds: Mapping[fx.Node, Kind], images: fx.Node) -> None:
        self._target: Callable[..., Any] = node.target  # type: ignore[assignment]
        leaves = _pytree.tree_leaves((tuple(node.args), dict(node.kwargs)))
        self._kinds = [kinds.get(leaf) if isinstance(leaf, fx.Node) else None for leaf in leaves]
        self._images = images
        self._loops = not _has_rule(node.target)
        has_examples = any(isinstance(kind, Images | Count) for kind in self._kinds)
        self._back = _places(node, images) if has_examples else None

    def __call__(self, tile: MemberTile, *args: Any, **kwargs: Any) -> Any:
        """Return what the operation makes of the members' values.

        Returns:
            With examples among the arguments, the values of all images where the graph has
            them; else a value of each member, ``[members, *shape]``.
        """
        if self._back is not None:
            return self._computed(tile, args, kwargs)
        if self not in tile.made:
            tile.made[self] = self._computed(tile, args, kwargs)
        return tile.made[self]

    def _computed(self, tile: MemberTile, args: Any, kwargs: Any) -> Any:
        leaves, spec = _pytree.tree_flatten((args, kwargs))
        values, dims = list(leaves), [None] * len(leaves)
        for at, (leaf, kind) in enumerate(zip(leaves, self._kinds, strict=True)):
            if isinstance(kind, Count):
                values[at] = count_of(kind.node, self._images, tile.batch)
            elif kind is not None:
                values[at], dims[at] = _of_members(tile, leaf, kind), 0  # type: ignore[call-overload]
        results = self._mapped(tile.members, values, dims, spec)
        if self._back is None:
            return results
        if isinstance(results, Tensor):
            return self._back[0].folded(results)
        pairs = zip(self._back, results, strict=True)
        return tuple(place.folded(result) for place, result in pairs)

    def _mapped(
        self, members: int, values: Sequence[Any], dims: Sequence[int | None], spec: Any
    ) -> Any:
        own = [at for at, dim in enumerate(dims) if dim is not None]

        def called(*given: Tensor) -> Any:
            leaves = list(values)
            for at, value in zip(own, given, strict=True):
                leaves[at] = value
            args, kwargs = _pytree.tree_unflatten(leaves, spec)
            return self._target(*args, **kwargs)

        stacked = [values[at] for at in own]
        if not self._loops:
            with suppress(RuntimeError):  # a rule need not hold for all arguments
                return torch.vmap(called)(*stacked)
            self._loops = True
        alone = [called(*(value[at] for value in stacked)) for at in range(members)]
        if isinstance(alone[0], Tensor):
            return torch.stack(alone)
        return tuple(torch.stack(each) for each in zip(*alone, strict=True))


def _has_rule(target: Any) -> bool:
    """Return whether vmap has a rule for an operation: without, it loops, and warns of that."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return False
    name = f"{schema.name}.{schema.overload_name}".rstrip(".")
    keys = ("FuncTorchBatched", "FuncTorchBatchedDecomposition")
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in keys)


def _of_members(tile: MemberTile, value: Any, kind: Own | Made | Images) -> Tensor:
    """Return an argument with a first axis of members."""
    if isinstance(kind, Own):
        return tile.own(kind.name, value)
    if isinstance(kind, Images):
        return kind.placement.unfolded(value, tile.members)
    made: Tensor = value
    return made


def _places(node: fx.Node, images: fx.Node) -> list[Placement]:
    made = node.meta["val"]
    if isinstance(made, list | tuple):
        places = [place_sizes(value.shape, images) for value in made]
    else:
        places = [place_images(node, images)]
    known = [place for place in places if place is not None]
    if len(known) != len(places):
        raise ValueError("the examples cannot be told apart in its result")
    return known
