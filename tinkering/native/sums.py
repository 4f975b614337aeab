"""Weighted sums of outer products, several of them in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinkering.native.build import library
from tinkering.native.calls import address, pointer, size, stride


@dataclass(frozen=True)
class Product:
    """A matrix ``[inputs x taps, columns]`` for each row: ``right_r x taps_r x left_r``."""

    left: Tensor
    """``[rows, columns]``"""
    right: Tensor | None = None
    """``[rows, inputs]``; None for a single one, that is 1."""
    taps: Tensor | None = None
    """``[rows, taps]``, likewise."""
    rank: int = 1
    """Rows beside each other that have the same weight."""

    @property
    def matrix(self) -> tuple[int, int]:
        """Lines and columns."""
        inputs, taps = (1 if side is None else side.shape[1] for side in (self.right, self.taps))
        return inputs * taps, self.left.shape[1]


class Part(NamedTuple):
    """Some columns of one of several products."""

    product: int
    start: int
    stop: int


class Sums:
    """What adds products to their totals, part by part; threads may call it at once.

    Args:
        products: float32 on the CPU, a row's numbers side by side; see `available`.
        totals: ``[lines, columns]`` of each, float32, contiguous.
        weights: of the rows, each for as many as the rank; float32, contiguous.
    """

    def __init__(
        self, products: Sequence[Product], totals: Sequence[Tensor], weights: Tensor
    ) -> None:
        told = [_told(each, total) for each, total in zip(products, totals, strict=True)]
        self._products = (_Product * len(told))(*told)
        self._weights = weights
        # Held, since the products are but addresses.
        self._held = list(products), list(totals)

    def __call__(self, parts: Sequence[Part]) -> None:
        """Add some parts of the sums."""
        numbers = [number for part in parts for number in part]
        given = (size * len(numbers))(*numbers)
        _kernel()(self._products, self._weights.data_ptr(), given, len(parts))


def available(products: Sequence[Product], weights: Tensor) -> bool:
    """Return whether `Sums` can work on some products."""
    return _fits(weights) and library() is not None and all(map(_is_plain, products))


def _is_plain(product: Product) -> bool:
    sides = (product.left, product.right, product.taps)
    return all(side is None or _fits(side) for side in sides)


def _fits(side: Tensor) -> bool:
    beside = side.stride(-1) == 1 or side.shape[-1] == 1
    return beside and side.device.type == "cpu" and side.dtype == torch.float32


class _Product(ctypes.Structure):
    """In step with ``Product`` in ``sums.h``."""

    _fields_ = (
        *[(name, pointer) for name in ("left", "right", "taps", "total")],
        *[(name, size) for name in ("left_step", "right_step", "taps_step")],
        *[(name, size) for name in ("rows", "rank", "lines", "columns", "of_taps")],
    )


def _told(product: Product, total: Tensor) -> _Product:
    left, right, taps = product.left, product.right, product.taps
    return _Product(
        *map(address, (left, right, taps, total)),
        *map(stride, (left, right, taps)),
        len(left),
        product.rank,
        *total.shape,
        1 if taps is None else taps.shape[1],
    )


@cache
def _kernel() -> Any:
    kernels = library()
    if kernels is None:
        raise RuntimeError("ask available() first")
    function = kernels.add_parts
    function.argtypes, function.restype = [pointer, pointer, pointer, size], None
    return function
