"""Normals of a stretch of Philox blocks, in one pass and without intermediates."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from tinkering.native.build import library


def normals(
    key: tuple[int, int],
    first: int,
    generation: int,
    blocks: int,
    quantiles: Float[Tensor, "65536"],
) -> Float[Tensor, "{blocks} 16"] | None:
    """Return sixteen numbers a block, or None where there are no compiled kernels.

    A block is the four words that Philox 4x64-10 gives for a counter, and a word is four
    numbers, the lowest bits first. The counters are ``(first + 1 + block, generation, 0, 0)``
    with ``block`` from 0, where the first word wraps around.

    Threads may call this at once: it works outside Python's lock, on memory of its own.

    Args:
        key: two words of 64 bits.
        first: the counter's first word before the first block, as numpy takes it; 64 bits.
        generation: the counter's second word; 64 bits.
        blocks: how many.
        quantiles: the number that stands for each value of sixteen bits; float32, contiguous.

    Example:
        >>> table = torch.arange(2.0**16)
        >>> numbers = normals((0, 0), first=0, generation=0, blocks=3, quantiles=table)
        >>> numbers is None or numbers.shape == (3, 16)
        True
    """
    built = library()
    if built is None:
        return None
    out = torch.empty(blocks, 16, dtype=torch.float32, device="cpu")
    kernel = _kernel(built)
    kernel(*key, first, generation, blocks, quantiles.data_ptr(), out.data_ptr())
    return out


@cache
def _kernel(built: ctypes.CDLL) -> Callable[..., None]:
    """Return the function, which ctypes has been told the signature of."""
    kernel = built.normals
    word, pointer = ctypes.c_uint64, ctypes.c_void_p
    kernel.argtypes = [word, word, word, word, ctypes.c_int64, pointer, pointer]
    kernel.restype = None
    return kernel
