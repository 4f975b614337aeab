"""Fused layers of many members: the centre's layer, plus what each image's member adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinkering.graph.activation import RECTIFIER
from tinkering.graph.batch_axis import Placement
from tinkering.graph.program import LINEAR, Fused, arguments
from tinkering.layers.after import Affine, After
from tinkering.layers.centre import ConvLayer, LinearLayer, Values, fold, fold_norm
from tinkering.layers.low_rank import (
    Correction,
    embedding_noise,
    grouped_correction,
    layer_noise,
    of_members,
)
from tinkering.layers.narrow import NarrowConv, is_narrow
from tinkering.layers.onednn import is_depthwise
from tinkering.layers.tile import MemberTile
from tinkering.native import calls
from tinkering.native.correction import LayerNoise, Shape
from tinkering.native.depthwise import Depthwise
from tinkering.noise import Factors
from tinkering.population import Sigma


@dataclass(frozen=True)
class Tile(MemberTile):
    """Members around a centre: what is their own is the centre's value and their noise."""

    noise: Mapping[str, Factors]
    """Of each evolving parameter, a row a pair."""
    rows: Tensor
    """``[images]``: the row of each image's pair."""
    signs: Tensor
    """``[images]``: the sign of each image's member."""
    sigma: Sigma
    """What the noise is multiplied by: one number, or one a parameter."""
    batch: int
    kept: dict[object, Any] = field(default_factory=dict)
    made: dict[object, Any] = field(default_factory=dict)

    def own(self, name: str, shared: Tensor) -> Tensor:
        """Return the members' own values of a parameter, ``[members, *shape]``."""
        each = self.alone()
        noise = of_members(self.noise[name], each.rows, each.signs, self.sigma_of(name))
        return shared + noise.view(self.members, *shared.shape)

    def like(self, rows: Tensor, signs: Tensor, batch: int) -> Tile:
        """Return a tile of the same members with other images."""
        return replace(self, rows=rows, signs=signs, batch=batch)

    def looked_up(self, name: str, table: Tensor, indices: Tensor) -> Tensor:
        """Return the vectors that members look up: the centre's, and their noise."""
        noise, sigma = self.noise[name], self.sigma_of(name)
        return F.embedding(indices, table) + embedding_noise(
            noise, indices, self.rows, self.signs, sigma
        )

    def affine(
        self,
        scale: Tensor | None,
        shift: Tensor | None,
        names: tuple[str | None, str | None],
        channels: int,
    ) -> After:
        """Return what multiplies and adds the centre's and each member's noise."""
        device = self.rows.device
        folded = Affine(
            torch.ones(channels, device=device) if scale is None else scale.flatten(),
            torch.zeros(channels, device=device) if shift is None else shift.flatten(),
        )
        *noise, sigma = self.vectors(*names)
        pairs = (None if each is None else each.reshape(len(each), -1) for each in noise)
        return After(None, folded, (next(pairs), next(pairs)), sigma)

    def vector(self, name: str | None) -> Tensor | None:
        """Return the noise of a vector, ``[pairs, length]``; None where there is none."""
        return None if name is None else self.noise[name].dense()

    def sigma_of(self, name: str | None) -> float:
        """Return what a parameter's noise is multiplied by; 0 where there is none."""
        if name is None:
            return 0.0
        return self.sigma[name] if isinstance(self.sigma, Mapping) else self.sigma

    def vectors(
        self, first: str | None, second: str | None
    ) -> tuple[Tensor | None, Tensor | None, float]:
        """Return the noise of two vectors, and what both have to be multiplied by.

        Layers take one number for the two, so two that differ are multiplied in here: into
        ``[pairs, length]``, which is nothing beside the images.
        """
        one, other = self.vector(first), self.vector(second)
        sigma, sigma_of_other = self.sigma_of(first), self.sigma_of(second)
        if one is None or other is None or sigma == sigma_of_other:
            return one, other, sigma_of_other if one is None else sigma
        return *self.once((first, second), lambda: (one * sigma, other * sigma_of_other)), 1.0


@dataclass(frozen=True)
class Names:
    """The evolving parameters of a fused step; None for one that does not evolve."""

    weight: str | None
    bias: str | None
    scale: str | None
    """The norm's weight."""
    shift: str | None
    """The norm's bias."""
    mean: str | None = None
    """The norm's statistics, which differ between members of a stack."""
    variance: str | None = None
    transposed: bool = False
    """Whether the weight's parameter is ``[in, out]``."""

    def any(self) -> bool:
        """Return whether any of them evolves."""
        return any(isinstance(name, str) for name in vars(self).values())


class MemberLayer:
    """A convolution or linear layer with its norm, residual and activation.

    Args:
        step: where it stands.
        names: its evolving parameters.
        values: the centre's weights and statistics.
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
        self._names, self._activation, self._placement = names, step.activation, placement
        self._shared_after = After(step.activation)
        # A scale of each member's own comes after the convolution, and with it all else.
        self._own = own_affine(step, values) if names.scale is not None else None
        self._adds_shift = names.shift is not None and self._own is None
        self._has_noise = bool(names.weight or names.bias or self._adds_shift)
        self._folded = fold(step, values, scaled=self._own is None)
        linear = step.layer.target is LINEAR
        # Of what members add on the way into a convolution, it knows the rectifier alone.
        self._ends = not linear and self._own is None and step.activation in (None, RECTIFIER)
        activation = step.activation if self._ends else None
        self._layer: ConvLayer | LinearLayer = (
            LinearLayer(self._folded, None, dtype)
            if linear
            else ConvLayer(step, self._folded, activation, dtype)
        )
        self._narrow: NarrowConv | None = None
        self._is_depthwise = False
        if isinstance(self._layer, ConvLayer):
            weight, geometry = self._layer.weight, self._layer.geometry
            self._is_depthwise = is_depthwise(weight, geometry)
            if is_narrow(weight, geometry, dtype):
                inside = step.activation if self._own is None else None
                self._narrow = NarrowConv(weight, self._folded.shift, inside)

    def __call__(self, overwrite: bool, tile: Tile, x: Tensor, residual: Tensor | None) -> Tensor:
        """Return the layer's result for a tile.

        Args:
            overwrite: whether the residual's memory may hold the result.
            tile: the members.
            x: the layer's input.
            residual: added before the activation.
        """
        if not self._placement.is_first:
            x = self._placement.first(x, len(tile.rows))
            if residual is not None:
                residual = self._placement.first(residual, len(tile.rows))
        layer = self._layer
        x = layer.enter(x)
        held = None if residual is None else layer.enter(residual)
        out = layer.leave(self._computed(tile, x, held, overwrite))
        return out if self._placement.is_first else self._placement.back(out)

    def _computed(self, tile: Tile, x: Tensor, residual: Tensor | None, overwrite: bool) -> Tensor:
        """Return the layer's result, perhaps in the residual's memory."""
        layer = self._layer
        if isinstance(layer, LinearLayer):
            return self._of_rows(layer, tile, x, residual)
        if x.dim() == 5:
            return self._of_volumes(layer, tile, x, residual)
        if self._is_depthwise and calls.available(x):
            make = partial(self._depthwise, tile, layer.shape(x))
            convolve = tile.once(self, make)
            return convolve(self._after(tile).native, x, residual, tile.rows, tile.signs)
        add = tile.once(self, lambda: self._correction(tile, layer.shape(x)))
        if self._narrow is not None:
            held = residual if self._own is None else None
            out = self._narrow(x, held, add, tile.rows, tile.signs, overwrite)
            if self._own is None:
                return out
            return self._after(tile)(out, residual, tile.rows, tile.signs)
        if not self._ends:
            out = layer.compute(x, None).contiguous(memory_format=torch.channels_last)
            after = self._after(tile)
            return add.finished(x, out, residual, after, tile.rows, tile.signs)
        if self._has_noise:
            residual = add(x, residual, tile.rows, tile.signs, overwrite)
        elif residual is not None and not overwrite:
            residual = residual.clone()
        return layer.compute(x, residual)

    def _of_rows(
        self, layer: LinearLayer, tile: Tile, x: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Return what a linear layer and its members make of rows of features."""
        out, after = layer.product(x), self._after(tile)
        add = tile.kept.get((self, x.shape[1:]))
        if add is None:
            # Rows of features are an image of one line, whose channels lie side by side.
            line = (1, x.shape[1:-1].numel())
            shape = Shape(x.shape[-1], layer.outputs, 1, line, line)
            add = tile.once((self, x.shape[1:]), lambda: self._correction(tile, shape))
        if calls.available(x):
            return add.finished(x, out, residual, after, tile.rows, tile.signs)
        held = None if residual is None else _as_line(residual)
        lines = add.finished(_as_line(x), _as_line(out), held, after, tile.rows, tile.signs)
        return lines.permute(0, 2, 3, 1).reshape(out.shape)

    def _of_volumes(
        self, layer: ConvLayer, tile: Tile, x: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Return what a convolution in three dimensions and its members make of images."""
        other = self._dense(layer, tile, x)
        if self._ends:
            return layer.compute(x, other if residual is None else other.add_(residual))
        out, after = layer.compute(x, other), self._after(tile)
        return after.plain(out, residual, tile.rows, tile.signs)

    def _after(self, tile: Tile) -> After:
        """Return what stands behind the layer and what members add to it."""
        if self._own is None:
            return self._shared_after
        return tile.once((self, After), partial(self._members_after, tile))

    def _members_after(self, tile: Tile) -> After:
        scale, shift, sigma = tile.vectors(self._names.scale, self._names.shift)
        return After(self._activation, self._own, (scale, shift), sigma)

    def _depthwise(self, tile: Tile, shape: Shape) -> Depthwise:
        """Return the convolution whose every channel has weights of the member's own."""
        dense = self._weight_noise(tile)
        noise = None if dense is None else dense.dense().flatten(2).flatten(1)
        pairs = None if noise is None else noise.view(len(noise), shape.groups, -1).mT.contiguous()
        shift, shift_scale = self._shift_noise(tile)
        scale = self._folded.scale
        weight = (self._folded.weight.flatten(1).T * scale).contiguous()
        amount = scale * tile.sigma_of(self._names.weight)
        noises = LayerNoise(pairs, None, None, amount, shift, shift_scale)
        return Depthwise(shape, noises, weight, self._folded.shift.contiguous())

    def _correction(self, tile: Tile, shape: Shape) -> Correction:
        shift, shift_scale = self._shift_noise(tile)
        scale = self._folded.scale * tile.sigma_of(self._names.weight)
        return Correction(shape, layer_noise(self._weight_noise(tile), scale, shift, shift_scale))

    def _weight_noise(self, tile: Tile) -> Factors | None:
        if self._names.weight is None:
            return None
        noise = tile.noise[self._names.weight]
        return noise.transposed() if self._names.transposed else noise

    def _dense(self, layer: ConvLayer, tile: Tile, x: Tensor) -> Tensor:
        """Return what members add, each with noise as large as the weights are."""
        weight = self._weight_noise(tile)
        shift, shift_scale = self._shift_noise(tile)
        spread = [1] * (x.dim() - 2)
        shape = (len(x), layer.outputs, *layer.result(x))
        other = torch.zeros(shape, dtype=x.dtype, device=x.device)
        if weight is not None:
            sigma = tile.sigma_of(self._names.weight)
            dense = of_members(weight, tile.rows, tile.signs, sigma)
            dense = dense * self._folded.scale.view(1, -1, 1, *spread)
            other += grouped_correction(x, dense.to(x.dtype), layer.geometry)
        if shift is not None:
            vector = shift[tile.rows] * shift_scale * tile.signs.unsqueeze(1)
            other += vector.view(*vector.shape, *spread).to(x.dtype)
        return other

    def _shift_noise(self, tile: Tile) -> tuple[Tensor | None, Tensor]:
        """Return the noise of what is added to the outputs, and what it is multiplied by."""
        name = self._names.shift if self._adds_shift else None
        bias, shift, amount = tile.vectors(self._names.bias, name)
        sigma = torch.full_like(self._folded.scale, amount)
        if bias is None:
            return shift, sigma
        if shift is None:
            return bias, self._folded.scale * amount
        return bias * self._folded.scale + shift, sigma


def _as_line(rows: Tensor) -> Tensor:
    """Return rows of features ``[images, ..., features]`` as images of one line."""
    return rows.reshape(len(rows), 1, -1, rows.shape[-1]).permute(0, 3, 1, 2)


class MemberNorm:
    """A batch norm that stands alone, with every member's scale and shift.

    The arguments are those of `MemberLayer`.
    """

    def __init__(self, step: Fused, names: Names, values: Values, dtype: torch.dtype) -> None:
        self._names, self._activation, self._dtype = names, step.activation, dtype
        unscaled, own = fold_norm(step.layer, values, scaled=False), own_affine(step, values)
        # scale_i (x inverse + offset) + shift_i, as one multiplication and one addition
        self._inverse, self._offset = unscaled.scale, unscaled.shift
        self._folded = Affine(own.scale * self._inverse, own.shift + own.scale * self._offset)

    def __call__(self, overwrite: bool, tile: Tile, x: Tensor, residual: Tensor | None) -> Tensor:
        """Return the norm's result for a tile, as `MemberLayer` does."""
        del overwrite
        scale, shift, sigma = tile.vectors(self._names.scale, self._names.shift)
        if scale is not None:
            moved = scale * self._offset
            scale, shift = scale * self._inverse, moved if shift is None else shift + moved
        after = After(self._activation, self._folded, (scale, shift), sigma)
        return after(x.to(self._dtype), residual, tile.rows, tile.signs)


def own_affine(step: Fused, values: Values) -> Affine:
    """Return the scale and shift that are a norm's own parameters, without its statistics."""
    norm = step.layer if step.norm is None else step.norm
    given: dict[str, Any] = arguments(norm)
    mean = values[given["running_mean"].name]
    weight, bias = (given[key] for key in ("weight", "bias"))
    return Affine(
        torch.ones_like(mean) if weight is None else values[weight.name],
        torch.zeros_like(mean) if bias is None else values[bias.name],
    )
