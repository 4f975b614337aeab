"""The centre's fused layers, for members that have no weights of their own."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, partial

import torch
from torch import Tensor

from tinkering.graph.program import Fused, Program, name_of
from tinkering.layers.centre import ConvLayer, Layer, Values, fold, layer
from tinkering.layers.low_rank import Correction, layer_noise
from tinkering.layers.narrow import NarrowConv, is_narrow
from tinkering.native.correction import Shape


class UnperturbedLayers:
    """A program's fused steps with one set of weights.

    Args:
        steps: the program.
        values: the centre's weights and statistics.
        dtype: of the layers; those that make the module's outputs are float32.
        which: the steps; all of them by default.
    """

    def __init__(
        self,
        steps: Program,
        values: Values,
        dtype: torch.dtype,
        which: Iterable[Fused] | None = None,
    ) -> None:
        layers = {
            step: _unperturbed(step, values, torch.float32 if steps.makes_output(step) else dtype)
            for step in (steps.fused if which is None else which)
        }
        self.calls = {
            name_of(step): partial(_call, one, steps.may_overwrite_residual(step))
            for step, one in layers.items()
        }
        """Each computes a step, perhaps in the residual's memory."""
        self.keeping = {name_of(step): partial(_call, one, False) for step, one in layers.items()}
        """Likewise, always in memory of its own."""


def _call(
    one: Layer | _NarrowLayer, overwrite: bool, tile: object, x: Tensor, residual: Tensor | None
) -> Tensor:
    del tile
    return one(x, residual, overwrite)


class _NarrowLayer:
    """A convolution of few channels, in the kernel that is the fastest at it."""

    def __init__(self, conv: ConvLayer, narrow: NarrowConv) -> None:
        self._conv, self._narrow = conv, narrow

    def __call__(self, x: Tensor, residual: Tensor | None, overwrite: bool) -> Tensor:
        """Return ``act(conv(x) + residual)``, as `ConvLayer` does."""
        x = self._conv.enter(x)
        held = None if residual is None else self._conv.enter(residual)
        rows = torch.zeros(len(x), dtype=torch.int64)
        signs = torch.zeros(len(x))
        add = _nothing(self._conv.shape(x))
        return self._conv.leave(self._narrow(x, held, add, rows, signs, overwrite))


@lru_cache(maxsize=64)
def _nothing(shape: Shape) -> Correction:
    """Return what is added for members without noise."""
    scale = torch.zeros(shape.outputs)
    return Correction(shape, layer_noise(None, scale, None, scale))


def _unperturbed(step: Fused, values: Values, dtype: torch.dtype) -> Layer | _NarrowLayer:
    made = layer(step, values, dtype)
    if isinstance(made, ConvLayer) and is_narrow(made.weight, made.geometry, dtype):
        return _NarrowLayer(
            made, NarrowConv(made.weight, fold(step, values).shift, step.activation)
        )
    return made
