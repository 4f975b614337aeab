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
    outs: Sequence[Float[Tensor, "..."]],
    quantiles: Float[Tensor, "65536"],
) -> bool:
    """Write sixteen numbers a block, stretch by stretch; return False without compiled kernels.

    A block is the four words that Philox 4x64-10 gives for a counter, and a word is four
    numbers, the lowest bits first. The counters of a stretch are ``(first + 1 + block,
    generation, 0, 0)`` with ``block`` from 0, where the first word wraps around; its key is
    ``(seed, key)``. All of them are words of 64 bits.

    Threads may call this at once: it works outside Python's lock.

    Args:
        seed: the first word of every key.
        keys: the second word, of each stretch.
        firsts: the counter's first word before the first block, as numpy takes it.
        generation: the counter's second word.
        outs: written to, of each stretch: float32, contiguous, a multiple of sixteen.
        quantiles: the number that stands for each value of sixteen bits; float32, contiguous.

    Example:
        >>> table, out = torch.arange(2.0**16), torch.full((3, 16), -1.0)
        >>> written = normals(0, [7], [0], 0, [out], quantiles=table)
        >>> written == bool((out >= 0).all())
        True
    """
    built = library()
    if built is None:
        return False
    words, pointers = ctypes.c_uint64 * len(keys), ctypes.c_void_p * len(keys)
    _kernel(built)(
        len(keys),
        seed,
        words(*keys),
        words(*firsts),
        generation,
        words(*[out.numel() // 16 for out in outs]),
        quantiles.data_ptr(),
        pointers(*[out.data_ptr() for out in outs]),
    )
    return True


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
    outs = ctypes.POINTER(pointer)
    kernel.argtypes = [ctypes.c_int64, word, words, words, word, words, pointer, outs]
    kernel.restype = None
    return kernel


@cache
def _sign_kernel(built: ctypes.CDLL) -> Callable[..., None]:
    kernel = built.signs
    kernel.argtypes = [*[ctypes.c_uint64] * 5, ctypes.c_void_p]
    kernel.restype = None
    return kernel
