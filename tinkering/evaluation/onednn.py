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
    """How a convolution walks over its input, as in ``F.conv2d``: a number an axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1


class FusedConv:
    """A convolution with what stands behind it: ``relu(conv(x, weight) + bias + other)``.

    Args:
        weight: ``[out, in / groups, height, width]`` in the dtype of the computation.
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
        self._walk = _walk(geometry)

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return the sum, ``[images, out, height, width]``.

        Args:
            x: ``[images, in, height, width]``, in channels-last layout.
            other: as the result, in channels-last layout; overwritten.
        """
        if not (x.device.type == "cpu" and packed_convolutions_work(x.dtype)):
            return _public(x, other, self._weight, self._bias, self._geometry, self._relu)
        if self._packed is None:
            self._packed = _pack(self._weight, self._geometry, x)
        if other is None:
            return _convolve(x, self._packed, self._bias, self._walk, self._relu)
        return _accumulate(x, other, self._packed, self._bias, self._walk, self._relu)


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
    wide = (weight.float(), bias.float(), geometry, True)
    expected = [_public(x.float(), o, *wide) for o in (other.float(), None)]
    try:
        packed = _pack(weight, geometry, x)
        results = [
            _accumulate(x, other.clone(), packed, bias, _walk(geometry), relu=True),
            _convolve(x, packed, bias, _walk(geometry), relu=True),
        ]
    except Exception as error:  # whatever another release does with a call it never promised
        _log.info("oneDNN's packed convolutions are not used for %s: %s", dtype, error)
        return False
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    if not all(
        torch.allclose(result.float(), wanted, rtol=tolerance, atol=tolerance)
        for result, wanted in zip(results, expected, strict=True)
    ):
        warnings.warn("oneDNN's packed convolutions are not used: wrong results", stacklevel=2)
        return False
    return True


def bfloat16_is_fast() -> bool:
    """Return whether bfloat16 convolutions pay on this processor: if it has instructions for them.

    Those are AMX and AVX512-BF16: elsewhere bfloat16 is emulated, and what little it may gain is
    not worth the digits. The answer depends on the processor and on PyTorch alone and not on the
    clock, so that a run gives the same numbers whenever it is repeated.
    """
    has_instructions = has_amx() or bool(_capabilities().get("avx512_bf16"))
    return has_instructions and packed_convolutions_work(torch.bfloat16)


def has_amx() -> bool:
    """Return whether the processor has matrix instructions for bfloat16."""
    return bool(_capabilities().get("amx_bf16"))


@cache
def _capabilities() -> dict[str, object]:
    return dict(getattr(torch.cpu, "get_capabilities", dict)())


def _public(
    x: Tensor,
    other: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    geometry: Geometry,
    relu: bool,
) -> Tensor:
    out = F.conv2d(
        x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
    )
    if other is not None:
        out += other
    return F.relu(out) if relu else out


def _pack(weight: Tensor, geometry: Geometry, x: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight, *_walk(geometry), list(x.shape)
    )
    return packed


_Walk = tuple[list[int], list[int], list[int], int]


def _walk(geometry: Geometry) -> _Walk:
    """Return padding, stride, dilation and groups as the internal calls take them."""
    padding, stride, dilation = geometry.padding, geometry.stride, geometry.dilation
    return list(padding), list(stride), list(dilation), geometry.groups


def _convolve(x: Tensor, packed: Tensor, bias: Tensor, walk: _Walk, relu: bool) -> Tensor:
    activation = "relu" if relu else "none"
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, packed, bias, *walk, activation, [], None
    )
    return result


def _accumulate(
    x: Tensor, other: Tensor, packed: Tensor, bias: Tensor, walk: _Walk, relu: bool
) -> Tensor:
    activation = "relu" if relu else None
    result: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
        other, x, packed, bias, *walk, "add", 1.0, activation, [], None
    )
    return result
