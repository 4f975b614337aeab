"""Convolutional networks of the field's common kinds, small, for images of 32 x 32 and 3 channels.

Their layers are those of the papers; their widths and depths are small, so that a row of the
benchmark takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CLASSES = 10


def _normed(
    channels: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Return a convolution that keeps the size of an image, but for its stride, and its norm."""
    return [
        nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class SqueezeExcite(nn.Module):
    """Channels weighed by what an image has of each.

    Hu et al. 2018, "Squeeze-and-Excitation Networks" (arXiv 1709.01507).

    Args:
        channels: of the images.
        squeezed: channels between the two layers.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the images, of the same shape."""
        weight = F.adaptive_avg_pool2d(x, 1)
        weight = self.expand(F.silu(self.reduce(weight)))
        return x * torch.sigmoid(weight)


class InvertedResidual(nn.Module):
    """Channels are made more, convolved each on its own, and made few again.

    Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv
    1801.04381).

    Args:
        channels: of the input.
        outputs: of the result.
        stride: of the depthwise convolution.
        activation: makes what stands behind the first two convolutions.
        expansion: how many times as many channels are between.
        excite: whether those are weighed by `SqueezeExcite`.

    Example:
        >>> InvertedResidual(8, 16, stride=2)(torch.zeros(5, 8, 32, 32)).shape
        torch.Size([5, 16, 16, 16])
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        stride: int,
        activation: Callable[[], nn.Module] = nn.ReLU6,
        expansion: int = 6,
        excite: bool = False,
    ) -> None:
        super().__init__()
        wide = expansion * channels
        layers = [*_normed(channels, wide, 1), activation()] if expansion > 1 else []
        layers += [*_normed(wide, wide, 3, stride, groups=wide), activation()]
        layers += [SqueezeExcite(wide, max(1, channels // 4))] if excite else []
        self.layers = nn.Sequential(*layers, *_normed(wide, outputs, 1))
        self.keeps = stride == 1 and channels == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's result, ``[batch, outputs, ...]``."""
        out: Tensor = self.layers(x)
        return x + out if self.keeps else out


class MobileNet(nn.Module):
    """Inverted residuals as in MobileNetV2, in a form for small images.

    Args:
        activation: as in `InvertedResidual`.
        excite: likewise.

    Example:
        >>> MobileNet()(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, activation: Callable[[], nn.Module] = nn.ReLU6, excite: bool = False
    ) -> None:
        super().__init__()
        layers = [*_normed(3, 32, 3), activation()]
        layers.append(InvertedResidual(32, 16, 1, activation, expansion=1, excite=excite))
        channels = 16
        for outputs, depth, stride in ((24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 2, 1), (160, 2, 2)):
            for at in range(depth):
                step = stride if at == 0 else 1
                layers.append(InvertedResidual(channels, outputs, step, activation, excite=excite))
                channels = outputs
        layers += [*_normed(channels, 640, 1), activation()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(640, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, classes]``."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class ConvNextBlock(nn.Module):
    """A wide depthwise convolution, and a network on every pixel.

    Liu et al. 2022, "A ConvNet for the 2020s" (arXiv 2201.03545).

    Args:
        channels: of the images.

    Example:
        >>> ConvNextBlock(8)(torch.zeros(5, 8, 16, 16)).shape
        torch.Size([5, 8, 16, 16])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 4 * channels)
        self.reduce = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's result, of the shape of `x`."""
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = self.reduce(F.gelu(self.expand(out))).permute(0, 3, 1, 2)
        result: Tensor = x + self.scale * out
        return result


class _ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """ConvNeXt in a form for small images.

    Example:
        >>> ConvNext()(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 48, 2, 2), _ChannelNorm(48, eps=1e-6)]
        channels = 48
        for outputs, depth in ((48, 2), (96, 2), (192, 4), (384, 2)):
            if outputs != channels:
                layers += [_ChannelNorm(channels, eps=1e-6), nn.Conv2d(channels, outputs, 2, 2)]
            layers += [ConvNextBlock(outputs) for _ in range(depth)]
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.classifier = nn.Linear(channels, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, classes]``."""
        logits: Tensor = self.classifier(self.norm(self.features(x).mean((2, 3))))
        return logits


class _Basic(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = [*_normed(channels, outputs, 3, stride), nn.ReLU()]
        self.layers = nn.Sequential(*first, *_normed(outputs, outputs, 3))
        same = stride == 1 and channels == outputs
        shortcut = [] if same else _normed(channels, outputs, 1, stride)
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 in its form for small images: the first layer keeps their size.

    He et al. 2016, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).

    Args:
        width: channels of the first stage; the others have 2, 4 and 8 times as many.

    Example:
        >>> ResNet18(width=4)(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 10])
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers = [*_normed(3, width, 3), nn.ReLU()]
        channels = width
        for factor, stride in ((1, 1), (2, 2), (4, 2), (8, 2)):
            layers.append(_Basic(channels, factor * width, stride))
            channels = factor * width
            layers.append(_Basic(channels, channels, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, classes]``."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits
