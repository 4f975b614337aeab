"""The networks that are measured: the library's own, and two that it has never heard of."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinkering.models import BasicBlock, SimpleResNet

_CLASSES = 10


class Plain(nn.Module):
    """Convolutions in a row, with poolings between, as in VGG.

    Simonyan and Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition" (arXiv 1409.1556), with batch normalisation. Its cost is near that of a
    `SimpleResNet` with one block a stage.

    Args:
        width: channels of the first stage; the others have 2, 4 and 8 times as many.

    Example:
        >>> Plain(width=2)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 10])
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for factor, depth in ((1, 3), (2, 2), (4, 2), (8, 2)):
            if layers:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                layers.append(nn.Conv2d(channels, factor * width, 3, padding=1, bias=False))
                layers += [nn.BatchNorm2d(factor * width), nn.ReLU()]
                channels = factor * width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, classes]``."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class _PreActivation(nn.Module):
    """A residual block that normalises and rectifies before it convolves."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or channels != planes:
            self.shortcut = nn.Conv2d(channels, planes, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        result: Tensor = out + kept
        return result


class PreActivationResNet(nn.Module):
    """A ResNet of four stages whose norms stand before the convolutions.

    He et al. 2016, "Identity Mappings in Deep Residual Networks" (arXiv 1603.05027), one
    block a stage.

    Args:
        width: channels of the first stage; the others have 2, 4 and 8 times as many.

    Example:
        >>> PreActivationResNet(width=2)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 10])
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.stages = nn.Sequential(
            _PreActivation(width, width, 1),
            _PreActivation(width, 2 * width, 2),
            _PreActivation(2 * width, 4 * width, 2),
            _PreActivation(4 * width, 8 * width, 2),
        )
        self.norm = nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(8 * width, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, classes]``."""
        out = F.relu(self.norm(self.stages(self.stem(x))))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


def _resnet(width: int) -> nn.Module:
    return SimpleResNet(BasicBlock, [1, 1, 1, 1], num_classes=_CLASSES, width=width)


def policy(*sizes: int) -> nn.Module:
    """Return linear layers of these sizes with tanh between them, as policies are.

    Example:
        >>> policy(4, 32, 32, 2)(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def lenet() -> nn.Module:
    """Return two convolutions and three linear layers, after LeCun et al. 1998.

    Example:
        >>> lenet()(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 10])
    """
    first = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2)]
    second = [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]
    last = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, _CLASSES)]
    return nn.Sequential(*first, *second, *last)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "resnet": _resnet,
    "vgg": Plain,
    "preact": PreActivationResNet,
}
"""Each makes a network of a width."""


def network(name: str, width: int, seed: int = 0) -> nn.Module:
    """Return a network in eval mode, its weights drawn from a seed.

    Example:
        >>> network("vgg", 2).training
        False
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name](width).eval()


def images(*shape: int) -> Tensor:
    """Return random images ``[*shape, 1, 28, 28]``.

    Example:
        >>> images(3).shape
        torch.Size([3, 1, 28, 28])
    """
    return torch.randn(*shape, 1, 28, 28, generator=torch.Generator().manual_seed(1))
