"""What stands behind a layer, for the kernels: members' scale and shift, and an activation."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tinkering.native.calls import address, kernel, pointer, size, stride

Code = tuple[int, float, float]
"""An activation as the kernels know it: its curve, and the limits of a clamp."""
NOTHING: Code = (0, -math.inf, math.inf)


class _Struct(ctypes.Structure):
    """`After` in after.h, field by field."""

    _fields_ = [
        *((name, pointer) for name in ("scale", "scale_noise", "shift", "shift_noise")),
        *((name, size) for name in ("scale_stride", "shift_stride")),
        ("sigma", ctypes.c_float),
        ("curve", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("low", "high")),
    ]


class After:
    """``act(x * member's scale + member's shift)``.

    Args:
        activation: applied last; `NOTHING` for none.
        scale: ``[channels]``, float32; None for 1.
        scale_noise: ``[pairs, channels]``, or None.
        shift: ``[channels]``, float32; None for 0.
        shift_noise: ``[pairs, channels]``, or None.
        sigma: multiplies the noise.
    """

    def __init__(
        self,
        activation: Code = NOTHING,
        scale: Tensor | None = None,
        scale_noise: Tensor | None = None,
        shift: Tensor | None = None,
        shift_noise: Tensor | None = None,
        sigma: float = 0.0,
    ) -> None:
        held = (scale, scale_noise, shift, shift_noise)
        self._held = held  # the addresses below are theirs
        strides = stride(scale_noise), stride(shift_noise)
        self._struct = _Struct(*map(address, held), *strides, sigma, *activation)

    @property
    def pointer(self) -> Any:
        """What the kernels are handed."""
        return ctypes.byref(self._struct)


@cache
def only(activation: Code) -> After:
    """Return what has neither scale nor shift."""
    return After(activation)


def affine(
    after: After, x: Tensor, residual: Tensor | None, out: Tensor, rows: Tensor, signs: Tensor
) -> None:
    """Write ``act(x * member's scale + member's shift + residual)`` into `out`.

    Args:
        after: scales, shifts and the activation.
        x: ``[images, ..., channels]`` in memory; its second axis is that of the channels.
        residual: likewise, or None.
        out: likewise; may be `x`.
        rows: ``[images]``, int64: the row of each image's pair.
        signs: ``[images]``, float32.
    """
    tensors = map(address, (x, residual, out, rows, signs))
    images, channels = len(x), x.shape[1]
    pixels = x.numel() // (images * channels)
    kernel("affine", x.dtype)(after.pointer, *tensors, images, pixels, channels)


def layer_norm(after: After, x: Tensor, eps: float, rows: Tensor, signs: Tensor) -> Tensor:
    """Return ``act(norm(x) * member's scale + member's shift)``, the norm over the last axis.

    Args:
        after: scales, shifts and the activation.
        x: ``[images, ..., features]``, contiguous.
        eps: added to variances.
        rows: ``[images]``, int64: the row of each image's pair.
        signs: ``[images]``, float32.
    """
    out = torch.empty_like(x)
    tensors = map(address, (x, out, rows, signs))
    images, features = len(x), x.shape[-1]
    each = x.numel() // (images * features)
    kernel("layer_norm", x.dtype)(after.pointer, *tensors, images, each, features, eps)
    return out
