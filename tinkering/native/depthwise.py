"""Convolutions of every channel on its own, each image with its member's weights."""

from __future__ import annotations

import torch
from torch import Tensor

from tinkering.native.after import After
from tinkering.native.calls import address, kernel
from tinkering.native.correction import LayerNoise, Shape, layer_struct


class Depthwise:
    """A member's own convolution, for any of the images that one draw of noise serves.

    Args:
        shape: of the layer, whose groups have a channel and an output each.
        noise: `left` is ``[pairs, kernel, channels]``, and `right` and `taps` are None.
        weight: the centre's, ``[kernel, channels]``, float32.
        shift: ``[channels]``, float32.
    """

    def __init__(self, shape: Shape, noise: LayerNoise, weight: Tensor, shift: Tensor) -> None:
        self._shape = shape
        self._layer, self._held = layer_struct(shape, noise), (noise, weight, shift)
        self._weight, self._shift = weight, shift

    def __call__(
        self, after: After, x: Tensor, residual: Tensor | None, rows: Tensor, signs: Tensor
    ) -> Tensor:
        """Return ``act(scale * (conv(x, weights) + shift) + own shift + residual)``.

        Args:
            after: scales, own shifts and the activation.
            x: ``[images, channels, height, width]`` in channels-last layout.
            residual: of the result's shape and layout, or None.
            rows: ``[images]``, int64: the row of each image's pair.
            signs: ``[images]``, float32.
        """
        size = (len(x), self._shape.groups, *self._shape.result)
        out = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
        tensors = (self._weight, self._shift, x, residual, out, rows, signs)
        kernel("depthwise", x.dtype)(self._layer, after.pointer, *map(address, tensors), len(rows))
        return out
