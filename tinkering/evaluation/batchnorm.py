"""What running statistics mean for a population.

A policy says which mean and variance a BatchNorm layer uses:

- ``"running"``: those it has kept, each member its own where members have buffers of their
  own, and the centre's where members share one.
- ``"batch"``: those of the batch that a member sees, for each member alone.
- `Reference`: those that the centre has on a given batch of images, for all members.

`Reference` is what evolution uses, renewed every generation. The reasons:

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
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tinkering.errors import ArgumentError
from tinkering.required import require_tensor


@dataclass(frozen=True)
class Reference:
    """The policy that all members use the centre's statistics on some images.

    Args:
        images: ``[images, ...]``, what the module takes; at least two.

    Example:
        >>> from tinkering import PerturbedPopulation, forward
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)).eval()
        >>> population = PerturbedPopulation(model, size=6, sigma=0.1)
        >>> forward(model, population, torch.zeros(5, 8), norm=Reference(torch.randn(32, 8))).shape
        torch.Size([6, 5, 4])
    """

    images: Tensor = field(repr=False)


Policy = str | Reference
"""``"running"``, ``"batch"`` or a `Reference`."""


def norms_in_train_mode(model: nn.Module) -> list[str]:
    """Return the names of the BatchNorm layers that would change running statistics."""
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and layer.training
        and layer.track_running_stats
    ]


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
    model: nn.Module, params: Mapping[str, Tensor], inputs: Tensor, tile: int = 512
) -> dict[str, Tensor]:
    """Return the module's buffers with BatchNorm statistics of `inputs` under `params`.

    Every layer's mean and variance are averaged over tiles of them, without a memory of
    earlier values ("precise BatchNorm", Wu and Johnson 2021, arXiv 2105.07576, section 3).

    Args:
        model: the architecture; its own parameters and buffers are not changed.
        params: the parameters by name.
        inputs: what the module takes, ``[examples, ...]``; at least two examples.
        tile: examples at a time, at most; 3 where 2 would leave one over.

    Raises:
        ArgumentError: (a ``ValueError``) fewer than two examples, or a `tile` below 2.

    Example:
        >>> norm = nn.BatchNorm1d(1, affine=False)
        >>> buffers = reference_statistics(norm, {}, torch.tensor([[1.0], [2.0], [3.0]]))
        >>> buffers["running_mean"], buffers["running_var"]
        (tensor([2.]), tensor([1.]))
    """
    require_tensor("inputs", inputs)
    if len(inputs) < 2:
        raise ArgumentError("inputs", "at least two examples, for a variance", len(inputs))
    if tile < 2:
        raise ArgumentError("tile", "at least two examples, for a variance", tile)
    module = copy.deepcopy(model).eval()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None  # PyTorch's word for a plain average over the calls
    # Never a tile of one example, which has no variance.
    tiles = min(-(-len(inputs) // tile), len(inputs) // 2)
    for part in torch.tensor_split(inputs, tiles):
        functional_call(module, dict(params), (part,))
    return dict(module.named_buffers())


def recalibrate(model: nn.Module, inputs: Tensor, tile: int = 512) -> None:
    """Replace the module's BatchNorm statistics by those of `inputs`, in place.

    Args:
        model: the module; its parameters and its mode stay.
        inputs: what the module takes, ``[examples, ...]``; at least two examples.
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
    model.load_state_dict(reference_statistics(model, params, inputs, tile), strict=False)
