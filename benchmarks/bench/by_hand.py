"""Policies by hand: a dozen operations of PyTorch on what is kept, and nothing is checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def stacked_by_hand(models: Sequence[nn.Module], x: Tensor) -> Callable[[], Tensor]:
    """Return linear layers with tanh between them, each model on rows of its own.

    Args:
        models: as `networks.policy` makes them.
        x: ``[models, rows, inputs]``.

    Example:
        >>> from benchmarks.bench.networks import policy
        >>> stacked_by_hand([policy(4, 8, 2), policy(4, 8, 2)], torch.zeros(2, 5, 4))().shape
        torch.Size([2, 5, 2])
    """
    kept = []
    for layers in zip(*map(_linear_layers, models), strict=True):
        weights = torch.stack([layer.weight.detach().t() for layer in layers])
        kept.append((torch.stack([layer.bias.detach() for layer in layers])[:, None], weights))

    def call() -> Tensor:
        h = x
        for at, (shifts, weights) in enumerate(kept):
            h = torch.baddbmm(shifts, torch.tanh(h) if at else h, weights)
        return h

    return call


def noise_by_hand(model: nn.Module, sigma: float, x: Tensor) -> Callable[[], Tensor]:
    """Return the same for members of rank-one noise about one model.

    Args:
        model: as `networks.policy` makes it.
        sigma: of the noise.
        x: ``[members, 1, inputs]``.

    Example:
        >>> from benchmarks.bench.networks import policy
        >>> noise_by_hand(policy(4, 8, 2), 0.1, torch.zeros(6, 1, 4))().shape
        torch.Size([6, 2])
    """
    kept = []
    for layer in _linear_layers(model):
        weight, members = layer.weight.detach(), len(x)
        shift = layer.bias.detach() + sigma * torch.randn(members, len(weight))
        left, right = (
            sigma * torch.randn(members, len(weight)),
            torch.randn(members, weight.shape[1]),
        )
        kept.append((weight.t(), shift, left, right))

    def call() -> Tensor:
        h = x[:, 0]
        for at, (weight, shift, left, right) in enumerate(kept):
            h = torch.tanh(h) if at else h
            dot = (h * right).sum(1, keepdim=True)
            h = torch.addcmul(torch.addmm(shift, h, weight), dot, left)
        return h

    return call


def _linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
