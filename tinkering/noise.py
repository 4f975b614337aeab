"""Evolutionary noise as a pure function of (seed, generation, pair, parameter name).

Nothing is stored between calls: the same arguments give the same numbers, whichever
part of a population is asked for and in whatever order. The source is the counter-based
generator Philox 4x64-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as
1, 2, 3"): the key is (seed, parameter name), the counter (block, generation), and every
pair owns a run of blocks of its own.

Sixteen random bits become a normal number by a table of 65,536 equally likely quantiles.
That needs no logarithm or cosine for a number, which would cost more and differ in the last
bit between machines; the tails end at 4.3 standard deviations.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tinkering.errors import ArgumentError

_WORDS_PER_BLOCK = 4
_NORMALS_PER_BLOCK = 4 * _WORDS_PER_BLOCK


@dataclass(frozen=True)
class Stream:
    """Where noise is read from: everything but the parameter's name and the pair."""

    seed: int
    generation: int

    def normals(self, name: str, pairs: range, count: int) -> Float[Tensor, "pairs count"]:
        """Return `count` standard normals for each pair of a contiguous range.

        Args:
            name: the parameter's name; other names give independent numbers.
            pairs: the pairs wanted, ``range(start, stop)``.
            count: numbers a pair. It is part of the address: asking for more numbers
                gives other numbers.

        Example:
            >>> stream = Stream(seed=0, generation=3)
            >>> whole = stream.normals("linear.weight", range(0, 10), 5)
            >>> part = stream.normals("linear.weight", range(7, 9), 5)
            >>> torch.equal(whole[7:9], part)
            True
        """
        blocks = math.ceil(count / _NORMALS_PER_BLOCK)
        words = self._words(name, first_block=pairs.start * blocks, blocks=len(pairs) * blocks)
        bits = torch.from_numpy(words.view(np.uint16).astype(np.int32))
        return _quantiles().index_select(0, bits).view(len(pairs), -1)[:, :count]

    def _words(self, name: str, first_block: int, blocks: int) -> np.ndarray:
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        key = np.array([self.seed, int.from_bytes(digest, "little")], dtype=np.uint64)
        counter = np.array([first_block, self.generation, 0, 0], dtype=np.uint64)
        words: np.ndarray = np.random.Philox(key=key, counter=counter).random_raw(
            blocks * _WORDS_PER_BLOCK
        )
        return words


@cache
def _quantiles() -> Float[Tensor, "65536"]:
    """Return the normal quantiles of 65,536 equal shares, scaled to unit variance."""
    shares = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    quantiles = torch.special.ndtri(shares)
    scaled: Tensor = quantiles / quantiles.square().mean().sqrt()
    return scaled.float()


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
        left = self.scaled(weights).left.flatten(0, 1)
        right = self.right.flatten(0, 1)
        product = (left.flatten(1).T @ right).view(*left.shape[1:], right.shape[1])
        return product.movedim((-2, -1), (0, 1)).contiguous()  # [*kernel, out, in] before


@runtime_checkable
class Noise(Protocol):
    """A kind of noise: how a parameter's perturbation is built from normals."""

    def draw(self, stream: Stream, name: str, shape: Sequence[int], pairs: range) -> Factors:
        """Return the noise of one parameter, with unit variance for every entry."""


@dataclass(frozen=True)
class Dense:
    """Independent standard normals for every entry."""

    def draw(self, stream: Stream, name: str, shape: Sequence[int], pairs: range) -> Factors:
        """Return `DenseFactors` of shape ``[pairs, *shape]``."""
        values = stream.normals(name, pairs, math.prod(shape))
        return DenseFactors(values.reshape(len(pairs), *shape))


@dataclass(frozen=True)
class LowRank:
    """Products of thin normal matrices: far fewer numbers, and a far cheaper forward.

    "Evolution Strategies at the Hyperscale" (EGGROLL, arXiv 2511.16652), there
    for matrices; a convolution's kernel counts as a matrix of (outputs x taps) by inputs.
    Entries have mean 0 and variance 1, but are not normal: at rank 1 they are products of
    two normals. Vectors, and weights that the factors would not make smaller, get `Dense`
    noise.

    Args:
        rank: products that are summed, at least 1.

    Example:
        >>> factors = LowRank(rank=1).draw(Stream(0, 0), "conv", (16, 8, 3, 3), range(4))
        >>> factors.left.shape, factors.right.shape, factors.dense().shape
        (torch.Size([4, 1, 3, 3, 16]), torch.Size([4, 1, 8]), torch.Size([4, 16, 8, 3, 3]))
    """

    rank: int = 1

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ArgumentError("rank", "an integer of at least 1", self.rank)

    def draw(self, stream: Stream, name: str, shape: Sequence[int], pairs: range) -> Factors:
        """Return `LowRankFactors`, or `DenseFactors` where those are the smaller ones."""
        if len(shape) < 2:
            return Dense().draw(stream, name, shape, pairs)
        out, inputs, *kernel = shape
        rows = out * math.prod(kernel)
        if self.rank * (rows + inputs) >= rows * inputs:
            return Dense().draw(stream, name, shape, pairs)
        numbers = stream.normals(name, pairs, self.rank * (rows + inputs))
        left, right = torch.split(numbers, [self.rank * rows, self.rank * inputs], dim=1)
        return LowRankFactors(
            left.reshape(len(pairs), self.rank, *kernel, out) / math.sqrt(self.rank),
            right.reshape(len(pairs), self.rank, inputs),
        )
