"""Evolutionary noise as a pure function of (seed, generation, pair, parameter name).

Nothing is stored between calls: the same arguments give the same numbers, whichever
part of a population is asked for and in whatever order. The source is the counter-based
generator Philox 4x64-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as
1, 2, 3"): the key is (seed, parameter name), the counter (block, generation), and every
pair owns a run of blocks of its own.

Sixteen random bits become a normal number by a table of 65,536 equally likely quantiles.
That needs no logarithm or cosine for a number, which would cost more and differ in the last
bit between machines; the tails end at 4.3 standard deviations.

A compiled kernel does both in one pass. Where there is none, numpy's generator gives the
same numbers bit for bit, at about half the speed. Several threads may draw at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tinkering.errors import ArgumentError
from tinkering.native import philox

_WORDS = 2**64
_WORDS_PER_BLOCK = 4
_NORMALS_PER_BLOCK = 4 * _WORDS_PER_BLOCK
_SIGNS_PER_BLOCK = 64 * _WORDS_PER_BLOCK


@dataclass(frozen=True)
class Stream:
    """Where noise is read from: everything but the parameter's name and the pair.

    Args:
        seed: 0 to 2^64 - 1.
        generation: 0 to 2^64 - 1.

    Raises:
        ArgumentError: (a ``ValueError``) one of them is out of range.
    """

    seed: int
    generation: int

    def __post_init__(self) -> None:
        for argument in ("seed", "generation"):
            if not 0 <= getattr(self, argument) < _WORDS:
                came = getattr(self, argument)
                raise ArgumentError(argument, "an integer from 0 to 2^64 - 1", came)

    def normals(self, name: str, pairs: range, count: int) -> Float[Tensor, "pairs count"]:
        """Return `count` standard normals for each pair of a contiguous range.

        Args:
            name: the parameter's name; other names give independent numbers.
            pairs: the pairs wanted, ``range(start, stop)``.
            count: numbers a pair. It is part of the address: asking for more numbers
                gives other numbers.

        Raises:
            ArgumentError: (a ``ValueError``) `pairs` has a step, or leaves the counter's
                2^64 blocks.

        Example:
            >>> stream = Stream(seed=0, generation=3)
            >>> whole = stream.normals("linear.weight", range(0, 10), 5)
            >>> part = stream.normals("linear.weight", range(7, 9), 5)
            >>> torch.equal(whole[7:9], part)
            True
        """
        return self.many({name: count}, pairs)[name]

    def many(self, counts: Mapping[str, int], pairs: range) -> dict[str, Tensor]:
        """Return what `normals` returns for each of several parameters, in one go.

        Args:
            counts: numbers a pair, by the parameters' names.
            pairs: as in `normals`.

        Raises:
            ArgumentError: (a ``ValueError``) as in `normals`.

        Example:
            >>> numbers = Stream(seed=0, generation=3).many({"weight": 20, "bias": 4}, range(8))
            >>> numbers["weight"].shape, numbers["bias"].shape
            (torch.Size([8, 20]), torch.Size([8, 4]))
        """
        widths = {name: padded(count) for name, count in counts.items()}
        numbers = torch.empty(len(pairs) * sum(widths.values()), device="cpu")
        rows = split_by_name(numbers, len(pairs), widths)
        self.write(rows, pairs)
        return {name: rows[name][:, :count] for name, count in counts.items()}

    def write(self, rows: Mapping[str, Tensor], pairs: range) -> None:
        """Write what `many` returns into memory that is given, of `padded` numbers a pair.

        Args:
            rows: ``[pairs, padded(count)]`` of each parameter, by its name; float32, contiguous.
            pairs: as in `normals`.

        Raises:
            ArgumentError: (a ``ValueError``) as in `normals`.

        Example:
            >>> stream, rows = Stream(seed=0, generation=3), torch.empty(8, padded(20))
            >>> stream.write({"weight": rows}, range(8))
            >>> torch.equal(rows[:, :20], stream.normals("weight", range(8), 20))
            True
        """
        blocks = [out.shape[1] // _NORMALS_PER_BLOCK for out in rows.values()]
        _check_pairs(pairs, max(blocks, default=0))
        keys = [_digest(name) for name in rows]
        firsts = [pairs.start * each for each in blocks]
        outs = list(rows.values())
        if philox.normals(int(self.seed), keys, firsts, int(self.generation), outs, _quantiles()):
            return
        for key, first, out in zip(keys, firsts, outs, strict=True):
            words = self._words(key, first, out.numel() // _NORMALS_PER_BLOCK)
            out.copy_(_normals(words).view(out.shape))

    def signs(self, name: str, rows: range, count: int) -> Float[Tensor, "rows count"]:
        """Return `count` signs for each row of a contiguous range: +1 or -1, equally likely.

        They are noise of unit variance that costs a bit a number.

        Args:
            name: of what they are for; other names give independent signs.
            rows: the rows wanted, ``range(start, stop)``.
            count: signs a row; part of the address, as in `normals`.

        Returns:
            bfloat16, which holds them exactly.

        Raises:
            ArgumentError: (a ``ValueError``) as in `normals`, with `rows` called ``pairs``.

        Example:
            >>> whole = Stream(seed=0, generation=3).signs("stage", range(0, 10), 5)
            >>> torch.equal(whole[7:9], Stream(seed=0, generation=3).signs("stage", range(7, 9), 5))
            True
        """
        blocks = -(-count // _SIGNS_PER_BLOCK)
        _check_pairs(rows, blocks)
        key, first, total = _digest(name), rows.start * blocks, len(rows) * blocks
        seed, generation = int(self.seed), int(self.generation)
        numbers = philox.signs((seed, key), first, generation, total)
        if numbers is None:
            bits = np.unpackbits(
                self._words(key, first, total).astype("<u8").view(np.uint8), bitorder="little"
            )
            numbers = torch.from_numpy(1.0 - 2.0 * bits.astype(np.float32)).bfloat16()
        return numbers.view(len(rows), blocks * _SIGNS_PER_BLOCK)[:, :count]

    def _words(self, key: int, first_block: int, blocks: int) -> np.ndarray:
        """Return the generator's words, from numpy."""
        words: np.ndarray = np.random.Philox(
            key=np.array([self.seed, key], dtype=np.uint64),
            counter=np.array([first_block, self.generation, 0, 0], dtype=np.uint64),
        ).random_raw(blocks * _WORDS_PER_BLOCK)
        return words


def padded(count: int) -> int:
    """Return how many numbers the run of blocks has that `count` normals are the first of.

    Example:
        >>> padded(20), padded(16), padded(0)
        (32, 16, 0)
    """
    return -(-count // _NORMALS_PER_BLOCK) * _NORMALS_PER_BLOCK


def split_by_name(numbers: Tensor, rows: int, widths: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the parts of a vector, one after the other: ``[rows, width]`` for each name.

    Example:
        >>> parts = split_by_name(torch.arange(10), 2, {"a": 3, "b": 2})
        >>> parts["b"]
        tensor([[6, 7],
                [8, 9]])
    """
    parts = torch.split(numbers, [rows * width for width in widths.values()])
    pairs = zip(parts, widths.items(), strict=True)
    return {name: part.view(rows, width) for part, (name, width) in pairs}


def _check_pairs(pairs: range, blocks: int) -> None:
    stop = pairs.start + len(pairs)
    if pairs.start < 0 or pairs != range(pairs.start, stop) or stop * blocks >= _WORDS:
        most = (_WORDS - 1) // max(blocks, 1)
        needed = f"a range from at least 0 to at most {most}, in steps of 1"
        raise ArgumentError("pairs", needed, pairs)


@lru_cache(maxsize=4096)
def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _normals(words: np.ndarray) -> Float[Tensor, " normals"]:
    """Return four normals for each 64-bit word, the lowest bits first."""
    # Little-endian wherever this runs; there, and only there, this copies nothing.
    bits = words.astype("<u8", copy=False).view("<u2").astype(np.int32)
    return _quantiles().index_select(0, torch.from_numpy(bits))


# Threads that race for the first call each compute the same table, and keep their own.
@cache
def _quantiles() -> Float[Tensor, "65536"]:
    """Return the normal quantiles of 65,536 equal shares, scaled to unit variance."""
    shares = (torch.arange(2**16, dtype=torch.float64, device="cpu") + 0.5) / 2**16
    quantiles = torch.special.ndtri(shares)
    scaled: Tensor = quantiles / quantiles.square().mean().sqrt()
    return scaled.float()
