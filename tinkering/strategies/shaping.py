"""Shaping: the fitness differences of antithetic pairs become utilities.

What a fitness that is not finite is worth: it counts as the worst finite fitness of its
generation, so a member that went bad is never preferred and a single one cannot
poison the update.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Shaping = Callable[[Tensor], Tensor]
"""``(differences [pairs]) -> utilities [pairs]``; odd, so that swapping a pair's members
swaps the sign of its utility."""


def replace_non_finite(fitness: Tensor) -> Tensor | None:
    """Return fitness with the worst finite value in place of NaN and infinities.

    Args:
        fitness: ``[members]``.

    Returns:
        ``[members]``, or None where no member has a finite fitness.

    Example:
        >>> replace_non_finite(torch.tensor([1.0, float("nan"), -2.0, float("inf")]))
        tensor([ 1., -2., -2., -2.])
    """
    finite = torch.isfinite(fitness)
    if not finite.any():
        return None
    return torch.where(finite, fitness, fitness[finite].min())


def z_score(differences: Tensor) -> Tensor:
    """Return differences divided by their root mean square; zeros stay zeros.

    The mean is not taken off: a pair's order is arbitrary, so the mean says nothing.

    Example:
        >>> z_score(torch.tensor([3.0, -4.0, 0.0, 0.0]))
        tensor([ 1.2000, -1.6000,  0.0000,  0.0000])
    """
    # Divided by the largest first: squares of large differences would overflow.
    largest = differences.abs().max().clamp_min(torch.finfo(differences.dtype).tiny)
    relative = differences / largest
    rms = relative.square().mean().sqrt()
    return relative / rms.clamp_min(torch.finfo(differences.dtype).tiny)


def signed_rank(differences: Tensor) -> Tensor:
    """Return each difference's sign times its rank by magnitude, at most 1.

    Keeps the order and forgets the scale (as the centred ranks of Salimans et al. 2017,
    arXiv 1703.03864, do for members), so outliers weigh no more than their place.

    Example:
        >>> signed_rank(torch.tensor([0.1, -30.0, 0.2, 0.0]))
        tensor([ 0.5000, -1.0000,  0.7500,  0.0000])
    """
    ranks = torch.empty_like(differences)
    order = differences.abs().argsort(stable=True)
    ranks[order] = torch.arange(1, len(differences) + 1, dtype=differences.dtype)
    return differences.sign() * ranks / len(differences)


SHAPINGS: dict[str, Shaping] = {"z-score": z_score, "rank": signed_rank}
"""The shapings by the name that a configuration uses."""
