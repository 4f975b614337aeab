"""What stands behind a layer: a scale and a shift, a residual, and an activation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tinkering.graph.activation import Activation
from tinkering.native import after as native
from tinkering.native import calls


@dataclass(frozen=True)
class Affine:
    """A scale and a shift for every channel, in float32."""

    scale: Tensor
    """``[out]``"""
    shift: Tensor
    """``[out]``: what is added in the end."""


@dataclass(frozen=True)
class After:
    """``act(x * scale + shift + residual)``, where members have noise of their own.

    Example:
        >>> after = After(None, Affine(torch.full((1,), 2.0), torch.ones(1)))
        >>> rows, signs = torch.zeros(1, dtype=torch.int64), torch.ones(1)
        >>> after(torch.full((1, 1, 1, 1), 3.0), None, rows, signs).item()
        7.0
    """

    activation: Activation | None
    affine: Affine | None = None
    """Of the centre; None where there is none."""
    noise: tuple[Tensor | None, Tensor | None] = (None, None)
    """Of the scale and of the shift, ``[pairs, channels]`` each, or None."""
    sigma: float = 0.0
    """Multiplies the noise."""

    @cached_property
    def native(self) -> native.After:
        """The same for the kernels."""
        code = native.NOTHING if self.activation is None else self.activation.code
        if self.affine is None:
            return native.After(code)
        scale, shift = self.affine.scale.contiguous(), self.affine.shift.contiguous()
        return native.After(code, scale, self.noise[0], shift, self.noise[1], self.sigma)

    def __call__(self, x: Tensor, residual: Tensor | None, rows: Tensor, signs: Tensor) -> Tensor:
        """Return the result in memory of its own.

        Args:
            x: ``[images, channels, ...]``.
            residual: of the same shape, or None.
            rows: ``[images]``: the row of each image's pair.
            signs: ``[images]``: of each image's member.
        """
        if x.dim() != 4 or not calls.available(x):
            return self.plain(x, residual, rows, signs)
        x = x.contiguous(memory_format=torch.channels_last)
        if residual is not None:
            residual = residual.to(x.dtype).contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x)
        native.affine(self.native, x, residual, out, rows, signs)
        return out

    def plain(self, x: Tensor, residual: Tensor | None, rows: Tensor, signs: Tensor) -> Tensor:
        """Return the same by PyTorch's own operations, perhaps in the memory of `x`."""
        if self.affine is not None:
            amount = (signs * self.sigma).unsqueeze(1)
            scales, shifts = (
                own if noise is None else own + noise[rows] * amount
                for own, noise in zip(
                    (self.affine.scale, self.affine.shift), self.noise, strict=True
                )
            )
            spread = (-1, x.shape[1], *[1] * (x.dim() - 2))
            x = torch.addcmul(shifts.view(spread), x.float(), scales.view(spread)).to(x.dtype)
        return finished(x, residual, self.activation)


def finished(out: Tensor, other: Tensor | None, activation: Activation | None) -> Tensor:
    """Return a result of one's own, completed in place."""
    if other is not None:
        out += other
    return out if activation is None else activation(out)
