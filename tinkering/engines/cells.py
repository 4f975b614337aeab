"""Cells: numbers of a layer's result that share a sign of noise, a channel's in a block of places.

Places are what a channel has many numbers for: an image's pixels, a sequence's positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Cells:
    """How the numbers of one example's result fall into cells; both with channels last.

    Example:
        >>> import torch
        >>> cells = cells_of(torch.zeros(1, 2, 3, 3), most=8)
        >>> cells.side, cells.count
        (2, 8)
        >>> ones = torch.ones(1, 18)
        >>> cells.summed(ones)
        tensor([[4., 4., 2., 2., 2., 2., 1., 1.]])
    """

    places: tuple[int, ...]
    """How long a channel is along each of its axes: an image's height and width."""
    channels: int
    side: int
    """How long a cell is along each of them."""

    @property
    def count(self) -> int:
        """Of the cells."""
        return math.prod(self._grid) * self.channels

    @cached_property
    def _grid(self) -> list[int]:
        return [-(-length // self.side) for length in self.places]

    def spread(self, values: Tensor) -> Tensor:
        """Return each cell's value for all of its numbers, ``[rows, numbers]``."""
        if self.side == 1:
            return values
        rows, sides = len(values), [self.side] * len(self.places)
        apart = [size for length in self._grid for size in (length, 1)]
        whole = [size for length in self._grid for size in (length, self.side)]
        padded = [length * side for length, side in zip(self._grid, sides, strict=True)]
        grid = values.view(rows, *apart, self.channels).expand(rows, *whole, self.channels)
        grid = grid.reshape(rows, *padded, self.channels)
        for axis, length in enumerate(self.places, start=1):
            grid = grid.narrow(axis, 0, length)
        return grid.reshape(rows, -1)

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum over each cell's numbers, ``[rows, cells]``."""
        if self.side == 1:
            return values
        more = [
            size
            for length, cells in zip(reversed(self.places), reversed(self._grid), strict=True)
            for size in (0, cells * self.side - length)
        ]
        grid = F.pad(values.view(len(values), *self.places, self.channels), [0, 0, *more])
        whole = [size for length in self._grid for size in (length, self.side)]
        within = [2 + 2 * axis for axis in range(len(self.places))]
        return grid.view(len(values), *whole, self.channels).sum(within).flatten(1)


def cells_of(result: Tensor, most: int, channel: int = 1) -> Cells:
    """Return the cells of a result: as small as `most` cells allow, and of equal sides.

    Where even a cell for each channel is more than that, it is a cell for each channel.

    Args:
        result: ``[examples, ...]``.
        most: cells.
        channel: the axis of its channels.
    """
    places = list(result.shape)
    channels = places.pop(channel)
    del places[0]
    cells = Cells(tuple(places), channels, 1)
    while cells.count > most and cells.side < max(places, default=1):
        cells = Cells(cells.places, channels, cells.side + 1)
    return cells
