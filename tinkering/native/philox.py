"""Normals of stretches of Philox blocks, in one pass and without intermediates."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from tinkering.native.build import library


def normals(
    seed: int,
    keys: Sequence[int],
    firsts: Sequence[int],
    generation: int,
    blocks: Sequence[int],
    quantiles: Float[Tensor, "65536"],
) -> Float[Tensor, " numbers"] | None:
    """Return sixteen numbers a block, stretch by stretch; None without compiled kernels.

    A block is the four words that Philox 4x64-10 gives for a counter, and a word is four
    numbers, the lowest bits first. The counters of a stretch are ``(first + 1 + block,
    generation, 0, 0)`` with ``block`` from 0, where the first word wraps around; its key is
    ``(seed, key)``. All of them are words of 64 bits.

    Threads may call this at once: it works outside Python's lock, on memory of its own.

    Args:
        seed: the first word of every key.
        keys: the second word, of each stretch.
        firsts: the counter's first word before the first block, as numpy takes it.
        generation: the counter's second word.
        blocks: how many, in each stretch.
        quantiles: the number that stands for each value of sixteen bits; float32, contiguous.

    Example:
        >>> table = torch.arange(2.0**16)
        >>> numbers = normals(0, [0, 1], [0, 0], 0, [3, 2], quantiles=table)
        >>> numbers is None or numbers.shape == (5 * 16,)
        True
    """
    built = library()
    if built is None:
        return None
    out = torch.empty(16 * sum(blocks), dtype=torch.float32, device="cpu")
    words = ctypes.c_uint64 * len(keys)
    _kernel(built)(
        len(keys),
        seed,
        words(*keys),
        words(*firsts),
        generation,
        words(*blocks),
        quantiles.data_ptr(),
        out.data_ptr(),
    )
    return out


def signs(
    key: tuple[int, int], first: int, generation: int, blocks: int
) -> Float[Tensor, " numbers"] | None:
    """Return 256 signs a block, +1 or -1 in bfloat16; None without compiled kernels.

    Args:
        key: of the stretch; the other arguments are as in `normals`.
        first: the counter's first word before the first block.
        generation: the counter's second word.
        blocks: how many.

    Example:
        >>> values = signs((0, 0), first=0, generation=0, blocks=3)
        >>> values is None or values.abs().sum().item() == 3 * 256
        True
    """
    built = library()
    if built is None:
        return None
    out = torch.empty(256 * blocks, dtype=torch.bfloat16, device="cpu")
    _sign_kernel(built)(*key, first, generation, blocks, out.data_ptr())
    return out


@cache
def _kernel(built: ctypes.CDLL) -> Callable[..., None]:
    """Return the function, which ctypes has been told the signature of."""
    kernel = built.normals
    word, words, pointer = ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64), ctypes.c_void_p
    kernel.argtypes = [ctypes.c_int64, word, words, words, word, words, pointer, pointer]
    kernel.restype = None
    return kernel


@cache
def _sign_kernel(built: ctypes.CDLL) -> Callable[..., None]:
    kernel = built.signs
    kernel.argtypes = [*[ctypes.c_uint64] * 5, ctypes.c_void_p]
    kernel.restype = None
    return kernel
