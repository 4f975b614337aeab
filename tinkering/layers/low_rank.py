"""What a member adds to the centre's layer, for many members at once.

    conv(x_i, W + sigma E_i) = conv(x_i, W) + conv(x_i, sigma E_i)

The first term is one dense operation over all images. With low-rank noise the second is a
dot product over the channels of every pixel, then a stencil over `rank` channels; no member's
weights are ever built. "Evolution Strategies at the Hyperscale" (arXiv 2511.16652) does
this for matrices; here convolutions are factored too.

`Correction` runs in the C++ kernel where there is one; `plain_correction` is its plain PyTorch
form: the reference in tests, and the fallback.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tinkering.graph.runner import in_plain_layout
from tinkering.layers.after import After
from tinkering.layers.onednn import Geometry
from tinkering.native import calls
from tinkering.native import correction as native
from tinkering.native.correction import LayerNoise, Shape
from tinkering.noise import DenseFactors, Factors, LowRankFactors, SeparableFactors


def layer_noise(
    weight: Factors | None, scale: Tensor, shift: Tensor | None, shift_scale: Tensor
) -> LayerNoise:
    """Return a layer's noise in the form that `Correction` reads.

    Args:
        weight: noise of the weight ``[out, in, *kernel]``, or None.
        scale: ``[out]``: multiplies it.
        shift: ``[pairs, out]``, or None.
        shift_scale: ``[out]``: multiplies that.
    """
    left = right = taps = None
    if isinstance(weight, LowRankFactors):
        pairs, rank, *_, out = weight.left.shape
        left, right = weight.left.reshape(pairs, rank, -1, out), weight.right
    elif isinstance(weight, SeparableFactors):
        left, right, taps = weight.left, weight.right, weight.taps.flatten(2)
    elif weight is not None:  # planes are the channels: [pairs, in, kernel, out]
        dense = weight.dense()
        left = dense.reshape(*dense.shape[:3], -1).permute(0, 2, 3, 1).contiguous()
    return LayerNoise(left, right, taps, scale, shift, shift_scale)


class Correction:
    """What members add to a layer, for any of the images that one draw of noise serves.

    Args:
        shape: of the layer.
        noise: of the layer.
    """

    def __init__(self, shape: Shape, noise: LayerNoise) -> None:
        self._shape, self._noise = shape, noise

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        rows: Tensor,
        signs: Tensor,
        overwrite: bool = False,
    ) -> Float[Tensor, "images out out_height out_width"]:
        """Return ``residual + conv(x_i, noise_i) + shift_i`` in channels-last layout.

        Args:
            x: ``[images, in, height, width]`` in channels-last layout.
            residual: in channels-last layout and the dtype of `x`, or None.
            rows: ``[images]``: the row of each image's pair.
            signs: ``[images]``: of each image's member.
            overwrite: whether the residual's memory may hold the result.
        """
        if not calls.available(x):
            return plain_correction(x, residual, self._shape, self._noise, rows, signs)
        out = self.room(x, residual, overwrite)
        self.native.write(x, residual, out, rows, signs)
        return out

    def finished(
        self,
        x: Tensor,
        product: Tensor,
        residual: Tensor | None,
        after: After,
        rows: Tensor,
        signs: Tensor,
    ) -> Tensor:
        """Return ``after(product + conv(x_i, noise_i) + shift_i, residual)``.

        Args:
            x: as above.
            product: what the centre's layer makes of it; overwritten.
            residual: as above.
            after: what stands behind the layer.
            rows: as above.
            signs: as above.
        """
        if not calls.available(x):
            out = plain_correction(x, product, self._shape, self._noise, rows, signs)
            return after.plain(out, residual, rows, signs)
        self.native.write(x, residual, product, rows, signs, product, after.native)
        return product

    @cached_property
    def native(self) -> native.Correction:
        """The same for the kernels."""
        return native.Correction(self._shape, self._noise)

    def room(self, x: Tensor, residual: Tensor | None, overwrite: bool) -> Tensor:
        """Return memory for the result: the residual's, where that may be overwritten."""
        if residual is not None and overwrite:
            return residual
        shape = self._shape
        size = (len(x), shape.outputs * shape.groups, *shape.result)
        return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def plain_correction(
    x: Tensor,
    residual: Tensor | None,
    shape: Shape,
    noise: LayerNoise,
    rows: Tensor,
    signs: Tensor,
) -> Tensor:
    """Return what `Correction` returns, in PyTorch's own operations."""
    out = torch.zeros((), dtype=x.dtype, device=x.device)
    images = len(x)
    if noise.left is not None:
        taps = noise.left if noise.taps is None else _outer(noise.taps, noise.left)
        taps = (taps.flatten(1, 2) * noise.scale).to(x.dtype)
        planes = x * signs.to(x.dtype).view(-1, 1, 1, 1)
        if noise.right is not None:
            # Dot products over a group's channels of a pixel: [images, groups, rank, pixels].
            pixels = planes.permute(0, 2, 3, 1).reshape(images, -1, shape.groups, shape.channels)
            right = noise.right[rows].to(x.dtype).unsqueeze(1)
            planes = (right @ pixels.movedim(1, 3)).view(images, -1, *x.shape[2:])
        patches = _patches(planes, shape).view(images, shape.groups, taps.shape[1], -1)
        own = taps[rows].view(images, -1, shape.groups, shape.outputs).transpose(1, 2)
        spread = (patches.mT @ own).transpose(1, 2)  # [images, pixels, groups, outputs]
        out = spread.reshape(images, *shape.result, -1).permute(0, 3, 1, 2)
    if noise.shift is not None:
        shift = noise.shift[rows] * noise.shift_scale * signs.unsqueeze(1)
        out = out + shift.to(x.dtype).view(images, -1, 1, 1)
    if residual is not None:
        out = out + residual
    full = out.expand(images, shape.outputs * shape.groups, *shape.result)
    return full.clone(memory_format=torch.channels_last)


def grouped_correction(
    x: Float[Tensor, "images in ..."], noise: Float[Tensor, "images out ..."], geometry: Geometry
) -> Float[Tensor, "images out ..."]:
    """Return ``conv(x_i, noise_i)`` with every image's dense noise, a group for each image.

    For the convolutions that `Correction` does not do: in three dimensions.
    """
    images, outputs = noise.shape[:2]
    convolve = F.conv2d if x.dim() == 4 else F.conv3d
    out: Tensor = convolve(
        in_plain_layout(x).view(1, -1, *x.shape[2:]),
        noise.flatten(0, 1),
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        images * geometry.groups,
    )
    return out.view(images, outputs, *out.shape[2:])


def of_members(
    noise: Factors, rows: Tensor, signs: Tensor, sigma: float
) -> Float[Tensor, "images ..."]:
    """Return each image's own noise of a parameter, as large as the parameter is."""
    dense = noise.dense()[rows]
    return dense * (signs * sigma).view(-1, *[1] * (dense.dim() - 1))


def embedding_noise(
    noise: Factors, indices: Tensor, rows: Tensor, signs: Tensor, sigma: float
) -> Float[Tensor, "images ... features"]:
    """Return what members add to the vectors they look up; no table is built for a member.

    Args:
        noise: of the table ``[words, features]``.
        indices: ``[images, ...]``.
        rows: ``[images]``: the row of each image's pair.
        signs: ``[images]``: of each image's member.
        sigma: multiplies the noise.
    """
    amount = (signs * sigma).view(-1, *[1] * indices.dim())
    which = rows.view(-1, *[1] * (indices.dim() - 1)).expand_as(indices)
    if isinstance(noise, DenseFactors):
        return noise.values[which, indices] * amount
    if isinstance(noise, SeparableFactors | LowRankFactors):
        # words are the outputs of the factors: [images, ..., rank] each
        left = noise.left.movedim(1, -1)[which, indices]
        right = noise.right[rows]
        product = left.reshape(len(left), -1, left.shape[-1]) @ right
        return product.view(*indices.shape, -1) * amount
    return noise.dense()[which, indices] * amount


def _outer(taps: Tensor, left: Tensor) -> Tensor:
    """Return ``[pairs, rank, kernel, out]`` of separable factors."""
    return taps.unsqueeze(3) * left.unsqueeze(2)


def _patches(planes: Tensor, shape: Shape) -> Float[Tensor, "images terms pixels"]:
    """Return what every output pixel sees: ``rank * taps`` values.

    One copy of a strided view: ``F.unfold`` is slow where there are few channels.
    """
    (top, left), stride, dilation = shape.padding, shape.stride, shape.dilation
    if top or left:
        planes = F.pad(planes, (left, left, top, top))
    span = [dilation[axis] * (shape.kernel[axis] - 1) + 1 for axis in (0, 1)]
    windows = planes.unfold(2, span[0], stride[0]).unfold(3, span[1], stride[1])
    windows = windows[..., :: dilation[0], :: dilation[1]].permute(0, 1, 4, 5, 2, 3)
    return windows.reshape(len(planes), -1, shape.result[0] * shape.result[1])
