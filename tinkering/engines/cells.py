"""Cells: numbers of a layer's result that share a sign of noise, a channel's pixels in a square."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Cells:
    """How the numbers of one image's result fall into cells.

    Both are in the order of channels last. Results that are no images have a cell for each number.

    Example:
        >>> import torch
        >>> cells = cells_of(torch.zeros(1, 2, 3, 3), most=8)
        >>> cells.side, cells.count
        (2, 8)
        >>> ones = torch.ones(1, 18)
        >>> cells.summed(ones)
        tensor([[4., 4., 2., 2., 2., 2., 1., 1.]])
    """

    shape: tuple[int, ...]
    """Of a result, channels last."""
    side: int
    """Of a square, in pixels."""

    @property
    def count(self) -> int:
        """Of the cells."""
        height, width, channels = self._grid
        return height * width * channels

    @property
    def _grid(self) -> tuple[int, int, int]:
        height, width, channels = self.shape if len(self.shape) == 3 else (1, 1, _size(self.shape))
        return -(-height // self.side), -(-width // self.side), channels

    def spread(self, values: Tensor) -> Tensor:
        """Return each cell's value for all of its numbers, ``[rows, numbers]``."""
        if self.side == 1:
            return values
        rows, (height, width, channels) = len(values), self._grid
        grid = values.view(rows, height, 1, width, 1, channels)
        whole = grid.expand(-1, -1, self.side, -1, self.side, -1)
        whole = whole.reshape(rows, height * self.side, width * self.side, channels)
        return whole[:, : self.shape[0], : self.shape[1]].reshape(rows, -1)

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum over each cell's numbers, ``[rows, cells]``."""
        if self.side == 1:
            return values
        images = values.view(len(values), *self.shape).permute(0, 3, 1, 2)
        sums = F.avg_pool2d(images, self.side, ceil_mode=True, divisor_override=1)
        return sums.permute(0, 2, 3, 1).flatten(1)


def cells_of(result: Tensor, most: int) -> Cells:
    """Return the cells of a result ``[images, ...]``: squares as small as `most` cells allow.

    Where even a cell for each channel is more than that, it is a cell for each channel.
    """
    if result.dim() != 4:
        return Cells(tuple(result.shape[1:]), 1)
    _, channels, height, width = result.shape
    shape, side = (height, width, channels), 1
    while side < max(height, width) and Cells(shape, side).count > most:
        side += 1
    return Cells(shape, side)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
