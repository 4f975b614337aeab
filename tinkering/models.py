"""A small ResNet for 28x28 single-channel images, and forwards over many parameter sets.

Run this file to see it work: ``python -m tinkering.models``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import stack_module_state

from tinkering.errors import ArgumentError
from tinkering.functional import ParamsAndBuffers as ParamsAndBuffers
from tinkering.functional import functional_forward_core as functional_forward_core
from tinkering.functional import get_parallel_forward_pass_fn as get_parallel_forward_pass_fn


@runtime_checkable
class BlockType(Protocol):
    """What `SimpleResNet` needs of a residual block's class."""

    expansion: int
    """Channels that come out, for each of ``planes``."""

    def __call__(self, in_planes: int, planes: int, stride: int = 1) -> nn.Module:
        """Return a block; `stride` divides the resolution."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with batch normalisation, around a residual connection.

    He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385),
    figure 2. Where the shapes on both sides differ, a strided 1x1 convolution with
    batch normalisation is the shortcut; elsewhere the shortcut is empty.

    Args:
        in_planes: channels that come in.
        planes: channels of both convolutions; ``planes * expansion`` come out.
        stride: stride of the first convolution.

    Example:
        >>> BasicBlock(8, 16, stride=2)(torch.zeros(1, 8, 28, 28)).shape
        torch.Size([1, 16, 14, 14])
    """

    expansion = 1

    def __init__(self, in_planes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        out_planes = planes * self.expansion
        if stride != 1 or in_planes != out_planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, out_planes, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_planes),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, planes * expansion, height / stride, width / stride]``."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class SimpleResNet(nn.Module):
    """A ResNet of four stages for small images; the first convolution keeps the resolution.

    The stages have ``width * (1, 2, 4, 8)`` channels; the last three begin with stride 2.
    With ``width=64`` and three input channels its ``state_dict`` has the keys and shapes
    of the CIFAR ResNets in common use, so that their checkpoints load.

    Args:
        block: the residual block: ``block(in_planes, planes, stride)`` with a class
            attribute ``expansion``, such as `BasicBlock`.
        num_blocks_per_stage: four numbers of at least 1.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        width: channels of the first stage before expansion.

    Raises:
        ArgumentError: (a ``ValueError``) one of these is out of range.

    Example:
        >>> model = SimpleResNet(BasicBlock, [2, 2, 2, 2], num_classes=47, width=8)
        >>> model(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 47])
    """

    def __init__(
        self,
        block: BlockType,
        num_blocks_per_stage: Sequence[int],
        num_classes: int = 10,
        in_channels: int = 1,
        *,
        width: int = 64,
    ) -> None:
        super().__init__()
        if len(num_blocks_per_stage) != 4 or any(map(_below_one, num_blocks_per_stage)):
            raise ArgumentError(
                "num_blocks_per_stage",
                "four numbers of at least 1, one a stage",
                list(num_blocks_per_stage),
            )
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
        for name, value in sizes.items():
            if _below_one(value):
                raise ArgumentError(name, "an integer of at least 1", value)
        self.in_channels = in_channels
        self.in_planes = width
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._make_layer(block, width, num_blocks_per_stage[0], stride=1)
        self.layer2 = self._make_layer(block, width * 2, num_blocks_per_stage[1], stride=2)
        self.layer3 = self._make_layer(block, width * 4, num_blocks_per_stage[2], stride=2)
        self.layer4 = self._make_layer(block, width * 8, num_blocks_per_stage[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.linear = nn.Linear(self.in_planes, num_classes)

    def _make_layer(
        self, block: BlockType, planes: int, num_blocks: int, stride: int
    ) -> nn.Sequential:
        """Return one stage; only its first block has the stride."""
        blocks = []
        for block_stride in [stride] + [1] * (num_blocks - 1):
            blocks.append(block(self.in_planes, planes, block_stride))
            self.in_planes = planes * block.expansion
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, classes]`` for images ``[batch, in_channels, height, width]``.

        Raises:
            ArgumentError: (a ``ValueError``) `x` has another shape.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ArgumentError(
                "x", f"images of shape [batch, {self.in_channels}, height, width]", list(x.shape)
            )
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        logits: Tensor = self.linear(torch.flatten(self.avgpool(out), 1))
        return logits


def _below_one(number: object) -> bool:
    return not isinstance(number, int) or number < 1


def ResNet4StageCustom(num_classes: int = 10, in_channels: int = 1) -> SimpleResNet:
    """Return a `SimpleResNet` with one `BasicBlock` in each of its four stages.

    Example:
        >>> sum(p.numel() for p in ResNet4StageCustom(num_classes=10).parameters())
        4902090
    """
    return SimpleResNet(BasicBlock, [1, 1, 1, 1], num_classes=num_classes, in_channels=in_channels)


@torch.no_grad()
def _demonstrate(population_size: int = 4, batch_size: int = 5, tolerance: float = 1e-5) -> int:
    """Walk through the five forwards, print shapes and differences; return the failures."""
    torch.manual_seed(0)
    model = ResNet4StageCustom()
    x = torch.randn(batch_size, 1, 28, 28)
    # Fresh running statistics leave almost no signal in the logits, and then any two
    # models agree; some passes in train mode give the comparisons something to find.
    for _ in range(10):
        model(x)
    model.eval()
    failures = 0

    def compare(result: Tensor, reference: Tensor) -> None:
        nonlocal failures
        difference = (result - reference).abs().max().item()
        # Not `>`: a NaN is a failure too.
        verdict = "ok" if difference <= tolerance else f"FAILED, tolerance {tolerance:g}"
        failures += verdict != "ok"
        print(f"   {list(result.shape)}, largest difference {difference:.1e}: {verdict}")

    print("1. standard forward of one model, against each image on its own")
    standard = model(x)
    compare(standard, torch.cat([model(image[None]) for image in x]))

    print("2. functional forward of the same model, against the standard forward")
    state = (dict(model.named_parameters()), dict(model.named_buffers()))
    compare(functional_forward_core(model, state, x), standard)

    print(f"3. a population of {population_size} models with slightly perturbed weights, stacked")
    models = []
    for _ in range(population_size):
        member = ResNet4StageCustom().eval()
        member.load_state_dict(model.state_dict())
        for parameter in member.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        models.append(member)
    params, buffers = stack_module_state(models)
    compare(params["conv1.weight"], torch.stack([member.conv1.weight for member in models]))

    print("4. the population on one shared batch, in_dims (0, None), against a loop")
    shared = get_parallel_forward_pass_fn(model)((params, buffers), x)
    compare(shared, torch.stack([member(x) for member in models]))

    print("5. the population, each model on a batch of its own, in_dims (0, 0), against a loop")
    batches = torch.randn(population_size, batch_size, 1, 28, 28)
    own = get_parallel_forward_pass_fn(model, in_dims=(0, 0))((params, buffers), batches)
    compare(own, torch.stack([member(b) for member, b in zip(models, batches, strict=True)]))
    return failures


if __name__ == "__main__":
    sys.exit(1 if _demonstrate() else 0)
