"""Evolutionary noise as a pure function of (seed, generation, pair, parameter name).

Nothing is stored between calls: the same arguments give the same numbers, whichever
part of a population is asked for and in whatever order. The source is the counter-based
generator Philox 4x64-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as
1, 2, 3"): the key is (seed, parameter name), the counter (block, generation), and every
pair owns a run of blocks of its own.

Sixteen random bits become a normal number by a table of 65,536 equally likely quantiles.
That needs no logarithm or cosine for a number, which would cost more and differ in the last
bit between machines; the tails end at 4.3 standard deviations.

A compiled kernel does both in one pass. Where there is none, numpy's generator gives the
same numbers bit for bit, at about half the speed. Several threads may draw at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tinkering.errors import ArgumentError
from tinkering.native import philox

_WORDS = 2**64
_WORDS_PER_BLOCK = 4
_NORMALS_PER_BLOCK = 4 * _WORDS_PER_BLOCK


@dataclass(frozen=True)
class Stream:
    """Where noise is read from: everything but the parameter's name and the pair.

    Args:
        seed: 0 to 2^64 - 1.
        generation: 0 to 2^64 - 1.

    Raises:
        ArgumentError: (a ``ValueError``) one of them is out of range.
    """

    seed: int
    generation: int

    def __post_init__(self) -> None:
        for argument in ("seed", "generation"):
            if not 0 <= getattr(self, argument) < _WORDS:
                came = getattr(self, argument)
                raise ArgumentError(argument, "an integer from 0 to 2^64 - 1", came)

    def normals(self, name: str, pairs: range, count: int) -> Float[Tensor, "pairs count"]:
        """Return `count` standard normals for each pair of a contiguous range.

        Args:
            name: the parameter's name; other names give independent numbers.
            pairs: the pairs wanted, ``range(start, stop)``.
            count: numbers a pair. It is part of the address: asking for more numbers
                gives other numbers.

        Raises:
            ArgumentError: (a ``ValueError``) `pairs` has a step, or leaves the counter's
                2^64 blocks.

        Example:
            >>> stream = Stream(seed=0, generation=3)
            >>> whole = stream.normals("linear.weight", range(0, 10), 5)
            >>> part = stream.normals("linear.weight", range(7, 9), 5)
            >>> torch.equal(whole[7:9], part)
            True
        """
        blocks = math.ceil(count / _NORMALS_PER_BLOCK)
        stop = pairs.start + len(pairs)
        if pairs.start < 0 or pairs != range(pairs.start, stop) or stop * blocks >= _WORDS:
            most = (_WORDS - 1) // max(blocks, 1)
            needed = f"a range from at least 0 to at most {most}, in steps of 1"
            raise ArgumentError("pairs", needed, pairs)
        first, total = pairs.start * blocks, len(pairs) * blocks
        numbers = philox.normals(self._key(name), first, int(self.generation), total, _quantiles())
        if numbers is None:
            numbers = _normals(self._words(name, first, total))
        return numbers.view(len(pairs), blocks * _NORMALS_PER_BLOCK)[:, :count]

    def _key(self, name: str) -> tuple[int, int]:
        return int(self.seed), _digest(name)

    def _words(self, name: str, first_block: int, blocks: int) -> np.ndarray:
        """Return the generator's words, from numpy."""
        key = np.array(self._key(name), dtype=np.uint64)
        counter = np.array([first_block, self.generation, 0, 0], dtype=np.uint64)
        words: np.ndarray = np.random.Philox(key=key, counter=counter).random_raw(
            blocks * _WORDS_PER_BLOCK
        )
        return words


@lru_cache(maxsize=4096)
def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _normals(words: np.ndarray) -> Float[Tensor, " normals"]:
    """Return four normals for each 64-bit word, the lowest bits first."""
    # Little-endian wherever this runs; there, and only there, this copies nothing.
    bits = words.astype("<u8", copy=False).view("<u2").astype(np.int32)
    return _quantiles().index_select(0, torch.from_numpy(bits))


# Threads that race for the first call each compute the same table, and keep their own.
@cache
def _quantiles() -> Float[Tensor, "65536"]:
    """Return the normal quantiles of 65,536 equal shares, scaled to unit variance."""
    shares = (torch.arange(2**16, dtype=torch.float64, device="cpu") + 0.5) / 2**16
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
        _check_rank(self.rank)

    def draw(self, stream: Stream, name: str, shape: Sequence[int], pairs: range) -> Factors:
        """Return `LowRankFactors`, or `DenseFactors` where those are the smaller ones."""
        if len(shape) >= 2:
            out, inputs, *kernel = shape
            factors = _draw(stream, name, shape, pairs, self.rank, [(*kernel, out), (inputs,)])
            if factors is not None:
                left, right = factors
                return LowRankFactors(_shared_variance(left, self.rank), right)
        return Dense().draw(stream, name, shape, pairs)


@dataclass(frozen=True)
class Separable:
    """Products over outputs, inputs and taps: the fewest numbers, the cheapest forward.

    ``E[o, c, k] = sum_r a[r, o] * b[r, c] * t[r, k] / sqrt(rank)``, where a, b and t are
    standard normals. In a convolution's forward each rank is a dot product over the channels
    of a pixel, a stencil over that one channel, and an outer product with the outputs. Those
    are the fewest passes: ``in + taps + out`` multiplications a pixel, where `LowRank`, with
    taps of its own for each output, has ``in + taps * out``.

    Entries have mean 0 and variance 1, with heavier tails than those of `LowRank`: at rank 1
    they are products of three normals, which have a kurtosis of 27 (of two: 9; one: 3). At
    rank r it is ``3 + 24 / r``.

    Weights with a single tap, so those of linear layers too, get `LowRank` noise of the same
    rank. Vectors, and weights that the factors would not make smaller, get `Dense` noise.

    Args:
        rank: products that are summed, at least 1.

    Example:
        >>> factors = Separable(rank=1).draw(Stream(0, 0), "conv", (16, 8, 3, 3), range(4))
        >>> factors.left.shape, factors.taps.shape, factors.right.shape
        (torch.Size([4, 1, 16]), torch.Size([4, 1, 3, 3]), torch.Size([4, 1, 8]))
        >>> factors.dense().shape
        torch.Size([4, 16, 8, 3, 3])
    """

    rank: int = 1

    def __post_init__(self) -> None:
        _check_rank(self.rank)

    def draw(self, stream: Stream, name: str, shape: Sequence[int], pairs: range) -> Factors:
        """Return `SeparableFactors`; for one tap `LowRankFactors`; dense if that is smaller."""
        if math.prod(shape[2:]) == 1:
            return LowRank(self.rank).draw(stream, name, shape, pairs)
        out, inputs, *kernel = shape
        factors = _draw(stream, name, shape, pairs, self.rank, [(out,), kernel, (inputs,)])
        if factors is None:
            return Dense().draw(stream, name, shape, pairs)
        left, taps, right = factors
        return SeparableFactors(_shared_variance(left, self.rank), taps, right)


def _check_rank(rank: int) -> None:
    if rank < 1:
        raise ArgumentError("rank", "an integer of at least 1", rank)


def _shared_variance(left: Tensor, rank: int) -> Tensor:
    """Return factors of which `rank` products sum to unit variance; no copy for one."""
    return left if rank == 1 else left / math.sqrt(rank)


def _draw(
    stream: Stream,
    name: str,
    shape: Sequence[int],
    pairs: range,
    rank: int,
    axes: Sequence[Sequence[int]],
) -> list[Tensor] | None:
    """Return normals ``[pairs, rank, *axis]`` for each axis; None if they outnumber a weight's."""
    sizes = [rank * math.prod(axis) for axis in axes]
    if sum(sizes) >= math.prod(shape):
        return None
    parts = torch.split(stream.normals(name, pairs, sum(sizes)), sizes, dim=1)
    return [part.reshape(len(pairs), rank, *axis) for part, axis in zip(parts, axes, strict=True)]
