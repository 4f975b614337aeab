"""The only calls to what PyTorch does not promise: oneDNN convolutions with packed weights.

``torch.ops.mkldnn`` has the building blocks of PyTorch's own compiler: a convolution with
weights in the layout that the processor likes best, that adds its result to a tensor and
applies the activation in the same pass. They are compared with the public path once, and
where they are missing or wrong the public path serves.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input: two numbers each, as in ``F.conv2d``."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class AccumulatingConv:
    """A convolution that is added to a tensor: ``relu(other + conv(x, weight) + bias)``.

    Args:
        weight: ``[out, in, height, width]`` in the dtype of the computation.
        bias: ``[out]``, likewise.
        geometry: how it walks.
        relu: whether the sum is rectified.
    """

    def __init__(self, weight: Tensor, bias: Tensor, geometry: Geometry, relu: bool) -> None:
        self._geometry = geometry
        self._relu = relu
        self._weight = weight
        self._bias = bias
        self._packed: Tensor | None = None

    def __call__(self, x: Tensor, other: Tensor) -> Tensor:
        """Return the sum, ``[images, out, height, width]``; `other` may be overwritten.

        Args:
            x: ``[images, in, height, width]``, in channels-last layout.
            other: as the result, in channels-last layout.
        """
        if not (x.device.type == "cpu" and packed_convolutions_work(x.dtype)):
            return _public(x, other, self._weight, self._bias, self._geometry, self._relu)
        if self._packed is None:
            self._packed = _pack(self._weight, self._geometry, x)
        return _accumulate(x, other, self._packed, self._bias, self._geometry, self._relu)


@cache
def packed_convolutions_work(dtype: torch.dtype) -> bool:
    """Return whether the internal calls are there and agree with the public path."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator).to(dtype)
        return drawn.contiguous(memory_format=torch.channels_last)

    x, weight, other = normal(2, 8, 7, 7), normal(16, 8, 3, 3), normal(2, 16, 4, 4)
    bias = torch.randn(16, generator=generator).to(dtype)
    geometry = Geometry((2, 2), (1, 1), (1, 1))
    expected = _public(x.float(), other.float(), weight.float(), bias.float(), geometry, relu=True)
    try:
        packed = _pack(weight, geometry, x)
        result = _accumulate(x, other.clone(), packed, bias, geometry, relu=True).float()
    except Exception as error:  # whatever another release does with a call it never promised
        _log.info("oneDNN's packed convolutions are not used for %s: %s", dtype, error)
        return False
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    if not torch.allclose(result, expected, rtol=tolerance, atol=tolerance):
        warnings.warn("oneDNN's packed convolutions are not used: wrong results", stacklevel=2)
        return False
    return True


@cache
def bfloat16_is_fast() -> bool:
    """Return whether the processor multiplies bfloat16 matrices with AMX."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16")) and packed_convolutions_work(torch.bfloat16)


def _public(
    x: Tensor, other: Tensor, weight: Tensor, bias: Tensor, geometry: Geometry, relu: bool
) -> Tensor:
    out = other + F.conv2d(x, weight, bias, geometry.stride, geometry.padding, geometry.dilation)
    return F.relu(out) if relu else out


def _pack(weight: Tensor, geometry: Geometry, x: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight,
        list(geometry.padding),
        list(geometry.stride),
        list(geometry.dilation),
        1,
        list(x.shape),
    )
    return packed


def _accumulate(
    x: Tensor, other: Tensor, packed: Tensor, bias: Tensor, geometry: Geometry, relu: bool
) -> Tensor:
    result: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
        other,
        x,
        packed,
        bias,
        list(geometry.padding),
        list(geometry.stride),
        list(geometry.dilation),
        1,
        "add",
        1.0,
        "relu" if relu else None,
        [],
        None,
    )
    return result
