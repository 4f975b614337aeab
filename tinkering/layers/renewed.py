"""The centre's fused layers, where norms compute with the examples that they see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from tinkering.graph.program import LINEAR, NORM, Fused, Program, arguments, name_of
from tinkering.graph.runner import FusedCall
from tinkering.layers.after import finished
from tinkering.layers.centre import ConvLayer, Folded, LinearLayer, Values
from tinkering.layers.unperturbed import UnperturbedLayers

_norm = torch.ops.aten.native_batch_norm
_norm_backward = torch.ops.aten.native_batch_norm_backward


@dataclass(frozen=True)
class FixedNorm:
    """A norm that multiplies by what it has: one of them, or none, as a layer's scale."""

    scale: Tensor
    """``[out]``, or a single number."""

    def before(self, change: Tensor, channel: int) -> Tensor:
        """Return how fitness changes with the layer's result, from that with the norm's."""
        return change * self.scale.view(-1, *[1] * (change.dim() - 1 - channel))


@dataclass(frozen=True)
class RenewedNorm:
    """A norm with the mean and the variance of what it saw."""

    seen: Tensor
    """The layer's result, ``[examples, out, ...]``."""
    mean: Tensor
    inverse: Tensor
    """``1 / sqrt(variance + eps)``"""
    weight: Tensor | None
    eps: float

    def before(self, change: Tensor, channel: int) -> Tensor:
        """Return how fitness changes with the layer's result, from that with the norm's.

        What would move the mean or the variance is left out, as the norm undoes it: Ioffe and
        Szegedy 2015, "Batch Normalization" (arXiv 1502.03167), section 3.
        """
        del channel
        given: Tensor = _norm_backward(
            change.to(self.seen.dtype),
            self.seen,
            self.weight,
            None,
            None,
            self.mean,
            self.inverse,
            True,
            self.eps,
            [True, False, False],
        )[0]
        return given

    @property
    def variance(self) -> Tensor:
        """Of what was seen, ``[out]``."""
        return self.inverse.square().reciprocal() - self.eps


class RenewedLayers:
    """A program's fused steps, whose norms use the statistics of what they see.

    Args:
        steps: the program.
        values: the centre's weights.
        dtype: of the layers; those that make the module's outputs are float32.
    """

    def __init__(self, steps: Program, values: Values, dtype: torch.dtype) -> None:
        others = [step for step in steps.fused if norm_of(step) is None]
        self.calls: dict[str, FusedCall] = dict(
            UnperturbedLayers(steps, values, dtype, others).keeping
        )
        """Each computes a step; it is called with a dict, which is given its `RenewedNorm`."""
        for step in steps.fused:
            name, norm = name_of(step), norm_of(step)
            if norm is not None:
                own = torch.float32 if steps.makes_output(step) else dtype
                self.calls[name] = partial(_computed, _Layer(step, norm, values, own), name)


def norm_of(step: Fused) -> fx.Node | None:
    """Return a step's batch norm, if it has one."""
    return step.layer if step.layer.target is NORM else step.norm


def statistics_of(
    steps: Program, norms: Mapping[str, FixedNorm | RenewedNorm], values: Values
) -> dict[str, Tensor]:
    """Return the mean and the variance of each norm that was renewed, by their placeholders.

    Args:
        steps: the program.
        norms: of its steps, by name.
        values: the centre's weights.
    """
    found = {}
    for step in steps.fused:
        norm, node = norms.get(name_of(step)), norm_of(step)
        if isinstance(norm, RenewedNorm) and node is not None:
            given = arguments(node)
            bias = None if step.layer is node else _value(step.given["bias"], values)
            # The layer's bias was left out of what the norm saw.
            mean = norm.mean if bias is None else norm.mean + bias
            found[given["running_mean"].name] = mean
            found[given["running_var"].name] = norm.variance
    return found


class _Layer:
    """A convolution or linear layer, or none, and the norm behind it."""

    def __init__(self, step: Fused, norm: fx.Node, values: Values, dtype: torch.dtype) -> None:
        self._dtype, self._activation = dtype, step.activation
        given = arguments(norm)
        self._weight, self._shift = (_value(given[key], values) for key in ("weight", "bias"))
        self._eps: float = given["eps"]
        self._layer: ConvLayer | LinearLayer | None = None
        if step.layer.target is not NORM:
            weight = values[step.given["weight"].name]
            ones = weight.new_ones(len(weight))
            folded = Folded(ones, torch.zeros_like(ones), weight)  # a norm takes away the bias
            if step.layer.target is LINEAR:
                self._layer = LinearLayer(folded, None, dtype)
            else:
                self._layer = ConvLayer(step, folded, None, dtype)

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, RenewedNorm]:
        """Return the step's result in memory of its own, and its norm."""
        seen = x.to(self._dtype) if self._layer is None else self._layer(x, None, False)
        made, mean, inverse = _norm(
            seen, self._weight, self._shift, None, None, True, 0.0, self._eps
        )
        result = finished(made, residual, self._activation)
        return result, RenewedNorm(seen, mean, inverse, self._weight, self._eps)


def _computed(
    layer: _Layer, name: str, noted: dict[str, Any], x: Tensor, residual: Tensor | None
) -> Tensor:
    result, noted[name] = layer(x, residual)
    return result


def _value(node: fx.Node | None, values: Values) -> Tensor | None:
    return None if node is None else values[node.name]
