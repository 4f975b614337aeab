"""Noise in the form it was drawn in: what the members of a population are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tinkering.native.sums import Part, Product
from tinkering.noise.products import adding


@runtime_checkable
class Factors(Protocol):
    """Noise for one parameter and a run of pairs or members, in the form it was drawn in."""

    def __getitem__(self, rows: Tensor | slice) -> Factors:
        """Return the noise of some rows, in their order; a row may come twice."""

    def scaled(self, scale: Float[Tensor, " rows"]) -> Factors:
        """Return the noise with each row multiplied by its number."""

    def dense(self) -> Float[Tensor, "rows *shape"]:
        """Return each row's noise in the parameter's shape."""

    def product(self) -> Product:
        """Return the noise as outer products, by which it is summed without `dense`."""

    def shaped(self, total: Float[Tensor, "lines columns"]) -> Float[Tensor, "*shape"]:
        """Return a sum of these products in the parameter's shape."""

    def transposed(self) -> Factors:
        """Return the noise of a matrix as that of its transpose."""


def weighted_sum(factors: Factors, weights: Float[Tensor, " rows"]) -> Float[Tensor, "*shape"]:
    """Return ``sum_i weights[i] * dense()[i]`` without building `dense`.

    Example:
        >>> noise = DenseFactors(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> weighted_sum(noise, torch.tensor([1.0, 10.0]))
        tensor([31., 42.])
    """
    product = factors.product()
    total = weights.new_zeros(product.matrix, dtype=torch.float32)
    adding([product], [total], weights)([Part(0, 0, total.shape[1])])
    return factors.shaped(total)


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

    def product(self) -> Product:
        """Return a column for every entry."""
        return Product(self.values.reshape(len(self.values), -1))

    def shaped(self, total: Tensor) -> Tensor:
        """Return the matrix in the parameter's shape."""
        return total.view(self.values.shape[1:])

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

    def product(self) -> Product:
        """Return inputs by taps and outputs: sums over many rows want many columns."""
        left, right = (side.flatten(2).flatten(0, 1) for side in (self.left, self.right))
        return Product(left, right, rank=self.left.shape[1])

    def shaped(self, total: Tensor) -> Tensor:
        """Return the matrix in the parameter's shape."""
        return _outputs_first(total, self.left.shape[2:])

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

    def product(self) -> Product:
        """Return inputs and taps by outputs."""
        left, right = (side.flatten(0, 1) for side in (self.left, self.right))
        return Product(left, right, self.taps.flatten(2).flatten(0, 1), rank=self.left.shape[1])

    def shaped(self, total: Tensor) -> Tensor:
        """Return the matrix in the parameter's shape."""
        return total.T.contiguous().view(-1, self.right.shape[2], *self.taps.shape[2:])

    def transposed(self) -> SeparableFactors:
        """Return the noise of a matrix as that of its transpose."""
        return SeparableFactors(self.right, self.taps, self.left)


def _outputs_first(total: Tensor, columns: Sequence[int]) -> Tensor:
    """Return a sum ``[in, kernel and out]`` as ``[out, in, *kernel]``; `columns` are the latter."""
    *kernel, out = columns
    turned = total.view(-1, out).T.contiguous()  # of a matrix, which is faster than of its parts
    return turned.view(out, len(total), *kernel)
