"""Schedules: numbers that change with the generation, as pure functions of it.

A schedule is anything that is called with a generation (the first is 0) and returns a number;
`constant`, `inverse_sqrt` and `cosine` are the common ones. They hold nothing but their
settings, so a run that goes on from a saved state meets the values it would have met.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tinkering.errors import ArgumentError
from tinkering.ranges import require_at_least, require_positive

LARGEST_FLOAT = (2 - 2**-23) * 2.0**127
"""Of float32, 3.4e38: noise is drawn in float32, and is never larger."""
Schedule = Callable[[int], float]
"""``(generation) -> value``; the first generation is 0."""


# Lower-case, as functools.partial is: they are classes, but they are used as functions.
@dataclass(frozen=True)
class constant:
    """The same value in every generation.

    Args:
        value: a finite number above 0.

    Raises:
        ArgumentError: (a ``ValueError``) it is not.

    Example:
        >>> constant(0.1)(1000)
        0.1
    """

    value: float

    def __post_init__(self) -> None:
        require_positive("value", self.value)

    def __call__(self, generation: int) -> float:
        """Return the value."""
        del generation
        return self.value


@dataclass(frozen=True)
class inverse_sqrt:
    """``value / sqrt(1 + generation / decay)``: the steps of a stochastic approximation.

    Args:
        value: of the first generation; a finite number above 0.
        decay: generations until the value begins to shrink; after three times as many it
            is halved.

    Raises:
        ArgumentError: (a ``ValueError``) one of them is not a finite number above 0.

    Example:
        >>> step = inverse_sqrt(0.1, decay=50.0)
        >>> step(0), step(150)
        (0.1, 0.05)
    """

    value: float
    decay: float

    def __post_init__(self) -> None:
        require_positive("value", self.value)
        require_positive("decay", self.decay)

    def __call__(self, generation: int) -> float:
        """Return the value of a generation."""
        return self.value / math.sqrt(1 + generation / self.decay)


@dataclass(frozen=True)
class cosine:
    """Half a cosine from `value` down to `last`, after a linear rise.

    Loshchilov and Hutter 2017, "SGDR" (arXiv 1608.03983), equation 5, without restarts. After
    `generations` the value stays at `last`.

    Args:
        value: the highest; a finite number above 0.
        generations: until `last` is reached, the rise included.
        last: from 0 to `value`.
        warmup: generations of the rise, below `generations`. The first of them has
            ``value / (warmup + 1)``, so that none is 0.

    Raises:
        ArgumentError: (a ``ValueError``) one of them is out of range.

    Example:
        >>> step = cosine(0.1, generations=100, last=0.02)
        >>> [round(step(generation), 3) for generation in (0, 50, 100, 1000)]
        [0.1, 0.06, 0.02, 0.02]
        >>> [cosine(1.0, 100, warmup=3)(generation) for generation in range(4)]
        [0.25, 0.5, 0.75, 1.0]
    """

    value: float
    generations: int
    last: float = 0.0
    warmup: int = 0

    def __post_init__(self) -> None:
        require_positive("value", self.value)
        require_at_least(1, generations=self.generations)
        if not 0 <= self.last <= self.value:
            raise ArgumentError("last", f"a number from 0 to value, {self.value}", self.last)
        if not 0 <= self.warmup < self.generations:
            needed = f"an integer from 0 to below generations, {self.generations}"
            raise ArgumentError("warmup", needed, self.warmup)

    def __call__(self, generation: int) -> float:
        """Return the value of a generation."""
        if generation < self.warmup:
            return self.value * (generation + 1) / (self.warmup + 1)
        done = min(1.0, (generation - self.warmup) / (self.generations - self.warmup))
        return self.last + (self.value - self.last) * (1 + math.cos(math.pi * done)) / 2


def value_at(
    argument: str,
    value: float | Schedule,
    generation: int,
    *,
    zero: bool = False,
    most: float = math.inf,
) -> float:
    """Return the value of a generation, whether a number was given or a schedule.

    Args:
        argument: its name, for the error.
        value: a number, or a schedule.
        generation: from 0.
        zero: whether a schedule may return 0.
        most: that a schedule may return, finite in any case.

    Raises:
        ArgumentError: (a ``ValueError``) the schedule's value cannot be used.

    Example:
        >>> value_at("sigma", 0.1, 7), value_at("sigma", lambda g: 1 / (g + 1), 4)
        (0.1, 0.2)
        >>> value_at("sigma", lambda g: 1.0 - g, 1)
        Traceback (most recent call last):
        tinkering.errors.ArgumentError: sigma: needed a finite number above 0 from its schedule in
        generation 1, got 0.0.
    """
    if not callable(value):
        return value
    came = value(generation)
    if not (0 < came < math.inf or (zero and came == 0)) or came > most:
        bound = "of at least 0" if zero else "above 0"
        bound += f" and at most {most:.4g}" if came > most else ""
        needed = f"a finite number {bound} from its schedule in generation {generation}"
        raise ArgumentError(argument, needed, came)
    return came
