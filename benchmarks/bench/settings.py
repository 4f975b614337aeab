"""How much is measured: the sizes of the real benchmark, and small ones to try it out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    wide: int = 64
    """Width of the network that is as large as the reference network."""
    middle: int = 16
    narrow: int = 8
    explicit: int = 16
    """Explicit members."""
    small_batch: int = 32
    batch: int = 64
    large_batch: int = 256
    members: int = 4096
    """Members around a centre, each on an image of its own."""
    sharing: int = 256
    """Members around a centre that share a batch."""
    other_members: int = 1024
    """Members around a centre in the networks the library has never heard of."""
    tiles: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Images at a time in pure inference."""
    compiled: bool = True
    """Whether pure inference is compiled."""
    few_members: int = 1_000
    many_members: int = 100_000
    """Members whose evaluation's memory is compared."""
    generations: int = 6
    """Of a run at width 64 whose generations are timed; narrower networks do more in the time."""
    cold_rounds: int = 3
    """Starts of new processes, at most."""
    policies: tuple[int, int] = (256, 1024)
    """Members of policies, each with a row of its own."""
    sequences: int = 256
    """Members around a transformer, each with an example of its own."""

    @property
    def widths(self) -> tuple[int, ...]:
        """All widths, once each."""
        return tuple(dict.fromkeys((self.wide, self.middle, self.narrow)))


QUICK = Sizes(
    wide=8,
    middle=4,
    narrow=2,
    explicit=2,
    small_batch=4,
    batch=8,
    large_batch=16,
    members=64,
    sharing=8,
    other_members=32,
    tiles=(32,),
    compiled=False,
    few_members=500,
    many_members=2_000,
    generations=1,
    cold_rounds=1,
    policies=(4, 8),
    sequences=4,
)
"""Seconds in place of minutes. The figures mean nothing."""
