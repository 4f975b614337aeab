"""The kernels that add what belongs to a member, called with tensors.

All tensors are on the CPU. Pixels are dense and their channels lie beside each other:
``[images, height, width, channels]`` in memory, whatever the axes are called. Noise is float32
with a row a pair, and rows may have gaps between them.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tinkering.native.build import library

_NAMES = {torch.float32: "float", torch.bfloat16: "bfloat16"}
_pointer = ctypes.c_void_p
_SIZES = (
    "channels outputs height width out_height out_width kernel_height kernel_width "
    "stride_height stride_width pad_height pad_width dilation_height dilation_width "
    "rank separable"
)
_TENSORS = "left right taps scale shift_noise shift_scale"
_STRIDES = "left_stride right_stride taps_stride shift_stride"


class _Layer(ctypes.Structure):
    """`Layer` in kernels.cpp, field by field."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in _SIZES.split()),
        *((name, _pointer) for name in _TENSORS.split()),
        *((name, ctypes.c_int64) for name in _STRIDES.split()),
    ]


@dataclass(frozen=True)
class Shape:
    """What a convolution does to the shape of an image; a linear layer has a kernel of one."""

    channels: int
    outputs: int
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


def available(x: Tensor) -> bool:
    """Return whether the kernels can work on a tensor."""
    return x.device.type == "cpu" and x.dtype in _NAMES and library() is not None


class Correction:
    """What members add to a layer, for any of the images that one draw of noise serves.

    Args:
        shape: of the layer.
        noise: of the layer.
    """

    def __init__(self, shape: Shape, noise: LayerNoise) -> None:
        self._noise = noise  # the addresses below are its
        self._layer = _Layer(
            shape.channels,
            shape.outputs,
            *shape.image,
            *shape.result,
            *shape.kernel,
            *shape.stride,
            *shape.padding,
            *shape.dilation,
            0 if noise.left is None else noise.left.shape[1],
            noise.taps is not None,
            _address(noise.left),
            _address(noise.right),
            _address(noise.taps),
            _address(noise.scale),
            _address(noise.shift),
            _address(noise.shift_scale),
            *(_stride(rows) for rows in (noise.left, noise.right, noise.taps, noise.shift)),
        )

    def write(
        self, x: Tensor, residual: Tensor | None, out: Tensor, rows: Tensor, signs: Tensor
    ) -> None:
        """Write ``residual + what each image's member adds to the centre's layer`` into `out`.

        Args:
            x: the layer's input.
            residual: of the result's shape, or None for nothing; may be `out`.
            out: the result's memory, in the dtype of `x`.
            rows: ``[images]``, int64: the row of each image's pair.
            signs: ``[images]``, float32.
        """
        _functions()[f"correct_{_NAMES[x.dtype]}"](
            ctypes.byref(self._layer),
            x.data_ptr(),
            _address(residual),
            out.data_ptr(),
            rows.data_ptr(),
            signs.data_ptr(),
            len(rows),
        )

    def convolve(
        self,
        x: Tensor,
        weights: Tensor,
        shift: Tensor,
        relu: bool,
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
            relu: whether the result is rectified.
            residual: of the result's shape, or None; may be `out`.
            out: the result's memory.
            rows: as in `write`.
            signs: as in `write`.
        """
        _functions()["convolve_bfloat16"](
            ctypes.byref(self._layer),
            weights.data_ptr(),
            shift.data_ptr(),
            relu,
            x.data_ptr(),
            _address(residual),
            out.data_ptr(),
            rows.data_ptr(),
            signs.data_ptr(),
            len(rows),
        )


def convolves(channels: int, outputs: int, stride: tuple[int, ...]) -> bool:
    """Return whether `Correction.convolve` does such a layer on this processor."""
    if library() is None:
        return False
    layer = _Layer(channels=channels, outputs=outputs)
    layer.stride_height, layer.stride_width = stride
    return bool(_functions()["convolves"](ctypes.byref(layer)))


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


def affine(
    x: Tensor,
    residual: Tensor | None,
    out: Tensor,
    scale: Tensor,
    scale_noise: Tensor | None,
    shift: Tensor,
    shift_noise: Tensor | None,
    sigma: float,
    relu: bool,
    rows: Tensor,
    signs: Tensor,
) -> None:
    """Write ``act(x * member's scale + member's shift + residual)`` into `out`.

    Args:
        x: ``[images, ..., channels]`` in memory.
        residual: likewise, or None.
        out: likewise; may be `x`.
        scale: ``[channels]``, float32.
        scale_noise: ``[pairs, channels]`` or None.
        shift: ``[channels]``, float32.
        shift_noise: ``[pairs, channels]`` or None.
        sigma: multiplies the noise.
        relu: whether the result is rectified.
        rows: ``[images]``, int64.
        signs: ``[images]``, float32.
    """
    channels = len(scale)
    _functions()[f"affine_{_NAMES[x.dtype]}"](
        *map(_address, (out, x, residual, scale, scale_noise, shift, shift_noise)),
        _stride(scale_noise),
        _stride(shift_noise),
        sigma,
        rows.data_ptr(),
        signs.data_ptr(),
        len(rows),
        x.numel() // (len(rows) * channels),
        channels,
        relu,
    )


@cache
def _functions() -> dict[str, Any]:
    """Return the kernels by name, with the types of their arguments."""
    kernels = library()
    if kernels is None:
        raise RuntimeError("ask available() first")
    size, real = ctypes.c_int64, ctypes.c_float
    types = {
        "correct": [*[_pointer] * 6, size],
        "affine": [*[_pointer] * 7, size, size, real, _pointer, _pointer, size, size]
        + [ctypes.c_int32] * 2,
    }
    functions = {}
    for name in _NAMES.values():
        for kernel, arguments in types.items():
            function = getattr(kernels, f"{kernel}_{name}")
            function.argtypes, function.restype = arguments, None
            functions[f"{kernel}_{name}"] = function
    convolve: list[Any] = [*[_pointer] * 3, ctypes.c_int32, *[_pointer] * 5, size]
    kernels.convolve_bfloat16.argtypes, kernels.convolve_bfloat16.restype = convolve, None
    kernels.convolves.argtypes, kernels.convolves.restype = [_pointer], ctypes.c_int32
    return functions | {
        "convolve_bfloat16": kernels.convolve_bfloat16,
        "convolves": kernels.convolves,
    }


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _stride(rows: Tensor | None) -> int:
    return 0 if rows is None else rows.stride(0)
