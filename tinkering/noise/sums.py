"""The weighted sum of members' noise, of which an estimate of a gradient is made.

It is a matrix product for each parameter, over all pairs: sum_i w_i E_i = (w right)^T left. The
parameters are cut into portions of about the same work, which are computed side by side, and each
adds up the blocks of pairs in their order: so the bits do not depend on who computes what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from tinkering.noise.blocks import Blocks
from tinkering.noise.factors import Factors, on_device

_PORTIONS = 16
"""Of the work, about."""
_UNIT = 16
"""Columns of a matrix that are not parted: a cache line of them."""


Mapped = Callable[[Callable[[Any], None], Sequence[Any]], Iterable[None]]
"""``map``, or what calls a function with several items side by side."""


@dataclass(frozen=True)
class Part:
    """Some columns of the matrix that a parameter's noise is summed in."""

    name: str
    columns: slice


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
    totals: dict[str, Tensor] = {}
    factors: dict[str, Factors] = {}
    portions: list[list[Part]] = []
    for block, some in blocks.over(pairs):
        _exhaust(mapped(block.fill, block.missing(some)))
        factors = block.draw(some)
        if weights.device.type != "cpu":
            factors = {name: on_device(each, weights.device) for name, each in factors.items()}
        if not totals:
            totals = {name: weights.new_zeros(each.matrix) for name, each in factors.items()}
            portions = list(_portions(factors))
        here = weights[some.start - pairs.start : some.stop - pairs.start]
        _exhaust(mapped(partial(_add, totals, factors, here), portions))
    return {name: each.shaped(totals[name]) for name, each in factors.items()}


def _add(
    totals: Mapping[str, Tensor],
    factors: Mapping[str, Factors],
    weights: Tensor,
    portion: Sequence[Part],
) -> None:
    for part in portion:
        total = totals[part.name][:, part.columns]
        factors[part.name].add_weighted(total, weights, part.columns)


def _portions(factors: Mapping[str, Factors]) -> Iterator[list[Part]]:
    """Yield parts of all matrices, as many at a time as are about an equal share of the work."""
    sizes = {name: each.matrix for name, each in factors.items()}
    share = sum(lines * columns for lines, columns in sizes.values()) / _PORTIONS
    portion: list[Part] = []
    work = 0
    for name, (lines, columns) in sizes.items():
        step = max(_UNIT, int(share / lines) // _UNIT * _UNIT)
        for start in range(0, columns, step):
            part = Part(name, slice(start, min(start + step, columns)))
            portion.append(part)
            work += lines * (part.columns.stop - start)
            if work >= share:
                yield portion
                portion, work = [], 0
    if portion:
        yield portion


def _exhaust(results: Iterable[None]) -> None:
    for _ in results:
        pass
