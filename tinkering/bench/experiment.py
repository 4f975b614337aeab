"""What every experiment is made of: contenders, comparisons of them, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch

from tinkering.bench.clock import Contender, Rates, compare
from tinkering.bench.judge import Figure, Row, Target
from tinkering.bench.networks import network
from tinkering.bench.pure import Pure
from tinkering.bench.settings import Sizes

DTYPE = torch.bfloat16
"""Of pure inference, and of what is compared with it."""
_NEAR = 0.95
"""Of the fastest way's rate: slower ways of pure inference are measured no more, but for one."""


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
    _pure: dict[tuple[str, int], tuple[Pure, list[str]]] = field(default_factory=dict)

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
            count: images that a contender evaluates, at least.
        """
        key = (name, width)
        if key not in self._pure:
            sizes = self.sizes
            pure = Pure(network(name, width), DTYPE, sizes.tiles, sizes.compiled)
            contenders = [pure.contender(way, max(sizes.tiles)) for way in pure.names]
            rates = compare(contenders, self.rounds, self.shortest)
            names = sorted((one.name for one in contenders), key=rates.median, reverse=True)
            fastest = rates.median(names[0])
            near = [name for name in names if rates.median(name) >= _NEAR * fastest]
            kept = near if len(near) > 1 else names[:2]  # the first may have been lucky
            self._pure[key] = (pure, [name.removeprefix("pure:") for name in kept])
            for way, contender in zip(pure.names, contenders, strict=True):
                how, tile = way.split("-")
                yield Row(
                    f"{pure_name(name, width)}-{way}",
                    f"pure inference, {name} of width {width}, {how}, tiles of {tile}",
                    Figure(rates.median(contender.name), "img/s"),
                    note="fastest" if rates.median(contender.name) == fastest else "",
                    readings=tuple(rates.readings[contender.name]),
                )
        pure, ways = self._pure[key]
        return tuple(pure.contender(way, count) for way in ways)


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
