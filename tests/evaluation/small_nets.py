"""Small networks of many kinds, and plain loops over members, for the tests of evaluation."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from tinkering.models import BasicBlock, SimpleResNet
from tinkering.population import PerturbedPopulation


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1: a block that this package does not have."""

    expansion = 2

    def __init__(self, in_planes, planes, stride=1):
        super().__init__()
        out = planes * self.expansion
        self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(in_planes, out, 1, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ByHand(nn.Module):
    """Parameters of its own, handed to the functional forms of layers."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 1, 3, 3) / 3)
        self.matrix = nn.Parameter(torch.randn(5, 4) / 2)

    def forward(self, x):
        x = F.conv2d(x, self.kernel, padding=(1, 0), stride=(2, 1))
        return F.linear(torch.tanh(x).mean((2, 3)), self.matrix)


class InPlace(nn.Module):
    """A residual block that overwrites its own results, as many published ResNets do."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        out = self.conv2(x)
        out += x
        return self.linear(self.relu(out).mean((2, 3)))


def resnet():
    return SimpleResNet(BasicBlock, [1, 2, 1, 1], num_classes=5, width=2)


def bottleneck_resnet():
    return SimpleResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, width=2)


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 5))


def normalised_perceptron():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5)
    )


def convnet():
    """Strides, paddings, dilations and kernels that are not square; biases everywhere."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 3, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)),
        nn.GELU(),
        nn.MaxPool2d(2, stride=1),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


NETWORKS = [resnet, bottleneck_resnet, perceptron, normalised_perceptron, convnet, ByHand, InPlace]


@cache
def made(build):
    """A network that is shared between tests, because a new one has to be captured anew."""
    return make(build)


def make(build, seed=0, channels=1, size=8):
    """A network in eval mode whose running statistics and biases are not those of a new one."""
    torch.manual_seed(seed)
    model = build()
    with torch.no_grad():
        model.train()(torch.randn(2, channels, size, size))
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.normal_(std=0.3)
                layer.running_var.uniform_(0.5, 2.0)
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(std=0.3)
    return model.eval()


def loop(population, x, in_dims=(0, None), model=None):
    """What each member, as a module of its own, makes of its batch."""
    outputs = []
    with torch.no_grad():
        for i in range(len(population)):
            member = population.materialise(i, model).eval()
            outputs.append(member(x if in_dims == (0, None) else x[i]))
    return torch.stack(outputs)


def batch_for(in_dims, members, images, shape=(1, 8, 8)):
    return torch.randn(*([members] if in_dims == (0, 0) else []), images, *shape)


def population_of(model, size=6, sigma=0.1, seed=3, **changes):
    return PerturbedPopulation(model, size=size, sigma=sigma, seed=seed, **changes)


def assert_close(result, expected, tolerance=1e-4):
    """Relative to the largest value; and the members must differ by much more than that."""
    assert result.shape == expected.shape
    scale = expected.abs().max()
    assert torch.isfinite(result).all()
    if len(expected) > 1:
        assert (expected[0] - expected[1]).abs().max() > 100 * tolerance * scale
    difference = (result - expected).abs().max() / scale
    assert difference <= tolerance, f"relative difference {difference:.1e}"
