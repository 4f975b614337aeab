"""The kernels that add what belongs to a member, called with tensors; see `calls` for those."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinkering.native import calls
from tinkering.native.after import NOTHING, After, only
from tinkering.native.build import library
from tinkering.native.calls import address, kernel, pointer, stride

_SIZES = (
    "channels outputs groups height width out_height out_width kernel_height kernel_width "
    "stride_height stride_width pad_height pad_width dilation_height dilation_width "
    "rank separable"
)
_TENSORS = "left right taps scale shift_noise shift_scale"
_STRIDES = "left_stride right_stride taps_stride shift_stride"


class _Layer(ctypes.Structure):
    """`Layer` in layer.h, field by field."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in _SIZES.split()),
        *((name, pointer) for name in _TENSORS.split()),
        *((name, ctypes.c_int64) for name in _STRIDES.split()),
    ]


@dataclass(frozen=True)
class Shape:
    """What a convolution does to the shape of an image; a linear layer has a kernel of one."""

    channels: int
    """Of a group."""
    outputs: int
    """Of a group."""
    groups: int
    image: tuple[int, int]
    result: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class LayerNoise:
    """The noise of a layer's weight and of its shift, as the kernel reads it."""

    left: Tensor | None
    """``[pairs, rank, kernel, out]``; ``[pairs, rank, out]`` with `taps`; None: no noise."""
    right: Tensor | None
    """``[pairs, rank, in]``; None where the planes are the channels themselves (rank = in)."""
    taps: Tensor | None
    """``[pairs, rank, kernel]``, for separable noise."""
    scale: Tensor
    """``[out]``: multiplies `left`."""
    shift: Tensor | None
    """``[pairs, out]``."""
    shift_scale: Tensor
    """``[out]``: multiplies `shift`."""


def layer_struct(shape: Shape, noise: LayerNoise) -> Any:
    """Return a layer as the kernels are told of it; `noise` must outlive it."""
    return ctypes.pointer(
        _Layer(
            shape.channels,
            shape.outputs,
            shape.groups,
            *shape.image,
            *shape.result,
            *shape.kernel,
            *shape.stride,
            *shape.padding,
            *shape.dilation,
            0 if noise.left is None else noise.left.shape[1],
            noise.taps is not None,
            address(noise.left),
            address(noise.right),
            address(noise.taps),
            address(noise.scale),
            address(noise.shift),
            address(noise.shift_scale),
            *(stride(rows) for rows in (noise.left, noise.right, noise.taps, noise.shift)),
        )
    )


class Correction:
    """What members add to a layer, for any of the images that one draw of noise serves.

    Args:
        shape: of the layer.
        noise: of the layer.
    """

    def __init__(self, shape: Shape, noise: LayerNoise) -> None:
        self._noise = noise  # the addresses in the struct are its
        self._layer = layer_struct(shape, noise)

    def write(
        self,
        x: Tensor,
        residual: Tensor | None,
        out: Tensor,
        rows: Tensor,
        signs: Tensor,
        product: Tensor | None = None,
        after: After | None = None,
    ) -> None:
        """Write ``act(scale * (product + what members add) + shift + residual)`` into `out`.

        Args:
            x: the layer's input.
            residual: of the result's shape, or None for nothing; may be `out`.
            out: the result's memory, in the dtype of `x`.
            rows: ``[images]``, int64: the row of each image's pair.
            signs: ``[images]``, float32.
            product: what the centre's layer makes of `x`, or None for nothing; may be `out`.
            after: scales, shifts and activation; None for none of them.
        """
        after = only(NOTHING) if after is None else after
        tensors = map(address, (x, product, residual, out, rows, signs))
        kernel("correct", x.dtype)(self._layer, after.pointer, *tensors, len(rows))

    def convolve(
        self,
        x: Tensor,
        weights: Tensor,
        shift: Tensor,
        after: After,
        residual: Tensor | None,
        out: Tensor,
        rows: Tensor,
        signs: Tensor,
    ) -> None:
        """Write ``act(conv(x, weights) + shift + residual + what members add)`` into `out`.

        Args:
            x: the layer's input, bfloat16.
            weights: what `narrow_weights` returned.
            shift: ``[out]``, float32.
            after: the activation.
            residual: of the result's shape, or None; may be `out`.
            out: the result's memory.
            rows: as in `write`.
            signs: as in `write`.
        """
        tensors = map(address, (weights, shift, x, residual, out, rows, signs))
        kernel("convolve", torch.bfloat16)(self._layer, after.pointer, *tensors, len(rows))


def convolves(channels: int, outputs: int, stride: tuple[int, ...]) -> bool:
    """Return whether `Correction.convolve` does such a layer on this processor."""
    if library() is None:
        return False
    layer = _Layer(channels=channels, outputs=outputs)
    layer.stride_height, layer.stride_width = stride
    return bool(calls.convolves()(ctypes.byref(layer)))


def narrow_weights(weight: Tensor) -> Tensor:
    """Return a weight ``[out, in, height, width]`` as `Correction.convolve` reads it.

    That is bfloat16 ``[blocks, height, width, pairs of channels, outputs of a block, 2]``, a
    block being 16 outputs or 8.
    """
    outputs, channels, height, width = weight.shape
    block = 16 if outputs % 16 == 0 else 8
    if channels == 1:  # its partner is nothing
        weight = torch.cat([weight, torch.zeros_like(weight)], dim=1)
    blocks = weight.to(torch.bfloat16).reshape(outputs // block, block, -1, 2, height, width)
    return blocks.permute(0, 4, 5, 2, 1, 3).contiguous()
