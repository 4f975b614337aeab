"""The functions of a single number that a layer applies to its result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

_aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """A function of every number of a result: a curve, or limits.

    Example:
        >>> six = Activation("clamp", 0.0, 6.0)
        >>> six(torch.tensor([-1.0, 3.0, 9.0])).tolist()
        [0.0, 3.0, 6.0]
    """

    curve: str
    """One of `CURVES`."""
    low: float = -math.inf
    """Of a "clamp": what is below is made so large."""
    high: float = math.inf
    """Of a "clamp": what is above is made so small."""

    @property
    def code(self) -> tuple[int, float, float]:
        """What the kernels know it by: the position of its curve, and its limits."""
        return list(CURVES).index(self.curve), self.low, self.high

    def __call__(self, x: Tensor) -> Tensor:
        """Return the function of a tensor, in its memory."""
        return CURVES[self.curve](self, x)


def _clamp(limits: Activation, x: Tensor) -> Tensor:
    if limits == RECTIFIER:
        return x.relu_()
    return F.hardtanh(x, limits.low, limits.high, inplace=True)


def _silu(_: Activation, x: Tensor) -> Tensor:
    return F.silu(x, inplace=True)


def _gelu(_: Activation, x: Tensor) -> Tensor:
    result: Tensor = _aten.gelu_(x)
    return result


def _gelu_tanh(_: Activation, x: Tensor) -> Tensor:
    result: Tensor = _aten.gelu_(x, approximate="tanh")
    return result


def _hardswish(_: Activation, x: Tensor) -> Tensor:
    return F.hardswish(x, inplace=True)


def _tanh(_: Activation, x: Tensor) -> Tensor:
    return x.tanh_()


def _sigmoid(_: Activation, x: Tensor) -> Tensor:
    return x.sigmoid_()


CURVES: dict[str, Callable[[Activation, Tensor], Tensor]] = {
    "clamp": _clamp,
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "hardswish": _hardswish,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
}
"""Each computes a curve in place; kernels know them by their position."""

RECTIFIER = Activation("clamp", 0.0)

_PLAIN: dict[Any, Activation] = {
    _aten.relu.default: RECTIFIER,
    _aten.relu6.default: Activation("clamp", 0.0, 6.0),
    _aten.silu.default: Activation("silu"),
    _aten.hardswish.default: Activation("hardswish"),
    _aten.tanh.default: Activation("tanh"),
    _aten.sigmoid.default: Activation("sigmoid"),
}


def activation_of(node: fx.Node) -> Activation | None:
    """Return what a node applies to its first argument, if it is one of the known functions."""
    if node.target is _aten.hardtanh.default:
        given = dict(zip(("min_val", "max_val"), node.args[1:], strict=False)) | node.kwargs
        low, high = given.get("min_val", -1.0), given.get("max_val", 1.0)
        return Activation("clamp", float(low), float(high))  # type: ignore[arg-type]
    if node.target is _aten.gelu.default:
        tanh = node.kwargs.get("approximate") == "tanh"
        return Activation("gelu_tanh" if tanh else "gelu")
    return _PLAIN.get(node.target)


def rectifier_of(node: fx.Node) -> Activation | None:
    """Return `RECTIFIER` for a node that is one: the one function that is open or shut."""
    return RECTIFIER if node.target is _aten.relu.default else None
