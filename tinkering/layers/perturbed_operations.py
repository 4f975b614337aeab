"""Other operations on parameters, for many members at once: a table of aten operations.

Each function is called with a tile and then as the operation would be, the centre's
parameters among the arguments. `reads` says which argument holds the images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from tinkering.graph.program import arguments
from tinkering.layers.low_rank import embedding_noise, of_members
from tinkering.layers.perturbed import Tile

_aten = torch.ops.aten
NameOf = Callable[[Any], str | None]
"""The evolving parameter behind an argument of a node, or None."""


@dataclass(frozen=True)
class MemberNode:
    """How an operation is done for a tile."""

    call: Callable[..., Any]
    reads: fx.Node
    """The argument that holds the images."""
    moves: bool = False
    """Whether images may be handed to it along the first axis, and moved back after."""


def embedding(node: fx.Node, name: NameOf) -> MemberNode:
    """Return the member-wise form of looking up vectors in a table."""
    given = arguments(node)
    table = name(given["weight"])

    def call(tile: Tile, weight: Tensor, indices: Tensor, *_: Any) -> Tensor:
        out = F.embedding(indices, weight)
        if table is None:
            return out
        noise, sigma = tile.noise[table], tile.sigma_of(table)
        return out + embedding_noise(noise, indices, tile.rows, tile.signs, sigma)

    return MemberNode(call, given["indices"])


def layer_norm(node: fx.Node, name: NameOf) -> MemberNode:
    """Return the member-wise form of a layer norm."""
    given = arguments(node)
    names = name(given["weight"]), name(given["bias"])

    def call(
        tile: Tile,
        x: Tensor,
        shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        *_: Any,
    ) -> Tensor:
        out = F.layer_norm(x, shape, None, None, eps)
        spread = (-1, *[1] * (x.dim() - 1 - len(shape)), *shape)
        return _scaled(tile, out, (weight, bias), names, spread)

    return MemberNode(call, given["input"], moves=True)


def group_norm(node: fx.Node, name: NameOf) -> MemberNode:
    """Return the member-wise form of a group norm."""
    given = arguments(node)
    names = name(given["weight"]), name(given["bias"])

    def call(
        tile: Tile,
        x: Tensor,
        groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        *_: Any,
    ) -> Tensor:
        out = F.group_norm(x, groups, None, None, eps)
        spread = (-1, x.shape[1], *[1] * (x.dim() - 2))
        return _scaled(tile, out, (weight, bias), names, spread)

    return MemberNode(call, given["input"])


def batch_statistics(node: fx.Node, name: NameOf) -> MemberNode:
    """Return a batch norm with the statistics of each member's own batch."""
    given = arguments(node)
    names = name(given["weight"]), name(given["bias"])
    eps = given["eps"]

    def call(tile: Tile, x: Tensor, weight: Tensor | None, bias: Tensor | None, *_: Any) -> Tensor:
        # [members * batch, channels, ...] -> [batch, members * channels, ...]
        shape = (-1, tile.batch, *x.shape[1:])
        members = x.view(shape).transpose(0, 1).flatten(1, 2)
        out = F.batch_norm(members, None, None, training=True, eps=eps)
        out = out.view(tile.batch, -1, *x.shape[1:]).transpose(0, 1).flatten(0, 1)
        spread = (-1, x.shape[1], *[1] * (x.dim() - 2))
        return _scaled(tile, out, (weight, bias), names, spread)

    return MemberNode(call, given["input"])


def arithmetic(node: fx.Node, name: NameOf) -> MemberNode | None:
    """Return the member-wise form of adding or multiplying a parameter; None if it has none."""
    operands = list(node.args[:2])
    names = [name(operand) for operand in operands]
    if (names[0] is None) == (names[1] is None):
        return None  # two parameters: the result belongs to no image
    (at,) = (i for i in (0, 1) if names[i] is not None)
    data = operands[1 - at]
    parameter = operands[at]
    if not (isinstance(data, fx.Node) and isinstance(parameter, fx.Node)):
        return None
    shape, axes = parameter.meta["val"].shape, data.meta["val"].dim()
    if len(shape) == axes and shape[0] == 1:
        shape = shape[1:]  # a parameter that was given an axis for the images
    if len(shape) >= axes:
        return None
    spread = (-1, *[1] * (axes - 1 - len(shape)), *shape)
    operation: Callable[..., Any] = node.target  # type: ignore[assignment]

    def call(tile: Tile, *given: Any, **options: Any) -> Any:
        own = _own_noise(tile, names[at] or "")
        values = list(given)
        values[at] = (values[at] + own.view(len(own), *values[at].shape)).view(spread)
        return operation(*values, **options)

    return MemberNode(call, data)


NODES: dict[Any, Callable[[fx.Node, NameOf], MemberNode | None]] = {
    _aten.add.Tensor: arithmetic,
    _aten.embedding.default: embedding,
    _aten.group_norm.default: group_norm,
    _aten.layer_norm.default: layer_norm,
    _aten.mul.Tensor: arithmetic,
}
"""Operations on evolving parameters that are known beside the layers."""


def _scaled(
    tile: Tile,
    out: Tensor,
    parameters: tuple[Tensor | None, Tensor | None],
    names: tuple[str | None, str | None],
    spread: tuple[int, ...],
) -> Tensor:
    """Return ``out * scale + shift`` with each member's own; `spread` is their shape."""
    own: list[Tensor | None] = []
    for parameter, name in zip(parameters, names, strict=True):
        if parameter is not None and name is not None:
            own.append((parameter + _own_noise(tile, name)).view(spread))
        else:
            own.append(None if parameter is None else parameter.view(1, *spread[1:]))
    scale, shift = own
    out = out if scale is None else out * scale
    return out if shift is None else out + shift


def _own_noise(tile: Tile, name: str) -> Tensor:
    """Return what a parameter's noise adds to it for each image, ``[images, *shape]``."""
    return of_members(tile.noise[name], tile.rows, tile.signs, tile.sigma_of(name))
