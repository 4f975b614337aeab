"""What goes wrong in a generation without ending a run: noticed, named, and what to try."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MEMBERS = "some members' fitness not finite"
ALL_MEMBERS = "no finite fitness"
UPDATE = "update not finite"
CONSTANT = "constant fitness"
CENTRE = "centre's loss not finite"
DIVERGED = "centre diverged"

ADVICE: Mapping[str, str] = {
    MEMBERS: "Some members' fitness is NaN or infinite; they count as the worst. If that goes on, "
    "try a smaller sigma or learning rate.",
    ALL_MEMBERS: "No member's fitness is finite, so this generation moved nothing. Try a smaller "
    "sigma, another seed, or look at what the fitness computes.",
    UPDATE: "The step would have put NaN or infinity into the parameters and was left out. Try a "
    "smaller learning rate.",
    CONSTANT: "All members have the same fitness, so there is nothing to choose between. Try a "
    "larger sigma, more images, or a fitness that tells members apart.",
    CENTRE: "The centre's loss on held-out images is NaN or infinite. Try a smaller learning rate; "
    "an older checkpoint may still be good.",
    DIVERGED: "The centre's loss on held-out images is far above where it began. Try a smaller "
    "learning rate.",
}
"""What each trouble means, and what to try."""

_FAR = 10.0
"""A loss of so many times the first one is no fluctuation."""


class Watch:
    """Names what went wrong in generations.

    Example:
        >>> watch = Watch()
        >>> watch.generation(torch.tensor([1.0, torch.nan]), "moved")
        ["some members' fitness not finite"]
        >>> watch.generation(torch.tensor([2.0, 2.0]), "moved")
        ['constant fitness']
    """

    def __init__(self) -> None:
        self._first: float | None = None

    def generation(self, fitness: Tensor, told: str) -> list[str]:
        """Return what went wrong in a generation.

        Args:
            fitness: of the members.
            told: what the strategy's state says of it: see `tinkering.strategies.told`.
        """
        finite = fitness[torch.isfinite(fitness)]
        if not len(finite):
            return [ALL_MEMBERS]
        found = [MEMBERS] if len(finite) < len(fitness) else []
        if len(finite) > 1 and bool((finite == finite[0]).all()):
            found.append(CONSTANT)
        if told == UPDATE:
            found.append(UPDATE)
        return found

    def centre(self, measured: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with the centre, from its held-out figures."""
        loss = measured.get("test_loss")
        if loss is None:
            return []
        if not math.isfinite(loss):
            return [CENTRE]
        if self._first is None:
            self._first = loss
        return [DIVERGED] if loss > _FAR * max(self._first, 1.0) else []
