"""Seeded permutations as a pure function: the same numbers give the same order, always."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from jaxtyping import Int64

from tinkering.errors import ArgumentError


class Purpose(IntEnum):
    """What random numbers are for; two purposes never draw the same random numbers."""

    BATCHES = 1
    SUBSET = 2
    SHIFTS = 3


def check_seed(seed: int) -> None:
    """Refuse a seed that is not one half of a Philox key.

    Raises:
        ArgumentError: `seed` is negative or needs more than 64 bits.
    """
    if not 0 <= seed < 2**64:
        raise ArgumentError("seed", "an integer from 0 to 2**64 - 1", seed)


def permutation(
    size: int, *, seed: int, stream: int, purpose: Purpose
) -> Int64[np.ndarray, " size"]:
    """Return the numbers ``0 .. size - 1`` in an order that depends on the arguments alone.

    Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the
    key ``(seed, stream)`` draws 64 bits for each number, and the numbers are sorted by
    their bits. NumPy keeps the bits of its generators the same from release to release,
    but not what `numpy.random.Generator.permutation` makes of them.

    Args:
        size: how many numbers.
        seed: the user's seed, of at most 64 bits.
        stream: which of the permutations of that seed, of at most 64 bits.
        purpose: what for.

    Example:
        >>> permutation(5, seed=0, stream=0, purpose=Purpose.BATCHES)
        array([4, 2, 0, 1, 3])
        >>> permutation(5, seed=0, stream=1, purpose=Purpose.BATCHES)
        array([0, 1, 4, 2, 3])
    """
    key = np.array([seed, stream], dtype=np.uint64)
    # The generator counts up from the first word; the last one keeps the purposes apart.
    counter = np.array([0, 0, 0, purpose], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=counter).random_raw(size)
    return np.argsort(bits, kind="stable").astype(np.int64, copy=False)
