"""Fitness functions: logits and labels become one scalar per member, the larger the better."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tinkering.errors import ArgumentError
from tinkering.required import kind_of, require_tensor


def negative_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return minus the mean cross-entropy of each member, in nats.

    Args:
        logits: ``[members, batch, ..., classes]``.
        labels: ``[members, batch, ...]``, int64, from 0 to classes - 1.

    Raises:
        ArgumentError: (a ``ValueError``) the labels are none of these.

    Example:
        >>> negative_cross_entropy(torch.zeros(3, 5, 2), torch.zeros(3, 5, dtype=torch.long))
        tensor([-0.6931, -0.6931, -0.6931])
    """
    _require_labels(labels, logits)
    if labels.dtype != torch.int64:
        advice = "Call targets.long()."
        raise ArgumentError("targets", "labels of torch.int64", labels.dtype, advice)
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return -losses.view(len(labels), -1).mean(1)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each member's share of right answers, 0 to 1.

    Args:
        logits: ``[members, batch, ..., classes]``.
        labels: ``[members, batch, ...]``, integers from 0 to classes - 1.

    Raises:
        ArgumentError: (a ``ValueError``) the labels are none of these.

    Example:
        >>> accuracy(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.tensor([[1, 1]]))
        tensor([0.5000])
    """
    _require_labels(labels, logits)
    return (logits.argmax(-1) == labels).float().flatten(1).mean(1)


def _require_labels(labels: Tensor, logits: Tensor) -> None:
    _require_logits(logits)
    require_tensor("targets", labels)
    if labels.shape != logits.shape[:-1]:
        needed = f"a label for every row of logits, {list(logits.shape[:-1])}"
        raise ArgumentError("targets", needed, list(labels.shape))
    low, high = (int(bound) for bound in torch.aminmax(labels))
    classes = logits.shape[-1]
    if low < 0 or high >= classes:
        needed = f"labels from 0 to {classes - 1}, as there are {classes} outputs"
        raise ArgumentError("targets", needed, low if low < 0 else high)


def _require_logits(logits: object) -> None:
    if not isinstance(logits, Tensor):
        needed = f"a function of {kind_of(logits)}, as the module returns"
        raise ArgumentError("fitness", needed, "one of logits, a tensor")
