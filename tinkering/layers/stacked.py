"""Fused layers of members that have weights of their own: all of them in one product."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinkering.graph.activation import Activation
from tinkering.graph.batch_axis import Placement
from tinkering.graph.program import LINEAR, Fused, arguments
from tinkering.graph.runner import in_plain_layout
from tinkering.layers.after import Affine, After, finished
from tinkering.layers.centre import Values
from tinkering.layers.perturbed import Names
from tinkering.layers.tile import MemberTile
from tinkering.native import calls
from tinkering.native import correction as native


@dataclass(frozen=True)
class StackedTile(MemberTile):
    """Members of a stack."""

    values: Mapping[str, Tensor]
    """Parameters and buffers that are their own, ``[members, *shape]``."""
    rows: Tensor
    """``[images]``: the place of each image's member."""
    batch: int
    kept: dict[object, Any]
    signs: Tensor
    """``[images]``: ones."""
    made: dict[object, Any] = field(default_factory=dict)

    def own(self, name: str, shared: Tensor) -> Tensor:
        """Return the members' own values of a parameter or buffer, ``[members, *shape]``."""
        del shared
        return self.values[name]

    def held(self) -> list[Tensor]:
        """Return tensors that are the members' own, and kept."""
        return [*super().held(), *self.values.values()]

    def like(self, rows: Tensor, signs: Tensor, batch: int) -> StackedTile:
        """Return a tile of the same members with other images."""
        return replace(self, rows=rows, signs=signs, batch=batch)

    def looked_up(self, name: str, table: Tensor, indices: Tensor) -> Tensor:
        """Return the vectors that members look up in their tables."""
        del table
        return self.values[name][self.rows.view(-1, *[1] * (indices.dim() - 1)), indices]

    def affine(
        self,
        scale: Tensor | None,
        shift: Tensor | None,
        names: tuple[str | None, str | None],
        channels: int,
    ) -> After:
        """Return what multiplies and adds each member's own."""
        pairs = zip((scale, shift), names, (1.0, 0.0), strict=True)
        own = [_every(self, value, name, channels, blank) for value, name, blank in pairs]
        return after_of(own[0], own[1], None)


def after_of(scale: Tensor, shift: Tensor, activation: Activation | None) -> After:
    """Return what multiplies and adds a row of each member, ``[members, channels]``."""
    nothing = torch.zeros_like(scale[0])
    return After(activation, Affine(nothing, nothing), (scale, shift), 1.0)


def _every(
    tile: MemberTile, value: Tensor | None, name: str | None, length: int, blank: float
) -> Tensor:
    """Return a vector of every member, ``[members, length]``, whether it is their own or not."""
    if value is None:
        return torch.full((tile.members, length), blank, device=tile.rows.device)
    own = value.expand(tile.members, *value.shape) if name is None else tile.own(name, value)
    return own.reshape(tile.members, -1).contiguous()


class _Norm:
    """The scale and shift of a batch norm in eval mode, for every member."""

    def __init__(self, step: Fused, names: Names, values: Values) -> None:
        norm = step.layer if step.norm is None else step.norm
        given = arguments(norm)
        keys = ("weight", "bias", "running_mean", "running_var")
        own = (names.scale, names.shift, names.mean, names.variance)
        held = (None if given[key] is None else values[given[key].name] for key in keys)
        self._given = list(zip(held, own, (1.0, 0.0, 0.0, 1.0), strict=True))
        self._eps = given["eps"]

    def __call__(self, tile: MemberTile) -> tuple[Tensor, Tensor]:
        """Return what members multiply by and add, ``[members, channels]`` each."""
        mean = self._given[2][0]
        length = 0 if mean is None else len(mean)
        scale, shift, mean, variance = (
            _every(tile, value, name, length, blank) for value, name, blank in self._given
        )
        scale = scale * torch.rsqrt(variance + self._eps)
        return scale, shift - mean * scale


class StackedNorm:
    """A batch norm that stands alone, with every member's scale and shift.

    The arguments are those of `StackedLayer`.
    """

    def __init__(self, step: Fused, names: Names, values: Values, dtype: torch.dtype) -> None:
        self._norm, self._dtype = _Norm(step, names, values), dtype
        self._activation = step.activation

    def __call__(
        self, overwrite: bool, tile: MemberTile, x: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Return the norm's result for a tile."""
        del overwrite
        after = tile.once(self, lambda: after_of(*self._norm(tile), self._activation))
        return after(x.to(self._dtype), residual, tile.rows, tile.signs)


class StackedLayer:
    """A convolution or linear layer with its norm, residual and activation.

    Args:
        step: where it stands.
        names: its parameters and buffers that are the members' own.
        values: those that they share.
        dtype: of the computation.
        placement: where the images are in its input.
    """

    def __init__(
        self,
        step: Fused,
        names: Names,
        values: Values,
        dtype: torch.dtype,
        placement: Placement,
    ) -> None:
        self._weight = values[step.given["weight"].name]
        bias = step.given["bias"]
        self._bias = None if bias is None else values[bias.name]
        self._names, self._dtype, self._placement = names, dtype, placement
        self._norm = None if step.norm is None else _Norm(step, names, values)
        self._make: Callable[[Tensor, Tensor], _Products] = partial(
            _Linear if step.layer.target is LINEAR else _Convolution, step
        )

    def __call__(
        self, overwrite: bool, tile: MemberTile, x: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Return the layer's result for a tile.

        Args:
            overwrite: whether the residual's memory may hold the result.
            tile: the members.
            x: the layer's input.
            residual: added before the activation.
        """
        del overwrite  # the product is a tensor of its own
        images = len(tile.rows)
        if not self._placement.is_first:
            x = self._placement.first(x, images)
            residual = None if residual is None else self._placement.first(residual, images)
        products = tile.kept.get(self)
        if products is None:
            products = tile.once(self, lambda: self._make(*self._folded(tile)))
        out = products(x.to(self._dtype), residual, tile)
        return out if self._placement.is_first else self._placement.back(out)

    def _folded(self, tile: MemberTile) -> tuple[Tensor, Tensor]:
        """Return the members' weights ``[members, *shape]`` and shifts ``[members, out]``."""
        names, weight = self._names, self._weight
        own = tile.own(names.weight, weight) if names.weight else weight.unsqueeze(0)
        own = own.mT if names.weight and names.transposed else own
        shift = _every(tile, self._bias, names.bias, len(weight), 0.0)
        if self._norm is not None:
            scale, offset = self._norm(tile)
            shift = torch.addcmul(offset, shift, scale)
            own = own * scale.view(*scale.shape, *[1] * (weight.dim() - 1))
        own = own.expand(tile.members, *weight.shape)
        return own.to(self._dtype), shift.to(self._dtype)


_Products = Callable[[Tensor, Tensor | None, MemberTile], Tensor]
"""What members' layers make of ``[images, ...]`` and a residual, with the activation."""

_FEW_ROWS = 2
"""Rows a member, for which a batched product is no more than a walk over its weights."""


class _Linear:
    """Members' linear layers.

    Args:
        step: where they stand.
        weight: ``[members, out, in]``.
        shift: ``[members, out]``.
    """

    def __init__(self, step: Fused, weight: Tensor, shift: Tensor) -> None:
        self._weight, self._shift = weight.mT, shift.unsqueeze(1)
        self._after = After(step.activation)

    def __call__(self, x: Tensor, residual: Tensor | None, tile: MemberTile) -> Tensor:
        """Return ``[images, ..., out]``."""
        if x.dim() == 2 and tile.batch <= _FEW_ROWS and calls.available(x):
            x = x.contiguous()
            out = torch.empty(len(x), self._weight.shape[2], dtype=x.dtype)
            if residual is not None:
                residual = residual.to(x.dtype).contiguous()
            # A centre of nothing, and the weights as what members add to it.
            after = self._after.native
            self._rows.write(x, residual, out, tile.rows, tile.signs, after=after)
            return out
        rows = x.reshape(tile.members, -1, x.shape[-1])
        out = torch.baddbmm(self._shift, rows, self._weight).view(*x.shape[:-1], -1)
        return finished(out, residual, self._after.activation)

    @cached_property
    def _rows(self) -> native.Correction:
        members, inputs, outputs = self._weight.shape
        left = self._weight.float().contiguous().view(members, inputs, 1, outputs)
        ones = torch.ones(outputs)
        shift = self._shift.squeeze(1).float().contiguous()
        noise = native.LayerNoise(left, None, None, ones, shift, ones)
        return native.Correction(native.Shape(inputs, outputs, 1, (1, 1), (1, 1)), noise)


_FEW = 1 << 21
"""Multiplications of a member's convolution: below that, the call of one of its own costs more
than groups that are computed badly."""


class _Convolution:
    """Members' convolutions: groups of one, or one after the other.

    oneDNN has no fast form for groups with many examples: a member's own call is faster where it
    has enough to do.
    """

    def __init__(self, step: Fused, weight: Tensor, shift: Tensor) -> None:
        self._weight, self._shift, self._activation = weight, shift, step.activation
        given = step.given
        self._walk = tuple(list(given[key]) for key in ("stride", "padding", "dilation"))
        self._groups: int = given["groups"]
        axes = len(self._walk[0])
        self._convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
        size = [each for each in step.layer.meta["val"].shape if isinstance(each, int)]
        self._pixels = torch.Size(size[1:]).numel()

    def __call__(self, x: Tensor, residual: Tensor | None, tile: MemberTile) -> Tensor:
        """Return ``[images, out, ...]``."""
        return finished(self._product(x, tile), residual, self._activation)

    def _product(self, x: Tensor, tile: MemberTile) -> Tensor:
        members, examples, weight = tile.members, tile.batch, self._weight
        if examples > 1 and examples * self._pixels * weight[0].numel() >= _FEW:
            apart = x.reshape(members, examples, *x.shape[1:])
            pairs = zip(apart, weight, self._shift, strict=True)
            alone = [self._convolve(one, *own, *self._walk, self._groups) for one, *own in pairs]
            return torch.cat(alone)
        # [members * examples, channels, ...] -> [examples, members * channels, ...]
        apart = in_plain_layout(x).view(members, examples, *x.shape[1:])
        beside = apart.transpose(0, 1).flatten(1, 2)
        groups, bias = members * self._groups, self._shift.flatten()
        out = self._convolve(beside, weight.flatten(0, 1), bias, *self._walk, groups)
        apart = out.view(examples, members, -1, *out.shape[2:])
        return apart.transpose(0, 1).flatten(0, 1)
