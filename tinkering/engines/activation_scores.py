"""What perturbed outputs were worth, and how the scores of some images become those of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class OutputScores:
    """What a population of perturbed outputs was worth."""

    by_layer: Tensor = field(repr=False)
    """Fitness, ``[layers, images, members]``."""
    ascent: Mapping[str, Tensor] = field(repr=False)
    """For each parameter that evolves, an estimate of the gradient of the mean fitness."""
    forwards: float
    """What it cost, in forwards of one image: members count for the layers they ran through."""

    @property
    def fitness(self) -> Tensor:
        """Of each member, ``[layers, images, members]`` as one vector."""
        return self.by_layer.flatten()


def merged(scores: Sequence[OutputScores]) -> OutputScores:
    """Return the scores of all images from those of some at a time.

    Sums are taken in the order given, so the same portions give the same bits, wherever and
    whenever each was evaluated.

    Args:
        scores: of portions of the images, in their order; at least one.

    Example:
        >>> one = OutputScores(torch.zeros(2, 3, 4), {"weight": torch.tensor([1.0])}, 10.0)
        >>> two = OutputScores(torch.ones(2, 1, 4), {"weight": torch.tensor([5.0])}, 3.0)
        >>> both = merged([one, two])
        >>> both.by_layer.shape, both.ascent, both.forwards
        (torch.Size([2, 4, 4]), {'weight': tensor([2.])}, 13.0)
    """
    by_layer = torch.cat([portion.by_layer for portion in scores], dim=1)
    ascent = {name: torch.zeros_like(value) for name, value in scores[0].ascent.items()}
    for portion in scores:
        share = portion.by_layer.shape[1] / by_layer.shape[1]
        for name, value in portion.ascent.items():
            ascent[name] += share * value
    return OutputScores(by_layer, ascent, sum(portion.forwards for portion in scores))
