"""Weighted sums of outer products, by a compiled kernel where there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from tinkering.native import sums
from tinkering.native.sums import Part, Product

_ROWS = 64
"""That are multiplied out at a time."""


def adding(
    products: Sequence[Product], totals: Sequence[Tensor], weights: Tensor
) -> Callable[[Sequence[Part]], None]:
    """Return what adds some columns of weighted sums to their totals.

    Threads may call it at once, with parts of their own.

    Args:
        products: what is summed.
        totals: ``[lines, columns]`` of each, float32, contiguous.
        weights: ``[rows]``, each for as many rows as the rank; float32.

    Example:
        >>> import torch
        >>> product = Product(left=torch.ones(5, 3), right=torch.ones(5, 2))
        >>> total = torch.zeros(product.matrix)
        >>> adding([product], [total], torch.full((5,), 2.0))([Part(0, 0, 3)])
        >>> total
        tensor([[10., 10., 10.],
                [10., 10., 10.]])
    """
    if sums.available(products, weights):
        return sums.Sums(products, totals, weights)

    def add(parts: Sequence[Part]) -> None:
        for at, start, stop in parts:
            _add(products[at], totals[at], weights, slice(start, stop))

    return add


def _add(product: Product, total: Tensor, weights: Tensor, columns: slice) -> None:
    """Add some columns of a sum in plain PyTorch."""
    left, total = product.left[:, columns], total[:, columns]
    step = max(1, len(left)) if product.taps is None else _ROWS
    of_rows = weights.repeat_interleave(product.rank).unsqueeze(1)
    for some in (slice(at, at + step) for at in range(0, len(left), step)):
        lines = of_rows[some]
        if product.right is not None:
            lines = lines * product.right[some]
        if product.taps is not None:
            lines = (lines.unsqueeze(2) * product.taps[some].unsqueeze(1)).flatten(1)
        total.addmm_(lines.T, left[some])
