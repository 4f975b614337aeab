"""Shaping: fitness becomes utilities, the weights of the noise in an update.

First comes the advantage: fitness compared with that of those who met the same examples.

pairs     Members 2p and 2p + 1 have mirrored noise. The advantage of the pair is half of the
          difference of their fitness; it belongs to the noise of the first.
groups    Each member has noise of its own. Its advantage is its fitness minus the mean fitness
          of the others in its group: what its group shares, such as hard examples, cancels out,
          and no member is compared with itself, so nothing is biased. (Kool et al. 2019, "Buy 4
          REINFORCE Samples, Get a Baseline for Free!")
examples  The same for perturbed activations, whose groups are the members of one example at one
          layer. Groups are shaped where they are evaluated, each by itself.

Then the shaping, a function of all advantages of a generation, or of one example's fitness:

name      pairs                                           groups                   examples
raw       the advantage itself                            likewise                 likewise
z-score   divided by the root mean square of all          likewise
rank      sign times the rank by magnitude, 0 to 1        centred rank, -1 to 1
sign      -1, 0 or 1: whether the first member is fitter  fitter than its group
relative                                                                           divided by the
                                                                                   mean fitness

The two ranks are one thing: a pair's advantage counts for one member as it is and for the other
with its sign turned, and the centred rank among all of those is the signed rank of it.

What a fitness that is not finite is worth: it counts as the worst finite fitness of its
generation, or of its example's members, so a member that went bad is never preferred and a single
one cannot poison the update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from tinkering.errors import ArgumentError

Shaping = Callable[[Tensor], Tensor]
"""``(advantages [pairs or members]) -> utilities``, of the same shape. It is odd: members of a
pair may swap places, and then their utility swaps its sign. For examples it is
``(fitness [examples, members]) -> utilities``."""
Compared = Literal["pairs", "groups", "examples"]
"""With whom a member's fitness is compared."""


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


def pair_advantages(fitness: Tensor) -> Tensor:
    """Return half of the difference in each pair, ``[members / 2]``.

    Example:
        >>> pair_advantages(torch.tensor([3.0, 1.0, 0.0, 4.0]))
        tensor([ 1., -2.])
    """
    # Halves, because a difference could overflow.
    return fitness[0::2] / 2 - fitness[1::2] / 2


def group_advantages(fitness: Tensor, group: int) -> Tensor:
    """Return each member's fitness minus the mean of the others in its group, ``[members]``.

    That is the same as its fitness minus the mean of the whole group, times
    ``group / (group - 1)``.

    Example:
        >>> group_advantages(torch.tensor([3.0, 0.0, 0.0, 9.0, 9.0, 9.0]), group=3)
        tensor([ 3.0000, -1.5000, -1.5000,  0.0000,  0.0000,  0.0000])
    """
    each = fitness.view(-1, group)
    centred = each - each.mean(dim=1, keepdim=True)
    return (centred * (group / (group - 1))).flatten()


def raw(advantages: Tensor) -> Tensor:
    """Return advantages as they are: the update follows the gradient, length and all.

    Example:
        >>> raw(torch.tensor([3.0, -4.0]))
        tensor([ 3., -4.])
    """
    return advantages


def z_score(advantages: Tensor) -> Tensor:
    """Return advantages divided by their root mean square; zeros stay zeros.

    The mean is not taken off: a pair's order is arbitrary, so its mean says nothing, and in
    groups it is zero already.

    Example:
        >>> z_score(torch.tensor([3.0, -4.0, 0.0, 0.0]))
        tensor([ 1.2000, -1.6000,  0.0000,  0.0000])
    """
    # Divided by the largest first: squares of large differences would overflow.
    largest = advantages.abs().max().clamp_min(torch.finfo(advantages.dtype).tiny)
    relative = advantages / largest
    rms = relative.square().mean().sqrt()
    return relative / rms.clamp_min(torch.finfo(advantages.dtype).tiny)


def signed_rank(advantages: Tensor) -> Tensor:
    """Return each advantage's sign times its rank by magnitude, at most 1.

    Keeps the order and forgets the scale (as the centred ranks of Salimans et al. 2017,
    arXiv 1703.03864, do for members), so outliers weigh no more than their place.

    Example:
        >>> signed_rank(torch.tensor([0.1, -30.0, 0.2, 0.0]))
        tensor([ 0.5000, -1.0000,  0.7500,  0.0000])
    """
    ranks = torch.empty_like(advantages)
    order = advantages.abs().argsort(stable=True)
    ranks[order] = torch.arange(1, len(advantages) + 1, dtype=advantages.dtype).to(ranks.device)
    return advantages.sign() * ranks / len(advantages)


def centred_rank(advantages: Tensor) -> Tensor:
    """Return ranks from -1 (the least) to 1 (the greatest); equal ones share their mean rank.

    Salimans et al. 2017 (arXiv 1703.03864), section 2.1, there from -0.5 to 0.5.

    Example:
        >>> centred_rank(torch.tensor([0.1, -30.0, 0.2, 0.1, 50.0]))
        tensor([-0.2500, -1.0000,  0.5000, -0.2500,  1.0000])
    """
    _, place, count = torch.unique(advantages, return_inverse=True, return_counts=True)
    below = count.cumsum(0) - count
    # Ranks of equal ones run from `below`; twice their mean is whole, so nothing is rounded.
    twice: Tensor = (2 * below + count - 1)[place] - (len(advantages) - 1)
    return twice.to(advantages.dtype) / max(1, len(advantages) - 1)


def sign(advantages: Tensor) -> Tensor:
    """Return the signs of advantages: who is fitter, not by how much.

    Example:
        >>> sign(torch.tensor([3.0, -4.0, 0.0]))
        tensor([ 1., -1.,  0.])
    """
    return advantages.sign()


def by_the_others(fitness: Tensor) -> Tensor:
    """Return each member's fitness minus the mean of the others that see its example.

    What is not finite counts as the worst that sees the example; where nothing is finite, nothing
    is worth anything.

    Args:
        fitness: ``[examples, members]``.

    Example:
        >>> by_the_others(torch.tensor([[1.0, 2.0, 6.0]]))
        tensor([[-3.0000, -1.5000,  4.5000]])
    """
    finite = torch.isfinite(fitness)
    worst = fitness.where(finite, torch.inf).amin(1, keepdim=True)
    known = fitness.where(finite, worst.where(torch.isfinite(worst), 0.0))
    known = known - known[:, :1]  # equal ones are then worth nothing, not what rounding leaves
    return group_advantages(known.flatten(), fitness.shape[1]).view_as(fitness)


def relative(fitness: Tensor) -> Tensor:
    """Return `by_the_others` divided by the mean fitness of those that see the example.

    The gradient is then that of the logarithm: examples that are seldom right count for more.
    Where that mean is not above 0, nothing is worth anything.

    Args:
        fitness: ``[examples, members]``, at least 0.

    Raises:
        ArgumentError: (a ``ValueError``) a finite number is below 0.

    Example:
        >>> relative(torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]]))
        tensor([[-1.0000, -0.5000,  1.5000],
                [ 0.0000,  0.0000,  0.0000]])
    """
    known = fitness.where(torch.isfinite(fitness), 0.0)
    if bool((known < 0).any()):
        needed = 'numbers of at least 0, for shaping "relative"'
        raise ArgumentError("fitness", needed, known.min().item())
    mean = known.mean(1, keepdim=True)
    return torch.where(mean > 0, by_the_others(fitness) / mean, 0.0)


SHAPINGS: Mapping[Compared, Mapping[str, Shaping]] = {
    "pairs": {"raw": raw, "z-score": z_score, "rank": signed_rank, "sign": sign},
    "groups": {"raw": raw, "z-score": z_score, "rank": centred_rank, "sign": sign},
    "examples": {"raw": by_the_others, "relative": relative},
}
"""The shapings that serve each comparison, by the name that a configuration uses."""
