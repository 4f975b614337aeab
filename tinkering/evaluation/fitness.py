"""Fitness: logits and labels become one number per member, the larger the better."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from tinkering.errors import ArgumentError

Fitness = Callable[[Tensor, Tensor], Tensor]
"""``(logits [members, batch, classes], labels [members, batch]) -> [members]``."""


def negative_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return minus the mean cross-entropy of each member, in nats.

    Args:
        logits: ``[members, batch, classes]``.
        labels: ``[members, batch]``, integers.

    Example:
        >>> import torch
        >>> negative_cross_entropy(torch.zeros(3, 5, 2), torch.zeros(3, 5, dtype=torch.long))
        tensor([-0.6931, -0.6931, -0.6931])
    """
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return -losses.view(labels.shape).mean(1)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each member's share of right answers, 0 to 1.

    Args:
        logits: ``[members, batch, classes]``.
        labels: ``[members, batch]``, integers.

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.tensor([[1, 1]]))
        tensor([0.5000])
    """
    return (logits.argmax(2) == labels).float().mean(1)


def checked(fitness: Fitness, logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``fitness(logits, labels)``, which must be a number for every member.

    Raises:
        ArgumentError: (a ``ValueError``) it is anything else. A mean over the whole
            population would give every member the same fitness, and nothing would evolve.
    """
    result = fitness(logits, labels)
    shape = getattr(result, "shape", None)
    if shape != logits.shape[:1]:
        raise ArgumentError(
            "fitness",
            f"a tensor of shape [members] = [{len(logits)}], one number a member",
            f"a {type(result).__name__}" if shape is None else f"a tensor of shape {list(shape)}",
            "Average over the images of a member (dimension 1), not over the members.",
        )
    return result
