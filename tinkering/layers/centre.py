"""A fused layer with one set of weights: folded, cast and packed, then called on images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from tinkering.graph.activation import Activation
from tinkering.graph.program import LINEAR, NORM, Fused, arguments
from tinkering.layers.after import Affine, After, finished
from tinkering.layers.onednn import FusedConv, Geometry
from tinkering.native import folding
from tinkering.native.correction import Shape

Values = Mapping[str, Tensor]
"""The tensor behind each placeholder of a captured graph."""


@dataclass(frozen=True)
class Folded(Affine):
    """A layer with the norm behind it as one weight and one shift, in float32.

    The weight is the layer's own still: `scaled_weight` multiplies it by `scale`.
    """

    weight: Tensor
    """As the layer's, multiplied by `scale`, which is what the norm multiplies by."""


def fold(step: Fused, values: Values, scaled: bool = True) -> Folded:
    """Return a convolution or linear layer and its norm as one.

    Args:
        step: the layer.
        values: its weights and statistics.
        scaled: False leaves out the norm's own scale and shift, for a caller who adds them.
    """
    weight = values[step.given["weight"].name]
    bias = _value(step.given["bias"], values)
    ones = weight.new_ones(len(weight))
    if step.norm is None:
        return Folded(ones, torch.zeros_like(ones) if bias is None else bias, weight)
    norm = fold_norm(step.norm, values, scaled)
    shift = norm.shift if bias is None else norm.shift + bias * norm.scale
    return Folded(norm.scale, shift, weight)


def scaled_weight(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight times its outputs' scale, in the layout and dtype it is computed with.

    For images that is channels-last, which packing reads several times faster; but not with
    one channel, where convolutions are slow with it, and at times wrong.

    Args:
        weight: ``[out, in, ...]``.
        scale: ``[out]``.
        dtype: of the result.
    """
    many = weight.dim() == 4 and weight.shape[1] > 1
    if many and weight.is_contiguous() and folding.available(weight, dtype):
        return folding.folded(weight, scale, dtype)
    return (weight * scale.view(-1, *[1] * (weight.dim() - 1))).to(dtype)


def fold_norm(norm: fx.Node, values: Values, scaled: bool = True) -> Affine:
    """Return what a batch norm in eval mode multiplies by and adds; `scaled` is as in `fold`."""
    given = arguments(norm)
    mean, variance = (values[given[key].name] for key in ("running_mean", "running_var"))
    scale = torch.rsqrt(variance + given["eps"])
    shift = torch.zeros_like(scale)
    if scaled:
        own_scale, own_shift = (_value(given[key], values) for key in ("weight", "bias"))
        scale = scale if own_scale is None else scale * own_scale
        shift = shift if own_shift is None else own_shift
    return Affine(scale, shift - mean * scale)


class ConvLayer:
    """A convolution in one, two or three dimensions.

    Args:
        step: where it stands.
        folded: its weights.
        activation: of the result.
        dtype: of the computation.
    """

    def __init__(
        self, step: Fused, folded: Folded, activation: Activation | None, dtype: torch.dtype
    ) -> None:
        given = step.given
        stride, padding, dilation = (tuple(given[key]) for key in ("stride", "padding", "dilation"))
        geometry = Geometry(stride, padding, dilation, given["groups"])
        weight = folded.weight
        self._flat = weight.dim() == 3
        if self._flat:  # along a line: an image of one row, over which no step is taken
            weight = weight.unsqueeze(2)
            geometry = Geometry(
                (*geometry.stride, *geometry.stride),
                (0, *geometry.padding),
                (1, *geometry.dilation),
                geometry.groups,
            )
        self.geometry = geometry
        self.kernel = tuple(weight.shape[2:])
        self.outputs = len(weight)
        self._dtype = dtype
        self._activation = activation
        self.weight = scaled_weight(weight, folded.scale, dtype)
        """``[out, in / groups, *kernel]``, in the dtype of the computation."""
        self._shift = folded.shift.to(dtype)
        self._conv = FusedConv(self.weight, self._shift, geometry, activation)

    def result(self, x: Tensor) -> tuple[int, ...]:
        """Return height and width of the result for what `enter` returned."""
        walk = self.geometry
        return tuple(
            (size + 2 * pad - spread * (taps - 1) - 1) // stride + 1
            for size, taps, stride, pad, spread in zip(
                x.shape[2:], self.kernel, walk.stride, walk.padding, walk.dilation, strict=True
            )
        )

    def shape(self, x: Tensor) -> Shape:
        """Return what a convolution over images does to what `enter` returned."""
        walk = self.geometry
        pairs = (tuple(x.shape[2:]), self.result(x), self.kernel)
        walked = (walk.stride, walk.padding, walk.dilation)
        channels, outputs = x.shape[1] // walk.groups, self.outputs // walk.groups
        return Shape(channels, outputs, walk.groups, *map(_two, (*pairs, *walked)))

    def enter(self, x: Tensor) -> Tensor:
        """Return the input as the layer computes on it."""
        x = x.unsqueeze(2) if self._flat else x
        if x.dim() == 5:
            return x.to(self._dtype)
        # `contiguous`, since a part of a tensor's channels passes for channels-last otherwise.
        return x.to(self._dtype).contiguous(memory_format=torch.channels_last)

    def leave(self, out: Tensor) -> Tensor:
        """Return the result with the axes that the layer's has."""
        return out.squeeze(2) if self._flat else out

    def compute(self, x: Tensor, other: Tensor | None) -> Tensor:
        """Return the result for what `enter` returned; `other` is added, and overwritten."""
        if x.dim() == 4:
            return self._conv(x, other)
        walk = self.geometry
        out = F.conv3d(
            x, self.weight, self._shift, walk.stride, walk.padding, walk.dilation, walk.groups
        )
        return finished(out, other, self._activation)

    def __call__(self, x: Tensor, residual: Tensor | None, overwrite: bool) -> Tensor:
        """Return ``act(conv(x) + residual)``.

        Args:
            x: ``[images, in, ...]``.
            residual: added before the activation.
            overwrite: whether the residual's memory may hold the result.
        """
        other = None
        if residual is not None:
            other = self.enter(residual)
            if not overwrite and other.data_ptr() == residual.data_ptr():
                other = other.clone()
        return self.leave(self.compute(self.enter(x), other))


class LinearLayer:
    """A linear layer: the arguments are those of `ConvLayer`."""

    def __init__(self, folded: Folded, activation: Activation | None, dtype: torch.dtype) -> None:
        self.outputs = len(folded.weight)
        self._dtype = dtype
        self._activation = activation
        self._weight = scaled_weight(folded.weight, folded.scale, dtype)
        self._shift = folded.shift.to(dtype)

    def enter(self, x: Tensor) -> Tensor:
        """Return the input as the layer computes on it."""
        return x.to(self._dtype).contiguous()

    def leave(self, out: Tensor) -> Tensor:
        """Return the result as it is."""
        return out

    def product(self, x: Tensor) -> Tensor:
        """Return ``x @ weight.T + shift`` for what `enter` returned."""
        return F.linear(x, self._weight, self._shift)

    def finished(self, product: Tensor, residual: Tensor | None) -> Tensor:
        """Return ``act(product + residual)``, in the product's memory."""
        return finished(product, residual, self._activation)

    def __call__(self, x: Tensor, residual: Tensor | None, overwrite: bool) -> Tensor:
        """Return ``act(x @ weight.T + shift + residual)``, as `ConvLayer` does."""
        del overwrite  # the product is a tensor of its own
        return self.finished(self.product(self.enter(x)), residual)


class NormLayer:
    """A batch norm that stands alone: a scale and a shift for every channel.

    Args:
        folded: its scale and shift.
        activation: of the result.
        dtype: of the computation.
    """

    def __init__(self, folded: Affine, activation: Activation | None, dtype: torch.dtype) -> None:
        self._after = After(activation, folded)
        self._dtype = dtype

    def __call__(self, x: Tensor, residual: Tensor | None, overwrite: bool) -> Tensor:
        """Return ``act(x * scale + shift + residual)``."""
        del overwrite
        first = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return self._after(x.to(self._dtype), residual, first, first.float())


Layer = ConvLayer | LinearLayer | NormLayer


def layer(step: Fused, values: Values, dtype: torch.dtype) -> Layer:
    """Return a fused step, ready to be called with images.

    Args:
        step: where the layer stands.
        values: its weights and statistics.
        dtype: of the computation.
    """
    if step.layer.target is NORM:
        return NormLayer(fold_norm(step.layer, values), step.activation, dtype)
    folded = fold(step, values)
    if step.layer.target is LINEAR:
        return LinearLayer(folded, step.activation, dtype)
    return ConvLayer(step, folded, step.activation, dtype)


def _value(node: fx.Node | Any, values: Values) -> Tensor | None:
    return None if node is None else values[node.name]


def _two(numbers: tuple[int, ...]) -> tuple[int, int]:
    first, second = numbers
    return first, second
