"""What one parameter set says of each image of a split."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn
from torch.func import functional_call

from tinkering.data import Split

_IMAGES_PER_TILE = 256


@torch.no_grad()
def predict_split(
    model: nn.Module,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    split: Split,
) -> tuple[Int64[Tensor, " n"], Float32[Tensor, " n"]]:
    """Return the class that is said of each image, and how probable it is held to be, 0 to 1.

    Args:
        model: the architecture; evaluated in eval mode.
        params: its parameters by name.
        buffers: its buffers by name.
        split: the images.

    Example:
        >>> pixels = torch.tensor([[[0, 255]], [[255, 0]]], dtype=torch.uint8)
        >>> split = Split(pixels, torch.tensor([1, 1]), mean=0.5, std=0.1)
        >>> brighter = nn.Flatten()
        >>> predict_split(brighter, {}, {}, split)
        (tensor([1, 0]), tensor([1.0000, 1.0000]))
    """
    model.eval()
    classes, confidences = [], []
    for part in torch.split(torch.arange(len(split)), _IMAGES_PER_TILE):
        logits = functional_call(model, (dict(params), dict(buffers)), (split.images(part),))
        confidence, said = logits.float().softmax(1).max(1)
        classes.append(said)
        confidences.append(confidence)
    return torch.cat(classes), torch.cat(confidences)
