"""The weighted sum of members' noise, of which an estimate of a gradient is made.

It is a matrix product for each parameter, over all pairs: sum_i w_i E_i = (w right)^T left. These
are cut into portions of about the same work, which are computed side by side, and each adds up the
blocks of pairs in their order: so the bits do not depend on who computes what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from tinkering.native.sums import Part
from tinkering.noise.blocks import Blocks
from tinkering.noise.factors import Factors, on_device
from tinkering.noise.products import adding

_PORTIONS = 8
"""Of the work, about."""
_UNIT = 48
"""Columns of a matrix that are not parted: as many as a compiled kernel sums at a time."""


Mapped = Callable[[Callable[[Any], None], Sequence[Any]], Iterable[None]]
"""``map``, or what calls a function with several items side by side."""


def weighted_noise(
    blocks: Blocks, pairs: range, weights: Tensor, mapped: Mapped = map
) -> dict[str, Tensor]:
    """Return ``sum_i weights[i] * noise_i`` for every parameter, in its shape.

    No more is held at a time than a block, besides those that are kept.

    Args:
        blocks: of the noise.
        pairs: the pairs that are summed.
        weights: ``[pairs]`` of each of these, float32; the sum is computed on their device.
        mapped: how portions of the work are gone through.

    Example:
        >>> import torch
        >>> from tinkering.noise import Dense, Stream
        >>> from tinkering.noise.blocks import Address
        >>> address = Address(Dense(), Stream(0, 0), (("weight", (4,)),), pairs=10)
        >>> total = weighted_noise(Blocks(address, most=0), range(10), torch.ones(10))
        >>> total["weight"].shape
        torch.Size([4])
    """
    totals: list[Tensor] = []
    factors: dict[str, Factors] = {}
    portions: list[list[Part]] = []
    for block, some in blocks.over(pairs):
        _exhaust(mapped(block.fill, block.missing(some)))
        factors = block.draw(some)
        if weights.device.type != "cpu":
            factors = {name: on_device(each, weights.device) for name, each in factors.items()}
        products = [each.product() for each in factors.values()]
        if not totals:
            totals = [weights.new_zeros(each.matrix) for each in products]
            portions = list(_portions([each.matrix for each in products]))
        here = weights[some.start - pairs.start : some.stop - pairs.start]
        _exhaust(mapped(adding(products, totals, here), portions))
    named = zip(factors.items(), totals, strict=True)
    return {name: each.shaped(total) for (name, each), total in named}


def _portions(sizes: Sequence[tuple[int, int]]) -> Iterator[list[Part]]:
    """Yield parts of all matrices, as many at a time as are about an equal share of the work."""
    share = sum(lines * columns for lines, columns in sizes) / _PORTIONS
    portion: list[Part] = []
    work = 0
    for at, (lines, columns) in enumerate(sizes):
        step = max(_UNIT, int(share / lines) // _UNIT * _UNIT)
        for start in range(0, columns, step):
            part = Part(at, start, min(start + step, columns))
            portion.append(part)
            work += lines * (part.stop - start)
            if work >= share:
                yield portion
                portion, work = [], 0
    if portion:
        yield portion


def _exhaust(results: Iterable[None]) -> None:
    for _ in results:
        pass
