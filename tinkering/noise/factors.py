"""Noise in the form it was drawn in: what the members of a population are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Factors(Protocol):
    """Noise for one parameter and a run of pairs or members, in the form it was drawn in."""

    def __getitem__(self, rows: Tensor | slice) -> Factors:
        """Return the noise of some rows, in their order; a row may come twice."""

    def scaled(self, scale: Float[Tensor, " rows"]) -> Factors:
        """Return the noise with each row multiplied by its number."""

    def dense(self) -> Float[Tensor, "rows *shape"]:
        """Return each row's noise in the parameter's shape."""

    def weighted_sum(self, weights: Float[Tensor, " rows"]) -> Float[Tensor, "*shape"]:
        """Return ``sum_i weights[i] * dense()[i]`` without building `dense`."""

    def transposed(self) -> Factors:
        """Return the noise of a matrix as that of its transpose."""


def on_device(factors: Factors, device: torch.device) -> Factors:
    """Return the same noise on another device."""
    moved: Factors = type(factors)(*(value.to(device) for value in vars(factors).values()))
    return moved


@dataclass(frozen=True)
class DenseFactors:
    """A number for every entry of the parameter: `values` is ``[rows, *shape]``."""

    values: Tensor

    def __getitem__(self, rows: Tensor | slice) -> DenseFactors:
        return DenseFactors(self.values[rows])

    def scaled(self, scale: Tensor) -> DenseFactors:
        """Return the noise with each row multiplied by its number."""
        return DenseFactors(self.values * scale.view(-1, *[1] * (self.values.dim() - 1)))

    def dense(self) -> Tensor:
        """Return each row's noise in the parameter's shape."""
        return self.values

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return ``sum_i weights[i] * dense()[i]``."""
        product: Tensor = torch.tensordot(weights, self.values, dims=1)
        return product

    def transposed(self) -> DenseFactors:
        """Return the noise of a matrix as that of its transpose."""
        return DenseFactors(self.values.mT)


@dataclass(frozen=True)
class LowRankFactors:
    """A weight ``[out, in, *kernel]`` as the product of two thin matrices.

    ``E[o, c, k] = sum_r left[r, k, o] * right[r, c]``: the kernel's taps stay with the
    outputs, so that the noise of a convolution is `rank` dot products over the channels
    of a pixel, and then a stencil over `rank` channels. Outputs come last, because that
    stencil is a matrix product over ranks and taps.
    """

    left: Tensor
    """``[rows, rank, *kernel, out]``"""
    right: Tensor
    """``[rows, rank, in]``"""

    def __getitem__(self, rows: Tensor | slice) -> LowRankFactors:
        return LowRankFactors(self.left[rows], self.right[rows])

    def scaled(self, scale: Tensor) -> LowRankFactors:
        """Return the noise with each row multiplied by its number."""
        return LowRankFactors(self.left * scale.view(-1, *[1] * (self.left.dim() - 1)), self.right)

    def dense(self) -> Tensor:
        """Return each row's noise in the parameter's shape."""
        return torch.einsum("nr...o,nrc->noc...", self.left, self.right)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return ``sum_i weights[i] * dense()[i]``."""
        # Rows and ranks are one long sum, so this is a single matrix product.
        left = self.left.flatten(0, 1)
        right = (self.right * weights.view(-1, 1, 1)).flatten(0, 1)
        product = (left.flatten(1).T @ right).view(*left.shape[1:], right.shape[1])
        return product.movedim((-2, -1), (0, 1)).contiguous()  # [*kernel, out, in] before

    def transposed(self) -> LowRankFactors:
        """Return the noise of a matrix as that of its transpose."""
        return LowRankFactors(self.right, self.left)


@dataclass(frozen=True)
class SeparableFactors:
    """A weight ``[out, in, *kernel]`` as products over its outputs, inputs and taps.

    ``E[o, c, k] = sum_r left[r, o] * right[r, c] * taps[r, k]``.
    """

    left: Tensor
    """``[rows, rank, out]``"""
    taps: Tensor
    """``[rows, rank, *kernel]``"""
    right: Tensor
    """``[rows, rank, in]``"""

    def __getitem__(self, rows: Tensor | slice) -> SeparableFactors:
        return SeparableFactors(self.left[rows], self.taps[rows], self.right[rows])

    def scaled(self, scale: Tensor) -> SeparableFactors:
        """Return the noise with each row multiplied by its number."""
        return SeparableFactors(self.left * scale.view(-1, 1, 1), self.taps, self.right)

    def low_rank(self) -> LowRankFactors:
        """Return the same noise with taps and outputs multiplied out."""
        rows, rank, out = self.left.shape
        left = self.left.view(rows, rank, *[1] * (self.taps.dim() - 2), out)
        return LowRankFactors(self.taps.unsqueeze(-1) * left, self.right)

    def dense(self) -> Tensor:
        """Return each row's noise in the parameter's shape."""
        return self.low_rank().dense()

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return ``sum_i weights[i] * dense()[i]``."""
        return self.low_rank().weighted_sum(weights)

    def transposed(self) -> SeparableFactors:
        """Return the noise of a matrix as that of its transpose."""
        return SeparableFactors(self.right, self.taps, self.left)
