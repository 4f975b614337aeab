"""Kinds of noise: how a parameter's perturbation is built from standard normals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tinkering.noise.factors import DenseFactors, Factors, LowRankFactors, SeparableFactors
from tinkering.noise.stream import Stream
from tinkering.ranges import require_at_least


@runtime_checkable
class Noise(Protocol):
    """A kind of noise: how a parameter's perturbation is built from standard normals."""

    def count(self, shape: Sequence[int]) -> int:
        """Return how many normals a perturbation of a parameter of this shape takes."""

    def build(self, normals: Float[Tensor, "pairs count"], shape: Sequence[int]) -> Factors:
        """Return the noise of one parameter, with unit variance for every entry."""


def draw(
    kind: Noise, stream: Stream, shapes: Mapping[str, Sequence[int]], pairs: range
) -> dict[str, Factors]:
    """Return the noise of some parameters, for each pair of a contiguous range.

    Args:
        kind: of the noise.
        stream: where its normals are read.
        shapes: of the parameters, by name.
        pairs: the pairs wanted, ``range(start, stop)``.

    Raises:
        ArgumentError: (a ``ValueError``) as `Stream.normals` does.

    Example:
        >>> factors = draw(Dense(), Stream(seed=0, generation=3), {"bias": (4,)}, range(8))
        >>> factors["bias"].dense().shape
        torch.Size([8, 4])
    """
    normals = stream.many({name: kind.count(shape) for name, shape in shapes.items()}, pairs)
    return {name: kind.build(normals[name], shape) for name, shape in shapes.items()}


@dataclass(frozen=True)
class Dense:
    """Independent standard normals for every entry."""

    def count(self, shape: Sequence[int]) -> int:
        """Return the entries of the shape."""
        return math.prod(shape)

    def build(self, normals: Tensor, shape: Sequence[int]) -> Factors:
        """Return `DenseFactors` of shape ``[pairs, *shape]``."""
        return DenseFactors(normals.reshape(len(normals), *shape))


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
        >>> shapes = {"conv": (16, 8, 3, 3)}
        >>> factors = draw(LowRank(rank=1), Stream(0, 0), shapes, range(4))["conv"]
        >>> factors.left.shape, factors.right.shape, factors.dense().shape
        (torch.Size([4, 1, 3, 3, 16]), torch.Size([4, 1, 8]), torch.Size([4, 16, 8, 3, 3]))
    """

    rank: int = 1

    def __post_init__(self) -> None:
        require_at_least(1, rank=self.rank)

    def count(self, shape: Sequence[int]) -> int:
        """Return the numbers of both factors, or the entries where those are fewer."""
        return min(sum(self._sizes(shape)), math.prod(shape))

    def build(self, normals: Tensor, shape: Sequence[int]) -> Factors:
        """Return `LowRankFactors`, or `DenseFactors` where those are the smaller ones."""
        sizes = self._sizes(shape)
        if sum(sizes) >= math.prod(shape):
            return Dense().build(normals, shape)
        out, inputs, *kernel = shape
        left, right = torch.split(normals, sizes, dim=1)
        left = left.reshape(len(normals), self.rank, *kernel, out)
        right = right.reshape(len(normals), self.rank, inputs)
        return LowRankFactors(_shared_variance(left, self.rank), right)

    def _sizes(self, shape: Sequence[int]) -> list[int]:
        """Return how many numbers each factor has; a vector has but one."""
        if len(shape) < 2:
            return [math.prod(shape)]
        out, inputs, *kernel = shape
        return [self.rank * out * math.prod(kernel), self.rank * inputs]


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
        >>> shapes = {"conv": (16, 8, 3, 3)}
        >>> factors = draw(Separable(rank=1), Stream(0, 0), shapes, range(4))["conv"]
        >>> factors.left.shape, factors.taps.shape, factors.right.shape
        (torch.Size([4, 1, 16]), torch.Size([4, 1, 3, 3]), torch.Size([4, 1, 8]))
        >>> factors.dense().shape
        torch.Size([4, 16, 8, 3, 3])
    """

    rank: int = 1

    def __post_init__(self) -> None:
        require_at_least(1, rank=self.rank)

    def count(self, shape: Sequence[int]) -> int:
        """Return the numbers of all factors, or the entries where those are fewer."""
        if math.prod(shape[2:]) == 1:
            return LowRank(self.rank).count(shape)
        return min(sum(self._sizes(shape)), math.prod(shape))

    def build(self, normals: Tensor, shape: Sequence[int]) -> Factors:
        """Return `SeparableFactors`; for one tap `LowRankFactors`; dense if that is smaller."""
        if math.prod(shape[2:]) == 1:
            return LowRank(self.rank).build(normals, shape)
        sizes = self._sizes(shape)
        if sum(sizes) >= math.prod(shape):
            return Dense().build(normals, shape)
        out, inputs, *kernel = shape
        rows = len(normals), self.rank
        left, taps, right = torch.split(normals, sizes, dim=1)
        left = _shared_variance(left.reshape(*rows, out), self.rank)
        return SeparableFactors(left, taps.reshape(*rows, *kernel), right.reshape(*rows, inputs))

    def _sizes(self, shape: Sequence[int]) -> list[int]:
        """Return how many numbers each factor has, of a weight with several taps."""
        out, inputs, *kernel = shape
        return [self.rank * out, self.rank * math.prod(kernel), self.rank * inputs]


def _shared_variance(left: Tensor, rank: int) -> Tensor:
    """Return factors of which `rank` products sum to unit variance; no copy for one."""
    return left if rank == 1 else left / math.sqrt(rank)
