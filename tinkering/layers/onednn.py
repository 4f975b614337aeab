"""The only calls to what PyTorch does not promise: oneDNN convolutions with packed weights.

``torch.ops.mkldnn`` has the building blocks of PyTorch's own compiler: a convolution with
weights in the layout that the processor likes best, that adds its result to a tensor and
applies the activation in the same pass. They are compared with the public path once, and
where they are missing or wrong the public path serves.

oneDNN's kernels for channels-last images, which the public path uses as well, are wrong or read
beyond the image for some geometries. Those that are known are kept off them (`_goes_wrong`), and
others that are out of the ordinary are compared with the kernels for images that are not
channels-last before they are first used (`_agrees`).
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tinkering.graph.activation import CURVES, RECTIFIER, Activation
from tinkering.graph.runner import in_plain_layout

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input, as in ``F.conv2d``: a number an axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1


class FusedConv:
    """A convolution with what stands behind it: ``act(conv(x, weight) + bias + other)``.

    Args:
        weight: ``[out, in / groups, height, width]`` in the dtype of the computation.
        bias: ``[out]``, likewise.
        geometry: how it walks.
        activation: of the sum.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, geometry: Geometry, activation: Activation | None
    ) -> None:
        self._geometry = geometry
        self._activation = activation
        self._weight = weight
        self._bias = bias
        self._packed: Tensor | None = None
        self._walk = _walk(geometry)
        self._trusted: dict[tuple[int, ...], bool] = {}

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return the sum, ``[images, out, height, width]``.

        Args:
            x: ``[images, in, height, width]``, in channels-last layout.
            other: as the result, in channels-last layout; overwritten.
        """
        if not self._trusts(x):
            return _contiguous(x, other, self._weight, self._bias, self._geometry, self._activation)
        if not (x.device.type == "cpu" and packed_convolutions_work(x.dtype)):
            return _public(x, other, self._weight, self._bias, self._geometry, self._activation)
        if self._packed is None:
            self._packed = _pack(self._weight, self._geometry, x)
        if other is None:
            return _convolve(x, self._packed, self._bias, self._walk, self._activation)
        return _accumulate(x, other, self._packed, self._bias, self._walk, self._activation)

    def _trusts(self, x: Tensor) -> bool:
        """Return whether channels-last kernels are right for images of this size."""
        size = tuple(x.shape[2:])
        if size not in self._trusted:
            case = (tuple(self._weight.shape), self._geometry, size)
            self._trusted[size] = x.device.type != "cpu" or _is_trusted(*case, x.dtype)
        return self._trusted[size]


def _is_trusted(
    weight: tuple[int, ...], geometry: Geometry, size: tuple[int, ...], dtype: torch.dtype
) -> bool:
    """Return whether channels-last kernels are right for a convolution.

    Args:
        weight: its shape, ``[out, in / groups, height, width]``.
        geometry: how it walks.
        size: height and width of the images.
        dtype: of the computation.
    """
    if _goes_wrong(weight, geometry, size):
        return False
    return _is_ordinary(weight, geometry) or _agrees(weight, geometry, size, dtype)


def _goes_wrong(weight: tuple[int, ...], geometry: Geometry, size: tuple[int, ...]) -> bool:
    """Return whether channels-last kernels are known to go wrong for a convolution, or near it.

    With oneDNN 3.12 they do

    - where steps along the row are longer than along the column and the result is one column:
      in bfloat16, and in float32 with one channel;
    - where steps are as long as the kernel and there is padding: some write beyond their memory;
    - where taps are spread and steps are longer than the row: they read beyond it, which ends
      the process.
    """
    result, steps, spread = [], False, False
    walks = zip(weight[2:], geometry.stride, geometry.padding, geometry.dilation, strict=True)
    for pixels, (taps, stride, pad, dilation) in zip(size, walks, strict=True):
        result.append((pixels + 2 * pad - dilation * (taps - 1) - 1) // stride + 1)
        steps = steps or (stride >= taps > 1 and pad > 0)
        spread = spread or (stride > 1 and dilation > 1)
    uneven = geometry.stride[0] != geometry.stride[1]
    return (uneven and min(result) == 1) or steps or spread


def is_depthwise(weight: Tensor, geometry: Geometry) -> bool:
    """Return whether every channel makes an output of its own, in two dimensions."""
    return weight.dim() == 4 and weight.shape[1] == 1 and len(weight) == geometry.groups > 1


def _is_ordinary(weight: tuple[int, ...], geometry: Geometry) -> bool:
    """Return whether a convolution is of the kind that oneDNN is made for: most of them are."""
    depthwise = weight[0] == geometry.groups and weight[1] == 1
    even = geometry.stride[0] == geometry.stride[1]
    return even and (depthwise or (geometry.groups == 1 and weight[1] > 1))


@cache
def _agrees(
    weight: tuple[int, ...], geometry: Geometry, size: tuple[int, ...], dtype: torch.dtype
) -> bool:
    """Return whether channels-last kernels agree with the others: computed once, on an image."""
    generator = torch.Generator().manual_seed(0)
    exact = torch.float32
    shape = (1, weight[1] * geometry.groups, *size)
    x = torch.randn(shape, generator=generator, dtype=exact).to(dtype)
    weights = torch.randn(weight, generator=generator, dtype=exact).to(dtype)
    bias = torch.zeros(weight[0], dtype=exact)
    wide = (weights.float(), bias, geometry, None)
    expected = _contiguous(x.float(), None, *wide)
    last, bias = x.contiguous(memory_format=torch.channels_last), bias.to(dtype)
    if packed_convolutions_work(dtype):
        packed = _pack(weights, geometry, last)
        result = _convolve(last, packed, bias, _walk(geometry), None)
    else:
        result = _public(last, None, weights, bias, geometry, None)
    # A result is rounded once: what is further off is another sum.
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    if (result.float() - expected).abs().max() <= tolerance * expected.abs().max():
        return True
    text = "oneDNN's convolution for channels-last %s images %s is wrong with weights %s: %s"
    _log.info(text, dtype, list(size), list(weight), geometry)
    return False


_CHECKED = (RECTIFIER, Activation("clamp", 0.0, 6.0), *map(Activation, CURVES))


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
    wide = (weight.float(), bias.float(), geometry)
    expected = [_public(x.float(), other.float(), *wide, RECTIFIER)]
    expected += [_public(x.float(), None, *wide, act) for act in _CHECKED]
    try:
        packed = _pack(weight, geometry, x)
        results = [
            _accumulate(x, other.clone(), packed, bias, _walk(geometry), RECTIFIER),
            *(_convolve(x, packed, bias, _walk(geometry), act) for act in _CHECKED),
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
    activation: Activation | None,
) -> Tensor:
    out = F.conv2d(
        x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
    )
    if other is not None:
        out += other
    return out if activation is None else activation(out)


def _contiguous(
    x: Tensor,
    other: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    geometry: Geometry,
    activation: Activation | None,
) -> Tensor:
    """Return the sum by the kernels for images that are not channels-last; its layout is."""
    out = _public(in_plain_layout(x), None, in_plain_layout(weight), bias, geometry, None)
    out = out.contiguous(memory_format=torch.channels_last)
    if other is not None:
        out += other
    return out if activation is None else activation(out)


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


def _convolve(
    x: Tensor, packed: Tensor, bias: Tensor, walk: _Walk, activation: Activation | None
) -> Tensor:
    inside = activation is None or activation.curve in _ATTRIBUTES or activation == RECTIFIER
    attribute = _as_attribute(activation if inside else None)
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *walk, *attribute)
    return result if inside or activation is None else activation(result)


def _as_attribute(activation: Activation | None) -> tuple[str, list[float], str | None]:
    """Return an activation as the internal calls take it: its name, numbers and variant."""
    if activation is None:
        return "none", [], None
    return ("relu", [], None) if activation == RECTIFIER else _ATTRIBUTES[activation.curve]


# Not limits: these calls make a number of what is none.
_ATTRIBUTES: dict[str, tuple[str, list[float], str | None]] = {
    "silu": ("swish", [], None),
    "gelu": ("gelu", [], "none"),
    "gelu_tanh": ("gelu", [], "tanh"),
    "hardswish": ("hardswish", [], None),
    "tanh": ("tanh", [], None),
    "sigmoid": ("sigmoid", [], None),
}


def _accumulate(
    x: Tensor,
    other: Tensor,
    packed: Tensor,
    bias: Tensor,
    walk: _Walk,
    activation: Activation | None,
) -> Tensor:
    # Of functions behind a sum these calls know the rectifier alone.
    relu = "relu" if activation == RECTIFIER else None
    result: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
        other, x, packed, bias, *walk, "add", 1.0, relu, [], None
    )
    return result if activation is None or relu else activation(result)
