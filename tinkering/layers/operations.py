"""Other operations on members' own parameters, for many members at once: a table.

Each function is called with a tile and then as the operation would be, the shared parameters
among the arguments. What stands in no table is done by `lifted`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from tinkering.graph.batch_axis import Placement
from tinkering.graph.program import arguments
from tinkering.layers import recurrent
from tinkering.layers.tile import MemberTile
from tinkering.native import calls
from tinkering.native.after import layer_norm as layer_norm_of_members


@runtime_checkable
class Binder(Protocol):
    """What a form may ask about the graph that its operation stands in."""

    def name(self, argument: Any) -> str | None:
        """Return the name of the members' own parameter or buffer behind an argument, or None."""

    def placement(self, argument: fx.Node) -> Placement | None:
        """Return where the images are in a value; None where it cannot be told."""

    def linear(
        self, weight: fx.Node, bias: fx.Node | None, transposed: bool = False
    ) -> recurrent.Linear:
        """Return what computes a linear layer of members for ``[images, ..., features]``."""


@dataclass(frozen=True)
class MemberNode:
    """How an operation is done for a tile."""

    call: Callable[..., Any]
    reads: fx.Node
    """The argument that holds the images."""
    at: int = 0
    """Its position."""
    moves: bool = False
    """Whether images may be handed to it along the first axis, and moved back after."""
    anywhere: bool = False
    """Whether it takes the images where they are."""
    alone: bool = False
    """Whether it also does without images, and returns a value of each member."""


def embedding(node: fx.Node, binder: Binder) -> MemberNode | None:
    """Return the member-wise form of looking up vectors in a table."""
    given = arguments(node)
    table = binder.name(given["weight"])
    if table is None:
        return None

    def call(tile: MemberTile, weight: Tensor, indices: Tensor, *_: Any) -> Tensor:
        return tile.looked_up(table, weight, indices)

    def of_constants(tile: MemberTile, weight: Tensor, indices: Tensor, *_: Any) -> Tensor:
        each = indices.expand(tile.members, *indices.shape)
        return tile.alone().looked_up(table, weight, each)

    if binder.placement(given["indices"]) is None:  # such as positions: the same in all examples
        return MemberNode(of_constants, given["indices"], alone=True)
    return MemberNode(call, given["indices"], 1, moves=True)


def layer_norm(node: fx.Node, binder: Binder) -> MemberNode:
    """Return the member-wise form of a layer norm."""
    given = arguments(node)
    names = binder.name(given["weight"]), binder.name(given["bias"])

    def call(
        tile: MemberTile,
        x: Tensor,
        shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        *_: Any,
    ) -> Tensor:
        features = math.prod(shape)
        after = tile.once(node, lambda: tile.affine(weight, bias, names, features))
        # A feature is a channel, and lies last: [images, tokens, 1, features].
        lines = x.reshape(len(x), -1, 1, features)
        if calls.available(x):
            lines = layer_norm_of_members(
                after.native, lines.contiguous(), eps, tile.rows, tile.signs
            )
        else:
            lines = F.layer_norm(lines, (features,), None, None, eps).permute(0, 3, 1, 2)
            lines = after(lines, None, tile.rows, tile.signs).permute(0, 2, 3, 1)
        return lines.reshape(x.shape)

    return MemberNode(call, given["input"], moves=True)


def rms_norm(node: fx.Node, binder: Binder) -> MemberNode:
    """Return the member-wise form of a norm by the root mean square."""
    given = arguments(node)
    name = binder.name(given["weight"])

    def call(
        tile: MemberTile,
        x: Tensor,
        shape: Sequence[int],
        weight: Tensor | None = None,
        eps: float | None = None,
    ) -> Tensor:
        features = math.prod(shape)
        after = tile.once(node, lambda: tile.affine(weight, None, (name, None), features))
        out = F.rms_norm(x, shape, None, eps).reshape(len(x), -1, 1, features)
        scaled = after(out.permute(0, 3, 1, 2), None, tile.rows, tile.signs)
        return scaled.permute(0, 2, 3, 1).reshape(x.shape)

    return MemberNode(call, given["input"], moves=True)


def group_norm(node: fx.Node, binder: Binder) -> MemberNode:
    """Return the member-wise form of a group norm."""
    given = arguments(node)
    names = binder.name(given["weight"]), binder.name(given["bias"])

    def call(
        tile: MemberTile,
        x: Tensor,
        groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        *_: Any,
    ) -> Tensor:
        out = F.group_norm(x, groups, None, None, eps)
        after = tile.once(node, lambda: tile.affine(weight, bias, names, x.shape[1]))
        return after(out, None, tile.rows, tile.signs)

    return MemberNode(call, given["input"])


def batch_statistics(node: fx.Node, binder: Binder) -> MemberNode:
    """Return a batch norm with the statistics of each member's own batch."""
    given = arguments(node)
    names = binder.name(given["weight"]), binder.name(given["bias"])
    eps = given["eps"]

    def call(
        tile: MemberTile, x: Tensor, weight: Tensor | None, bias: Tensor | None, *_: Any
    ) -> Tensor:
        # [members * batch, channels, ...] -> [batch, members * channels, ...]
        shape = (-1, tile.batch, *x.shape[1:])
        members = x.view(shape).transpose(0, 1).flatten(1, 2)
        out = F.batch_norm(members, None, None, training=True, eps=eps)
        out = out.view(tile.batch, -1, *x.shape[1:]).transpose(0, 1).flatten(0, 1)
        after = tile.once(node, lambda: tile.affine(weight, bias, names, x.shape[1]))
        return after(out, None, tile.rows, tile.signs)

    return MemberNode(call, given["input"])


def arithmetic(node: fx.Node, binder: Binder) -> MemberNode | None:
    """Return the member-wise form of adding or multiplying a parameter; None if it has none."""
    operands = list(node.args[:2])
    names = [binder.name(operand) for operand in operands]
    if None not in names:
        return None  # both are parameters: there are no images to add to
    at = 0 if names[0] is not None else 1
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
    name = names[at] or ""

    def call(tile: MemberTile, *given: Any, **options: Any) -> Any:
        values = list(given)
        values[at] = tile.of_images(tile.own(name, values[at])).view(spread)
        return operation(*values, **options)

    return MemberNode(call, data)


def product(node: fx.Node, binder: Binder) -> MemberNode | None:
    """Return the member-wise form of ``x @ weight``, perhaps with a bias; None for others."""
    given = arguments(node)
    keys = ("mat1", "mat2") if node.target is _aten.addmm.default else ("self", "other")
    keys = ("self", "mat2") if node.target is _aten.mm.default else keys
    x, weight = (given[key] for key in keys)
    bias = given["self"] if node.target is _aten.addmm.default else None
    is_plain = given.get("beta", 1) == given.get("alpha", 1) == 1
    if binder.name(weight) is None or binder.name(x) or not is_plain:
        return None
    if weight.meta["val"].dim() != 2 or x.meta["val"].dim() < 2:
        return None
    if bias is not None and (bias.op != "placeholder" or bias.meta["val"].dim() != 1):
        return None
    linear = binder.linear(weight, bias, transposed=True)

    def call(tile: MemberTile, *operands: Tensor, **_: Any) -> Tensor:
        return linear(tile, operands[at])

    at = 0 if bias is None else 1
    return MemberNode(call, x, at, moves=True)


def attention(node: fx.Node, binder: Binder) -> MemberNode | None:
    """Return the member-wise form of attention with a mask of the members' own."""
    given = arguments(node)
    query, mask = given["query"], given["attn_mask"]
    place, axes = binder.placement(query), query.meta["val"].dim()
    if place is None or place.axis or place.outer > 1 or not isinstance(mask, fx.Node):
        return None
    name = binder.name(mask)
    shape = [1] * (axes - mask.meta["val"].dim()) + list(mask.meta["val"].shape)
    # Of a member: one for all parts of an image, such as windows, or one for each.
    if len(shape) != axes or shape[0] not in (1, place.inner):
        return None
    operation: Callable[..., Tensor] = node.target  # type: ignore[assignment]

    def call(
        tile: MemberTile,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor,
        *rest: Any,
        **more: Any,
    ) -> Tensor:
        own = attn_mask if name is None else tile.own(name, attn_mask)
        every = tile.of_images(own.reshape(tile.members, *shape))
        every = every.expand(-1, place.inner, *[-1] * (axes - 1)).flatten(0, 1)
        return operation(q, k, v, every, *rest, **more)

    return MemberNode(call, query, anywhere=True)


def cell(step: recurrent.Step, node: fx.Node, binder: Binder) -> MemberNode | None:
    """Return the member-wise form of a recurrent cell."""
    given = arguments(node)
    states = given["hx"] if isinstance(given["hx"], list | tuple) else [given["hx"]]
    places = [binder.placement(value) for value in (given["input"], *states)]
    if not all(place is not None and place.is_first for place in places):
        return None
    if not _are_held(given[key] for key in ("w_ih", "w_hh", "b_ih", "b_hh")):
        return None
    direction = recurrent.Direction(
        step,
        binder.linear(given["w_ih"], given["b_ih"]),
        binder.linear(given["w_hh"], given["b_hh"]),
        None,
    )
    is_pair = isinstance(given["hx"], list | tuple)

    def call(tile: MemberTile, x: Tensor, hx: Any, *_: Any) -> Any:
        before = tuple(hx) if is_pair else (hx,)
        after = direction.next(tile, direction.of_input(tile, x), before)
        return after if is_pair else after[0]

    return MemberNode(call, given["input"])


def _are_held(weights: Iterable[fx.Node | None]) -> bool:
    """Return whether weights are parameters or buffers, and not computed from such."""
    return all(weight is None or weight.op == "placeholder" for weight in weights)


def sequence(step: recurrent.Step, node: fx.Node, binder: Binder) -> MemberNode | None:
    """Return the member-wise form of a recurrent module."""
    given = arguments(node)
    states = given["hx"] if isinstance(given["hx"], list | tuple) else [given["hx"]]
    axes = [0 if given["batch_first"] else 1, *[1] * len(states)]
    places = [binder.placement(value) for value in (given["input"], *states)]
    weights = list(given["params"])
    if places != [Placement(axis) for axis in axes] or not _are_held(weights):
        return None
    both = 1 + given["bidirectional"]
    each = len(weights) // (given["num_layers"] * both)
    made = []
    for at in range(0, len(weights), each):
        w_ih, w_hh, *rest = weights[at : at + each]
        biases = [rest.pop(0), rest.pop(0)] if given["has_biases"] else [None, None]
        pairs = zip((w_ih, w_hh), biases, strict=True)
        of_input, of_state = (binder.linear(weight, bias) for weight, bias in pairs)
        of_output = binder.linear(rest[0], None) if rest else None
        made.append(recurrent.Direction(step, of_input, of_state, of_output))
    layers = [made[at : at + both] for at in range(0, len(made), both)]

    def call(tile: MemberTile, x: Tensor, hx: Any, *_: Any) -> tuple[Tensor, ...]:
        before = [hx] if isinstance(hx, Tensor) else list(hx)
        return recurrent.sequence(tile, layers, x, before, axes[0] == 0)

    return MemberNode(call, given["input"], anywhere=True)


_aten = torch.ops.aten
Form = Callable[[fx.Node, Binder], MemberNode | None]
MADE: dict[Any, Form] = {_aten.scaled_dot_product_attention.default: attention}
"""Operations on values that were computed from members' own parameters alone."""

NODES: dict[Any, Form] = {
    _aten.add.Tensor: arithmetic,
    _aten.addmm.default: product,
    _aten.embedding.default: embedding,
    _aten.group_norm.default: group_norm,
    _aten.gru.input: partial(sequence, recurrent.gru),
    _aten.gru_cell.default: partial(cell, recurrent.gru),
    _aten.layer_norm.default: layer_norm,
    _aten.lstm.input: partial(sequence, recurrent.lstm),
    _aten.lstm_cell.default: partial(cell, recurrent.lstm),
    _aten.matmul.default: product,
    _aten.mm.default: product,
    _aten.mul.Tensor: arithmetic,
    _aten.rms_norm.default: rms_norm,
    _aten.rnn_relu.input: partial(sequence, recurrent.rnn_relu),
    _aten.rnn_relu_cell.default: partial(cell, recurrent.rnn_relu),
    _aten.rnn_tanh.input: partial(sequence, recurrent.rnn_tanh),
    _aten.rnn_tanh_cell.default: partial(cell, recurrent.rnn_tanh),
    **MADE,
}
"""Operations on members' own parameters that are known beside the layers."""
