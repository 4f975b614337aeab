"""What running statistics mean for a population.

The policy is **reference statistics**: before a generation is evaluated, the centre runs
once over a batch of images, and the mean and variance that each BatchNorm layer sees there
serve all members, in eval mode. The reasons:

- A member that sees a single image has no statistics of its own worth the name.
- Statistics of a batch that holds many members would mix them: a member's fitness would
  depend on who was evaluated beside it, and on how the population was tiled.
- The centre moves every generation; a running average would describe a network of the past.

A centre that is saved gets the statistics of training images, so that the file evaluates
as a plain module in eval mode.

Scales of norms need not evolve: the weights before a norm can grow and shrink, and with a
scale that is the same for all members, norm and convolution become one operation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tinkering.errors import ArgumentError


def norm_scales(model: nn.Module) -> set[str]:
    """Return the names of the scales (``weight``) of a module's BatchNorm layers.

    Example:
        >>> norm_scales(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
        {'1.weight'}
    """
    return {
        f"{name}.weight" if name else "weight"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine
    }


@torch.no_grad()
def reference_statistics(
    model: nn.Module, params: Mapping[str, Tensor], x: Tensor, tile: int = 512
) -> dict[str, Tensor]:
    """Return the module's buffers with BatchNorm statistics of `x` under `params`.

    Every layer's mean and variance are averaged over tiles of `x`, without a memory of
    earlier values ("precise BatchNorm", Wu and Johnson 2021, arXiv 2105.07576, section 3).

    Args:
        model: the architecture; its own parameters and buffers are not changed.
        params: the parameters by name.
        x: what the module takes, ``[images, ...]``; at least two images.
        tile: images at a time, at most; 3 where 2 would leave one over.

    Raises:
        ArgumentError: (a ``ValueError``) fewer than two images, or a `tile` below 2.

    Example:
        >>> norm = nn.BatchNorm1d(1, affine=False)
        >>> buffers = reference_statistics(norm, {}, torch.tensor([[1.0], [2.0], [3.0]]))
        >>> buffers["running_mean"], buffers["running_var"]
        (tensor([2.]), tensor([1.]))
    """
    if len(x) < 2:
        raise ArgumentError("x", "at least two images, for a variance", len(x))
    if tile < 2:
        raise ArgumentError("tile", "at least two images, for a variance", tile)
    module = copy.deepcopy(model).train()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None  # PyTorch's word for a plain average over the calls
        elif isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.eval()
    # Never a tile of one image, which has no variance.
    tiles = min(-(-len(x) // tile), len(x) // 2)
    for part in torch.tensor_split(x, tiles):
        functional_call(module, dict(params), (part,))
    return dict(module.named_buffers())


def recalibrate(model: nn.Module, x: Tensor, tile: int = 512) -> None:
    """Replace the module's BatchNorm statistics by those of `x`, in place.

    Args:
        model: the module; its parameters and its mode stay.
        x: what the module takes, ``[images, ...]``; at least two images.
        tile: as in `reference_statistics`.

    Raises:
        ArgumentError: (a ``ValueError``) as in `reference_statistics`.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> recalibrate(norm, torch.tensor([[1.0], [2.0], [3.0]]))
        >>> norm.running_mean
        tensor([2.])
    """
    params = {name: p.detach() for name, p in model.named_parameters()}
    model.load_state_dict(reference_statistics(model, params, x, tile), strict=False)
