"""Convolutions of few channels: the layer and what members add to it, in one kernel.

oneDNN computes on 16 channels or more, whether they are there or not. Where there are few, a
kernel that also adds the members' noise, the residual and the activation is done in less time
than oneDNN takes for the convolution alone (``make bench``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinkering.graph.activation import Activation
from tinkering.layers.after import After
from tinkering.layers.low_rank import Correction
from tinkering.layers.onednn import Geometry, has_amx
from tinkering.native import correction as native

_CHANNELS = 16
"""At most; with more, oneDNN is the faster one."""
_CHANNELS_WITH_AMX = 1
"""Likewise, where oneDNN has matrix instructions that the kernel has not."""


def is_narrow(weight: Tensor, geometry: Geometry, dtype: torch.dtype) -> bool:
    """Return whether `NarrowConv` should compute a layer on this processor.

    The answer depends on the processor alone and not on the clock, so that a run gives the
    same numbers whenever it is repeated.

    Args:
        weight: ``[out, in, height, width]``.
        geometry: how the convolution walks.
        dtype: of the computation.
    """
    if dtype != torch.bfloat16 or weight.dim() != 4 or weight.device.type != "cpu":
        return False
    outputs, channels = weight.shape[:2]
    most = _CHANNELS_WITH_AMX if has_amx() else _CHANNELS
    if geometry.groups != 1 or channels > most:
        return False
    return native.convolves(channels, outputs, geometry.stride)


class NarrowConv:
    """``act(conv(x, weight) + shift + residual + what members add)`` in bfloat16.

    Sums are float32 until the result is rounded, so small noise is not lost on the way.

    Args:
        weight: ``[out, in, height, width]``.
        shift: ``[out]``.
        activation: of the result.
    """

    def __init__(self, weight: Tensor, shift: Tensor, activation: Activation | None) -> None:
        self._weights = native.narrow_weights(weight)
        self._shift = shift.float().contiguous()
        self._after = After(activation)

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        add: Correction,
        rows: Tensor,
        signs: Tensor,
        overwrite: bool,
    ) -> Tensor:
        """Return the layer's result, ``[images, out, height, width]`` in channels-last layout.

        Args:
            x: ``[images, in, height, width]`` in channels-last layout.
            residual: of the result's shape and layout, or None.
            add: what members add.
            rows: ``[images]``: the row of each image's pair.
            signs: ``[images]``: of each image's member.
            overwrite: whether the residual's memory may hold the result.
        """
        out = add.room(x, residual, overwrite)
        after = self._after.native
        add.native.convolve(x, self._weights, self._shift, after, residual, out, rows, signs)
        return out
