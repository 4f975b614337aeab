"""Operations on a parameter, for many members at once.

Each is one dense operation with the centre's parameter over all images, plus a
correction that makes each image that of its member:

    conv(x_i, W + sigma E_i) = conv(x_i, W) + conv(x_i, sigma E_i)

With low-rank noise the correction of a convolution is a dot product over the channels of
every pixel, then a stencil over `rank` channels; no member's weights are ever built.
"Evolution Strategies at the Hyperscale" (arXiv 2511.16652) does this for matrices; here
convolutions are factored too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tinkering.evaluation.onednn import AccumulatingConv, Geometry
from tinkering.noise import Factors, LowRankFactors


@dataclass(frozen=True)
class Tile:
    """The members that a batch of images belongs to."""

    rows: Tensor
    """``[images]``: the row of each image's pair in the factors."""
    signs: Tensor
    """``[images]``: the sign of each image's member."""


@dataclass(frozen=True)
class Weight:
    """A parameter and what members add to it; no noise where it does not evolve."""

    centre: Tensor
    noise: Factors | None
    """A row a pair, multiplied by sigma but not by a member's sign."""


class MemberConv2d(nn.Module):
    """Convolution, normalisation and rectifier of many members, in one or two passes.

    Args:
        weight: ``[out, in, height, width]``.
        scale: ``[out]``: multiplies the convolution; what a norm behind it comes down to.
        shift: ``[out]``: added after that.
        shift_noise: ``[pairs, out]``: noise of the shift, not multiplied by a member's sign.
        geometry: how the convolution walks.
        relu: whether the result is rectified.
        dtype: of the computation.
    """

    def __init__(
        self,
        weight: Weight,
        scale: Tensor,
        shift: Tensor,
        shift_noise: Tensor,
        geometry: Geometry,
        relu: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self._dtype = dtype
        self._geometry = geometry
        self._kernel = tuple(weight.centre.shape[2:])
        folded = weight.centre * scale.view(-1, 1, 1, 1)
        self._conv = AccumulatingConv(folded.to(dtype), shift.to(dtype), geometry, relu)
        taps, self._right = _taps(weight)
        taps = (taps * scale).expand(len(shift_noise), -1, -1)
        # The last row meets a channel of signs: the noise of the shift.
        self._taps = torch.cat([taps, shift_noise.unsqueeze(1)], dim=1).to(dtype)

    def forward(self, x: Tensor, tile: Tile) -> Tensor:
        """Return ``[images, out, height, width]`` in channels-last layout."""
        x = x.to(self._dtype, memory_format=torch.channels_last)
        signs = tile.signs.to(self._dtype)
        if self._right is None:
            channels = x * signs.view(-1, 1, 1, 1)
        else:
            # Dot products over the channels of a pixel: [images, rank, pixels].
            right = self._right[tile.rows].to(self._dtype) * signs.view(-1, 1, 1)
            pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
            channels = (right @ pixels.mT).view(len(x), -1, *x.shape[2:])
        patches = _patches(channels, signs, self._kernel, self._geometry)
        height, width = patches.shape[2:]
        correction = patches.flatten(2).mT @ self._taps[tile.rows]
        other = correction.view(len(x), height, width, -1).permute(0, 3, 1, 2)
        return self._conv(x, other)


class MemberLinear(nn.Module):
    """A linear layer of many members, in float32: logits carry differences between members.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]``, or None for a layer without.
    """

    def __init__(self, weight: Weight, bias: Weight | None) -> None:
        super().__init__()
        self._weight = weight
        self._bias = bias
        self._taps, self._right = _taps(weight)

    def forward(self, x: Tensor, tile: Tile) -> Tensor:
        """Return ``[images, ..., out]``."""
        bias = self._bias
        out = F.linear(x, self._weight.centre, None if bias is None else bias.centre)
        correction = torch.zeros((), device=x.device)
        signs = tile.signs.view(-1, 1, 1)
        if self._weight.noise is not None:
            rows = x.reshape(len(x), -1, x.shape[-1]) * signs
            if self._right is not None:
                rows = rows @ self._right[tile.rows].mT
            correction = correction + rows @ self._taps[tile.rows]
        if bias is not None and bias.noise is not None:
            correction = correction + bias.noise.dense()[tile.rows].unsqueeze(1) * signs
        # A bias is the same for all rows of an image, a weight's noise is not.
        return (out.reshape(len(x), -1, out.shape[-1]) + correction).view(out.shape)


class MemberBatchNorm(nn.Module):
    """Batch normalisation with the centre's statistics and every member's scale and shift.

    Args:
        mean: ``[channels]``.
        variance: ``[channels]``.
        weight: ``[channels]``.
        bias: ``[channels]``.
        eps: added to the variance.
    """

    def __init__(
        self, mean: Tensor, variance: Tensor, weight: Weight, bias: Weight, eps: float
    ) -> None:
        super().__init__()
        self._mean = mean
        self._inverse = torch.rsqrt(variance + eps)
        self._weight = weight
        self._bias = bias

    def forward(self, x: Tensor, tile: Tile) -> Tensor:
        """Return a tensor of the shape of `x`, ``[images, channels, ...]``."""
        # Statistics, weight and bias come down to one multiplication and one addition.
        scale = _of_members(self._weight, tile) * self._inverse
        shift = _of_members(self._bias, tile) - self._mean * scale
        spread = (-1, scale.shape[1], *[1] * (x.dim() - 2))
        return torch.addcmul(shift.view(spread), x, scale.view(spread))


def _of_members(vector: Weight, tile: Tile) -> Float[Tensor, "images channels"]:
    """Return each image's own vector; one row for all where it does not evolve."""
    if vector.noise is None:
        return vector.centre.unsqueeze(0)
    return vector.centre + vector.noise.dense()[tile.rows] * tile.signs.unsqueeze(1)


def _taps(
    weight: Weight,
) -> tuple[Float[Tensor, "pairs taps out"], Float[Tensor, "pairs rank in"] | None]:
    """Return noise as a matrix for the product with patches, and the channels it reads.

    Low-rank noise reads `rank` mixtures of the channels; other noise the channels
    themselves, for which the second value is None.
    """
    noise = weight.noise
    if isinstance(noise, LowRankFactors):
        return noise.left.flatten(1, -2), noise.right
    if noise is None:
        return weight.centre.new_zeros(1, weight.centre[0].numel(), len(weight.centre)), None
    return noise.dense().flatten(2).mT, None


def _patches(
    channels: Float[Tensor, "images rank height width"],
    signs: Float[Tensor, " images"],
    kernel: tuple[int, ...],
    geometry: Geometry,
) -> Float[Tensor, "images rows out_height out_width"]:
    """Return what every output pixel sees: ``rank * taps`` values and the member's sign.

    One copy of a strided view: ``F.unfold`` is slow where there are few channels.
    """
    (top, left), stride, dilation = geometry.padding, geometry.stride, geometry.dilation
    if top or left:
        channels = F.pad(channels, (left, left, top, top))
    span = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    windows = channels.unfold(2, span[0], stride[0]).unfold(3, span[1], stride[1])
    windows = windows[..., :: dilation[0], :: dilation[1]].permute(0, 1, 4, 5, 2, 3)
    images, rank, _, _, height, width = windows.shape
    rows = rank * kernel[0] * kernel[1]
    patches = channels.new_empty(images, rows + 1, height, width)
    patches[:, :rows].view(windows.shape).copy_(windows)
    patches[:, rows] = signs.view(-1, 1, 1)
    return patches
