"""A convolution's weight times a scale, in another dtype and layout, in one pass."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tinkering.native.build import library

_NAMES = {torch.float32: "float", torch.bfloat16: "bfloat16"}


def available(weight: Tensor, dtype: torch.dtype) -> bool:
    """Return whether `folded` can work on a weight."""
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32 and dtype in _NAMES
    return fits and library() is not None


def folded(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``weight * scale`` in channels-last layout.

    Args:
        weight: ``[out, in, height, width]``, float32, contiguous.
        scale: ``[out]``, float32.
        dtype: of the result: float32 or bfloat16.

    Example:
        >>> weight, scale = torch.ones(4, 2, 3, 3), torch.arange(4.0)
        >>> if available(weight, torch.float32):
        ...     result = folded(weight, scale, torch.float32)
        ...     assert torch.equal(result, weight * scale.view(-1, 1, 1, 1))
    """
    kernels = library()
    if kernels is None:
        raise RuntimeError("ask available() first")
    outputs, channels, height, width = weight.shape
    scale = scale.float().contiguous()
    out = torch.empty(
        weight.shape, dtype=dtype, device=weight.device, memory_format=torch.channels_last
    )
    function = getattr(kernels, f"fold_{_NAMES[dtype]}")
    pointers = (weight.data_ptr(), scale.data_ptr(), out.data_ptr())
    sizes = (outputs, channels, height * width)
    function(*map(ctypes.c_void_p, pointers), *map(ctypes.c_int64, sizes))
    return out
