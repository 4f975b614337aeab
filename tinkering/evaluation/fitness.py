"""Fitness functions: logits and labels become one scalar per member, the larger the better."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tinkering.errors import ArgumentError


def negative_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return minus the mean cross-entropy of each member, in nats.

    Args:
        logits: ``[members, batch, classes]``.
        labels: ``[members, batch]``, int64, from 0 to classes - 1.

    Raises:
        ArgumentError: (a ``ValueError``) the labels are none of these.

    Example:
        >>> negative_cross_entropy(torch.zeros(3, 5, 2), torch.zeros(3, 5, dtype=torch.long))
        tensor([-0.6931, -0.6931, -0.6931])
    """
    if labels.dtype != torch.int64:
        raise ArgumentError("y", "labels of torch.int64", labels.dtype, "Call y.long().")
    _require_classes(labels, logits.shape[-1])
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return -losses.view(labels.shape).mean(1)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each member's share of right answers, 0 to 1.

    Args:
        logits: ``[members, batch, classes]``.
        labels: ``[members, batch]``, integers from 0 to classes - 1.

    Raises:
        ArgumentError: (a ``ValueError``) the labels are none of these.

    Example:
        >>> accuracy(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.tensor([[1, 1]]))
        tensor([0.5000])
    """
    _require_classes(labels, logits.shape[-1])
    return (logits.argmax(2) == labels).float().mean(1)


def _require_classes(labels: Tensor, classes: int) -> None:
    low, high = (int(bound) for bound in torch.aminmax(labels))
    if low < 0 or high >= classes:
        needed = f"labels from 0 to {classes - 1}, as there are {classes} outputs"
        raise ArgumentError("y", needed, low if low < 0 else high)
