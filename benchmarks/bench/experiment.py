"""What every experiment is made of: contenders, comparisons of them, and what they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch

from benchmarks.bench.clock import Contender, Rates, compare
from benchmarks.bench.judge import Figure, Row, Target
from benchmarks.bench.networks import network
from benchmarks.bench.pure import Pure
from benchmarks.bench.settings import Sizes

DTYPE = torch.bfloat16
"""Of pure inference, and of what is compared with it."""
_KEPT = 2
"""Sizes of tiles that pure inference is compiled for, and ways of it that run beside others."""
_LONG_ENOUGH = 3.0
"""Seconds that a reading of pure inference takes at most: its rate is known by then."""


@dataclass(frozen=True)
class Comparison:
    """A row to be: one contender, and what it is compared with."""

    name: str
    what: str
    of: str
    """The contender."""
    to: str = ""
    """Another contender; the best of several if they begin with it; "" for none."""
    unit: str = ""
    """What a ratio is called: ``"x vmap"``."""
    target: Target = field(default_factory=Target)


@dataclass
class Bench:
    """What all experiments of a run share.

    Args:
        sizes: how large everything is.
        rounds: readings of each contender.
        pattern: of the rows that are wanted; "" for all.
        shortest: seconds that a reading takes at least.
    """

    sizes: Sizes
    rounds: int = 5
    pattern: str = ""
    shortest: float = 0.2
    _pure: dict[tuple[str, int], tuple[Pure, list[str], int]] = field(default_factory=dict)
    """By network and width: the ways, the names of the fastest, and the images that suffice."""

    def wants(self, name: str) -> bool:
        """Return whether a row was asked for."""
        return matches(name, self.pattern)

    def compared(
        self, contenders: Sequence[Contender], comparisons: Sequence[Comparison]
    ) -> tuple[list[Row], Rates]:
        """Return the rows that are wanted, and the rates of the contenders they need."""
        wanted = [one for one in comparisons if self.wants(one.name)]
        needed = [
            contender
            for contender in contenders
            if any(_is_part(contender.name, one) for one in wanted)
        ]
        rates = compare(needed, self.rounds, self.shortest)
        return [_row(one, rates) for one in wanted], rates

    def pure(
        self, name: str, width: int, count: int
    ) -> Generator[Row, None, tuple[Contender, ...]]:
        """Yield the rows of pure inference the first time; return its fastest ways.

        Args:
            name: of the network.
            width: of the network.
            count: images that a contender evaluates, or fewer where they take long.
        """
        key = (name, width)
        if key not in self._pure:
            pure = Pure(network(name, width), DTYPE, self.sizes.compiled)
            tiles = {pure.pack(tile): tile for tile in self.sizes.tiles}
            # What suits one way suits the other: tiles that the caches hold, and are long enough.
            best = self._survey(pure, list(tiles)).ranked()[:_KEPT]
            rates = self._survey(pure, [*best, *(pure.freeze(tiles[way]) for way in best)])
            kept = rates.ranked()[:_KEPT]  # the first may have been lucky
            enough = math.ceil(_LONG_ENOUGH * rates.median(kept[0]))
            self._pure[key] = (pure, kept, enough)
            for way, readings in rates.readings.items():
                how, tile = way.split("-")
                yield Row(
                    f"{pure_name(name, width)}-{way}",
                    f"pure inference, {name} of width {width}, {how}, tiles of {tile}",
                    Figure(rates.median(way), "img/s"),
                    note="fastest" if way == kept[0] else "",
                    readings=tuple(readings),
                )
        pure, kept, enough = self._pure[key]
        return tuple(pure.contender(way, min(count, enough)) for way in kept)

    def _survey(self, pure: Pure, ways: Sequence[str]) -> Rates:
        """Return the rates of some ways by their names."""
        most = max(self.sizes.tiles)
        contenders = [replace(pure.contender(way, most), name=way) for way in ways]
        return compare(contenders, self.rounds, self.shortest)


@dataclass(frozen=True)
class Experiment:
    """Some rows that are measured together."""

    rows: tuple[str, ...]
    """Names of the rows that can be asked for."""
    run: Callable[[Bench], Iterator[Row]]


def matches(name: str, pattern: str) -> bool:
    """Return whether a row's name has a pattern in it, or one of several between commas.

    A pattern with ``*`` or ``?``, which are as in file names, is for the whole name.

    Example:
        >>> matches("factored-w64", "FACT"), matches("factored-w64", "call,*-w6?")
        (True, True)
    """
    return any(_fits(name, part.strip().lower()) for part in pattern.split(","))


def pure_name(name: str, width: int) -> str:
    """Return what the rows of pure inference begin with.

    Example:
        >>> pure_name("resnet", 64)
        'pure-resnet-w64'
    """
    return f"pure-{name}-w{width}"


def quotient(rates: Rates, of: str, to: str) -> float:
    """Return a contender's rate over another's, or over the best of those that begin with it."""
    rivals = [name for name in rates.readings if name == to or name.startswith(f"{to}:")]
    return rates.ratio(of, rates.best(rivals))


def contenders_by_name(ways: Mapping[str, tuple[Callable[[], object], int]]) -> list[Contender]:
    """Return contenders from ``{name: (what it runs, images)}``."""
    return [Contender(name, run, count) for name, (run, count) in ways.items()]


def _fits(name: str, pattern: str) -> bool:
    wild = any(sign in pattern for sign in "*?[")
    return fnmatchcase(name, pattern) if wild else pattern in name


def _is_part(contender: str, comparison: Comparison) -> bool:
    first = contender.partition(":")[0]
    return contender == comparison.of or first == comparison.of or first == comparison.to


def _row(comparison: Comparison, rates: Rates) -> Row:
    of = comparison.of
    if of not in rates.readings:  # the best of several
        of = rates.best([name for name in rates.readings if name.startswith(f"{of}:")])
    judged = None
    if comparison.to:
        judged = Figure(quotient(rates, of, comparison.to), comparison.unit)
    return Row(
        comparison.name,
        comparison.what,
        Figure(rates.median(of), "img/s"),
        judged,
        comparison.target,
        readings=tuple(rates.readings[of]),
    )
