"""A generation's noise in blocks of pairs: drawn by whoever needs it first, kept where it fits.

Members are evaluated some at a time, and the noise of some is too little for a sum: matrix
products over few rows are slow. So a block has many rows, as many as follow from the sizes of
the noise alone, and is filled in pieces. A sum over blocks has the same bits whether they
were kept or are drawn again, and whoever drew them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakValueDictionary

import torch

from tinkering.noise.factors import Factors
from tinkering.noise.kinds import Noise, draw
from tinkering.noise.stream import Stream, padded, split_by_name

_BYTES = 64 << 20
"""Of a block, at most, as long as it has two rows."""
_ROWS = 4096
"""Of a block, at most: more make no matrix product faster."""
_PIECE = 64
"""Rows that a thread draws at a time, where it draws for a sum."""


@dataclass(frozen=True)
class Address:
    """Where noise is read from, and for what: all that it depends on."""

    kind: Noise
    stream: Stream
    shapes: tuple[tuple[str, Sequence[int]], ...]
    """Names and shapes of the parameters."""
    pairs: int
    """How many there are."""

    @cached_property
    def counts(self) -> dict[str, int]:
        """Normals that a pair takes for each parameter."""
        return {name: self.kind.count(shape) for name, shape in self.shapes}

    def draw(self, pairs: range) -> dict[str, Factors]:
        """Return the noise of some pairs, drawn now."""
        return draw(self.kind, self.stream, dict(self.shapes), pairs)


class Block:
    """The noise of some pairs that lie beside each other, drawn piece by piece.

    Args:
        address: of the noise.
        pairs: of the block.
    """

    def __init__(self, address: Address, pairs: range) -> None:
        self._address, self.pairs = address, pairs
        widths = {name: padded(count) for name, count in address.counts.items()}
        numbers = torch.empty(len(pairs) * sum(widths.values()), device="cpu")
        self._rows = split_by_name(numbers, len(pairs), widths)
        self._drawn = bytearray(len(pairs))
        whole = self._built(slice(None))
        views = all(_is_within(each, numbers) for each in whole.values())
        self._whole = whole if views else None
        """What is built of all numbers, those to come as well; None where it would copy them."""

    def draw(self, pairs: range) -> dict[str, Factors]:
        """Return the noise of some of the pairs.

        Threads may ask at once. Those that ask for the same pairs write the same numbers.
        """
        self.fill(pairs)
        part = self._part(pairs)
        if self._whole is None:
            return self._built(part)
        if pairs == self.pairs:
            return self._whole
        return {name: each[part] for name, each in self._whole.items()}

    def fill(self, pairs: range) -> None:
        """Draw some of the pairs, unless they were."""
        part = self._part(pairs)
        if not all(self._drawn[part]):
            rows = {name: numbers[part] for name, numbers in self._rows.items()}
            self._address.stream.write(rows, pairs)
            self._drawn[part] = bytes([1]) * len(pairs)

    def missing(self, pairs: range) -> list[range]:
        """Return those of some pairs that nobody has drawn yet, some beside each other at a time.

        Example:
            >>> from tinkering.noise import Dense
            >>> address = Address(Dense(), Stream(0, 0), (("weight", (4,)),), pairs=200)
            >>> block = Block(address, range(100, 200))
            >>> _ = block.draw(range(110, 120))
            >>> block.missing(range(100, 200))
            [range(100, 164), range(164, 200)]
        """
        starts = range(pairs.start, pairs.stop, _PIECE)
        pieces = [range(start, min(start + _PIECE, pairs.stop)) for start in starts]
        return [piece for piece in pieces if not all(self._drawn[self._part(piece)])]

    def _built(self, part: slice) -> dict[str, Factors]:
        counts, kind = self._address.counts, self._address.kind
        return {
            name: kind.build(self._rows[name][part, : counts[name]], shape)
            for name, shape in self._address.shapes
        }

    def _part(self, pairs: range) -> slice:
        return slice(pairs.start - self.pairs.start, pairs.stop - self.pairs.start)


def _is_within(factors: Factors, numbers: torch.Tensor) -> bool:
    """Return whether factors are but views of some numbers."""
    held = numbers.untyped_storage().data_ptr()
    return all(
        isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() == held
        for value in vars(factors).values()
    )


class Blocks:
    """The noise of a population, drawn when it is asked for; some of it is kept.

    Args:
        address: of the noise.
        most: bytes that may be kept, for as long as this lives.

    Example:
        >>> from tinkering.noise import LowRank
        >>> address = Address(LowRank(1), Stream(0, 0), (("weight", (16, 8, 3, 3)),), pairs=100)
        >>> noise = Blocks(address, most=1 << 20).draw(range(10, 14))
        >>> noise["weight"].left.shape
        torch.Size([4, 1, 3, 3, 16])
    """

    def __init__(self, address: Address, most: int) -> None:
        self.address = address
        row = 4 * sum(map(padded, address.counts.values()))
        fitting = max(1, min(_ROWS, _BYTES // max(1, row)))
        self._rows = 1 << (fitting.bit_length() - 1)
        # The first ones, whoever asks first.
        self._most = most // (row * self._rows) if row else 0
        self._kept: dict[int, Block] = {}
        self._lock = threading.Lock()

    def draw(self, pairs: range) -> dict[str, Factors]:
        """Return the noise of some pairs."""
        at = pairs.start // self._rows
        if at >= self._most or pairs.stop > (at + 1) * self._rows:
            return self.address.draw(pairs)
        return self._block(at).draw(pairs)

    def over(self, pairs: range) -> Iterator[tuple[Block, range]]:
        """Yield the blocks of some pairs in order, and which of these pairs each has."""
        for at in range(pairs.start // self._rows, -(-pairs.stop // self._rows)):
            block = self._block(at)
            start, stop = max(block.pairs.start, pairs.start), min(block.pairs.stop, pairs.stop)
            yield block, range(start, stop)

    def _block(self, at: int) -> Block:
        """Return a block: the one that is kept, or one in which nothing is drawn yet."""
        first = at * self._rows
        pairs = range(first, min(first + self._rows, self.address.pairs))
        if at >= self._most:
            return Block(self.address, pairs)
        with self._lock:
            if at not in self._kept:
                self._kept[at] = Block(self.address, pairs)
            return self._kept[at]


_living: WeakValueDictionary[tuple[Address, int], Blocks] = WeakValueDictionary()
_registering = threading.Lock()


def living(address: Address, most: int) -> Blocks:
    """Return the blocks of an address: the same ones for as long as somebody holds them.

    Who evaluates members and who sums their noise need not know of each other.

    Args:
        address: of the noise.
        most: bytes that may be kept.

    Example:
        >>> from tinkering.noise import Dense
        >>> address = Address(Dense(), Stream(0, 0), (("weight", (4,)),), pairs=10)
        >>> held = living(address, most=1 << 20)
        >>> living(address, most=1 << 20) is held
        True
    """
    with _registering:
        blocks = _living.get((address, most))
        if blocks is None:
            blocks = _living[address, most] = Blocks(address, most)
        return blocks
