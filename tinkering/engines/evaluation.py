"""What an evaluation returns, whole or in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evaluation:
    """What a population was worth."""

    fitness: Tensor
    """``[members]``, the larger the better."""
    gradient: Mapping[str, Tensor] | None = field(default=None, repr=False)
    """For each parameter that evolves, an estimate of the gradient of the mean fitness, where the
    evaluation makes one. Elsewhere None: the population makes it, from utilities."""
    forwards: float = 0.0
    """Forward passes of one example that it took; a part of one counts as that part."""
    evaluations: int = 0
    """Times that a member, or the centre beside perturbed activations, saw an example: forward
    passes of which each counts in full, also where it went through the last layers alone."""
    effects: Mapping[str, Tensor] | None = field(default=None, repr=False)
    """By layer, the mean of what members' noise on it did to the outputs: see
    `FedBackActivations.learned`. None where nothing is learned of it."""


def merged(parts: Sequence[Evaluation]) -> Evaluation:
    """Return the evaluation of a population from those of its parts.

    Sums are taken in the order given, so the same parts give the same bits, wherever and whenever
    each was evaluated.

    Args:
        parts: in the order of their members; at least one.

    Example:
        >>> one = Evaluation(torch.zeros(3), {"weight": torch.tensor([1.0])}, forwards=10.0)
        >>> two = Evaluation(torch.ones(1), {"weight": torch.tensor([5.0])}, forwards=3.0)
        >>> both = merged([one, two])
        >>> both.fitness, both.gradient, both.forwards
        (tensor([0., 0., 0., 1.]), {'weight': tensor([2.])}, 13.0)
    """
    fitness = torch.cat([part.fitness for part in parts])
    shares = [len(part.fitness) / len(fitness) for part in parts]
    gradient = _mean([part.gradient for part in parts], shares)
    effects = _mean([part.effects for part in parts], shares)
    forwards = sum(part.forwards for part in parts)
    evaluations = sum(part.evaluations for part in parts)
    return Evaluation(fitness, gradient, forwards, evaluations, effects)


def _mean(
    parts: Sequence[Mapping[str, Tensor] | None], shares: Sequence[float]
) -> dict[str, Tensor] | None:
    """Return the mean of what parts have by name, or None where they have none."""
    if parts[0] is None:
        return None
    total = {name: torch.zeros_like(value) for name, value in parts[0].items()}
    for part, share in zip(parts, shares, strict=True):
        for name, value in (part or {}).items():
            total[name] += share * value
    return total
