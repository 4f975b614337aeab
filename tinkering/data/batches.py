"""Which examples make up a generation's batch: a pure function of seed and generation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from tinkering.data.shuffle import Purpose, check_seed, permutation
from tinkering.ranges import require_at_least


@dataclass(frozen=True)
class BatchOrder:
    """The order in which a training set is walked, epoch after epoch.

    Each epoch is a permutation of all examples, drawn from ``(seed, epoch)``. Epochs
    follow one another without a gap, and generation ``g`` takes the positions from
    ``g * batch`` up to ``(g + 1) * batch``: a batch may straddle two epochs, or be
    larger than one. Nothing is remembered between calls, so a resumed run sees the
    batches it would have seen.

    Args:
        examples: size of the training set.
        batch: size of a batch.
        seed: from 0 to 2**64 - 1.

    Raises:
        ArgumentError: (a ``ValueError``) one of these is out of range.

    Example:
        >>> batches = BatchOrder(examples=5, batch=2, seed=0)
        >>> [batches.order(generation).tolist() for generation in range(5)]
        [[4, 2], [0, 1], [3, 0], [1, 4], [2, 3]]
        >>> batches.order(3).tolist()
        [1, 4]
    """

    examples: int
    batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(1, examples=self.examples, batch=self.batch)
        check_seed(self.seed)

    def order(self, generation: int) -> Int64[Tensor, " batch"]:
        """Return the indices of a generation's examples, ``int64 [batch]``.

        Args:
            generation: from 0.

        Raises:
            ArgumentError: (a ``ValueError``) `generation` is negative.
        """
        require_at_least(0, generation=generation)
        position, end = generation * self.batch, (generation + 1) * self.batch
        pieces = []
        while position < end:
            epoch, offset = divmod(position, self.examples)
            piece = _epoch(self.examples, self.seed, epoch)[offset : offset + end - position]
            pieces.append(piece)
            position += len(piece)
        return torch.from_numpy(np.concatenate(pieces))


# A batch that straddles two epochs needs both of them, the next one the second; and there
# may be a second walk over the same examples.
@lru_cache(maxsize=4)
def _epoch(examples: int, seed: int, epoch: int) -> Int64[np.ndarray, " examples"]:
    """Return the order of one epoch. It is shared between calls, hence read-only."""
    order = permutation(examples, seed=seed, stream=epoch, purpose=Purpose.BATCHES)
    order.flags.writeable = False
    return order
