"""What an evaluation returns, whole or in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Effect:
    """What noise on a layer did to the outputs."""

    total: Tensor
    """``[outputs + 1, cells]``: the sum over members of response times noise, and in the last
    row that of the noise squared."""
    members: int
    """Of whom it is the sum."""


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
    effects: Mapping[str, Effect] | None = field(default=None, repr=False)
    """By layer, of those that members tried. None where nothing is learned of it."""


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
    gradient: dict[str, Tensor] | None = None
    if parts[0].gradient is not None:
        gradient = {name: torch.zeros_like(value) for name, value in parts[0].gradient.items()}
        for part in parts:
            share = len(part.fitness) / len(fitness)
            for name, value in (part.gradient or {}).items():
                gradient[name] += share * value
    effects = None if parts[0].effects is None else _summed(parts)
    forwards = sum(part.forwards for part in parts)
    evaluations = sum(part.evaluations for part in parts)
    return Evaluation(fitness, gradient, forwards, evaluations, effects)


def _summed(parts: Sequence[Evaluation]) -> dict[str, Effect]:
    """Return the effects of all parts; a layer may have been tried in some of them only."""
    effects: dict[str, Effect] = {}
    for part in parts:
        for name, own in (part.effects or {}).items():
            known = effects.get(name)
            effects[name] = own if known is None else _added(known, own)
    return effects


def _added(one: Effect, other: Effect) -> Effect:
    return Effect(one.total + other.total, one.members + other.members)
