"""Small networks of many kinds, and plain loops over members, for the tests of evaluation."""

import copy
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from tinkering.engines import rating as fitness_room
from tinkering.engines.network import look
from tinkering.evaluation.entry import evaluate
from tinkering.graph.capture import capture
from tinkering.graph.signature import sign
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.population import PerturbedPopulation, StackedPopulation

BATCH_NORM = nn.modules.batchnorm._BatchNorm


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


class PreActivation(nn.Module):
    """Norm and rectifier before the convolution; the shortcut reads what they made."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x):
        y = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + kept


class Shared(nn.Module):
    """One convolution twice, tied linear layers, and a residual from the image itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.last = nn.Linear(64, 5)

    def forward(self, x):
        out = torch.relu(self.conv(x) + x)
        out = self.conv(out)
        out += x
        return self.last(self.second(torch.tanh(self.first(out))).flatten(1))


class Transformer(nn.Module):
    """Words, learned positions, an encoder, the mean of all tokens."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.positions = nn.Parameter(torch.randn(1, 6, 8) / 2)
        layer = nn.TransformerEncoderLayer(8, 2, 12, 0.1, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 5)
        self.axis = 1 if batch_first else 0

    def forward(self, words):
        x = self.words(words) + self.positions
        x = self.encoder(x if self.axis else x.transpose(0, 1))
        return self.linear(self.norm(x).mean(self.axis))


class Attention(nn.Module):
    """Multi-head attention alone."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0].flatten(1)


class DependsOnData(nn.Module):
    """Python looks at a number in a tensor: no graph can hold that."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 5)

    def forward(self, x):
        x = x.flatten(1)
        return self.linear(x) if x.sum() > 1e9 else -self.linear(x)


def takes(*shape, words=0, engine="factored", unknown="", **refused):
    """Say what a network takes, and which engine serves it.

    Words are integers below `words`; `refused` are engines that do not, and what they say.
    """

    def note(build):
        build.shape, build.words, build.engine, build.unknown = shape, words, engine, unknown
        vars(build).update(refused)
        return build

    return note


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


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.GroupNorm(3, 6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 10),
        nn.Dropout(0.5),
        nn.Linear(10, 5),
    )


@takes(2, 8, 8)
def depthwise():
    """Depthwise and pointwise convolutions, and some in two groups."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, groups=2, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 1),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 4, 3, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


def grouped():
    """Convolutions in groups of many kinds, and functions that are no rectifier between them."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.Hardswish(),
        nn.Conv2d(16, 16, 5, padding=2, groups=16),
        nn.GELU(),
        nn.Conv2d(16, 24, 3, padding=2, dilation=2, groups=4, bias=False),
        nn.BatchNorm2d(24),
        nn.Hardtanh(-1.0, 2.0),
        nn.Conv2d(24, 48, (3, 1), stride=2, groups=24),
        nn.GELU("tanh"),
        nn.Flatten(),
        nn.Linear(48 * 3 * 4, 5),
    )


def padded_and_transposed():
    """Convolutions that keep the size of an image, and transposed ones."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding="same"),
        nn.SiLU(),
        nn.Conv2d(4, 4, (2, 5), padding="same", dilation=(2, 1)),
        nn.BatchNorm2d(4),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, (2, 3), dilation=2, groups=2, bias=False),
        nn.Conv2d(4, 3, 3, stride=3, padding="valid"),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(2),
        nn.ConvTranspose1d(3, 2, 3),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


@takes(6, words=11)
def transformer():
    return Transformer()


@takes(6, words=11)
def transformer_of_time_first():
    return Transformer(batch_first=False)


@takes(6, 8)
def attention():
    return Attention()


@takes(2, 24)
def conv1d_net():
    return nn.Sequential(
        nn.Conv1d(2, 5, 3, stride=2, padding=1),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Conv1d(5, 4, 3, dilation=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


@takes(1, 4, 6, 5)
def conv3d_net():
    return nn.Sequential(
        nn.Conv3d(1, 4, (2, 3, 3), stride=(1, 2, 1), padding=(0, 1, 1)),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.Conv3d(4, 3, 2),
        nn.Flatten(),
        nn.Linear(48, 5),
    )


def vgg():
    def block(inputs, outputs):
        for source in (inputs, outputs):
            yield from (nn.Conv2d(source, outputs, 3, padding=1), nn.BatchNorm2d(outputs))
            yield nn.ReLU(inplace=True)
        yield nn.MaxPool2d(2)

    return nn.Sequential(*block(1, 4), *block(4, 6), nn.Flatten(), nn.Linear(24, 5))


def pre_activation_resnet():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        PreActivation(4, 4),
        PreActivation(4, 6, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


@takes(1, 8, 8)
def biased_and_normed():
    """A convolution with a bias before its norm: both offsets are added in one go."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(384, 5),
    )


def norm_without_affine():
    norm = nn.BatchNorm2d(4, affine=False)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def norm_without_statistics():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


@takes(1, 8, 8)
def prelu():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.PReLU(4), nn.Flatten(), nn.Linear(144, 5))


class Recurrent(nn.Module):
    """A recurrent module, and what it makes of the last moment."""

    def __init__(self, kind, features, **options):
        super().__init__()
        self.first, self.over_time = nn.Linear(3, 3), kind(3, 4, **options)
        self.last = nn.Linear(features, 5)

    def forward(self, x):
        x = self.first(x)
        if not self.over_time.batch_first:
            return self.last(self.over_time(x.transpose(0, 1))[0][-1])
        return self.last(self.over_time(x)[0][:, -1])


NO_RULE = "Batching rule not implemented"


@takes(6, 3, vmapped=NO_RULE)
def lstm():
    return Recurrent(nn.LSTM, 8, num_layers=2, bidirectional=True, batch_first=True)


@takes(6, 3, vmapped=NO_RULE)
def gru_of_time_first():
    return Recurrent(nn.GRU, 4)


@takes(6, 3, vmapped=NO_RULE)
def elman():
    return Recurrent(nn.RNN, 4, nonlinearity="relu", bias=False, batch_first=True)


class Cells(nn.Module):
    """Cells, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.seen = nn.Linear(3, 3)
        self.first, self.second = nn.GRUCell(3, 4), nn.LSTMCell(4, 5)
        self.third = nn.RNNCell(5, 5)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], 4)
        state = x.new_zeros(x.shape[0], 5), x.new_zeros(x.shape[0], 5)
        for moment in self.seen(x).unbind(1):
            h = self.first(moment, h)
            state = self.second(h, state)
        return self.third(state[0], state[1])


@takes(4, 3, vmapped=NO_RULE)
def cells():
    return Cells()


class ClassToken(nn.Module):
    """Parameters that are expanded, concatenated, looked up by constants and multiplied with."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Embedding(7, 8)
        self.table = nn.Parameter(torch.randn(9, 2))
        self.weight, self.bias = nn.Parameter(torch.randn(8, 8) / 3), nn.Parameter(torch.randn(8))
        self.register_buffer("order", torch.arange(7))
        self.register_buffer("apart", torch.arange(49).view(7, 7) % 9)
        self.seen, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.seen(x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places(self.order)
        x = torch.addmm(self.bias, x.reshape(-1, 8), self.weight).view(x.shape)
        heads = x.view(x.shape[0], 7, 2, 4).transpose(1, 2)
        bias = self.table[self.apart].permute(2, 0, 1)
        weights = (heads @ heads.mT / 2 + bias).softmax(-1)
        x = (weights @ heads).transpose(1, 2).flatten(2) @ self.weight
        return self.head(x[:, 0])


@takes(6, 8)
def class_token():
    return ClassToken()


@takes(1, 8, 8, engine="sequential", unknown="DependsOnData")
def depends_on_data():
    return DependsOnData()


NETWORKS = [resnet, bottleneck_resnet, perceptron, normalised_perceptron, convnet, ByHand, InPlace]
NETWORKS += [lenet, depthwise, transformer, transformer_of_time_first, attention, conv1d_net]
NETWORKS += [conv3d_net, vgg, pre_activation_resnet, Shared, norm_without_affine, prelu]
NETWORKS += [norm_without_statistics, biased_and_normed, depends_on_data, lstm, elman, cells]
NETWORKS += [gru_of_time_first, class_token, grouped, padded_and_transposed]


def engine_for(build):
    """The engine that "auto" should find for members around a centre."""
    return getattr(build, "engine", "factored")


def inputs_for(build, *leading):
    """Random images for a network, or words."""
    shape, words = getattr(build, "shape", (1, 8, 8)), getattr(build, "words", 0)
    return torch.randint(words, (*leading, *shape)) if words else torch.randn(*leading, *shape)


def normed(build):
    """Whether a network has batch norms."""
    return any(isinstance(layer, BATCH_NORM) for layer in made(build).modules())


@cache
def made(build):
    """A network that is shared between tests, because a new one has to be captured anew."""
    return make(build)


def make(build, seed=0):
    """A network in eval mode whose running statistics and biases are not those of a new one."""
    # What a test draws next must not depend on whether another has made the network.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        model.train()(inputs_for(build, 2))
        for layer in model.modules():
            if isinstance(layer, BATCH_NORM):
                if layer.track_running_stats:
                    layer.running_mean.normal_(std=0.3)
                    layer.running_var.uniform_(0.5, 2.0)
                if layer.affine:
                    layer.weight.uniform_(0.5, 1.5)
                    layer.bias.normal_(std=0.3)
    return model.eval()


def loop(population, x, in_dims=(0, None), model=None, of_batch=False):
    """What each member, as a module of its own, makes of its batch.

    With `of_batch`, batch norms use the statistics of the batch, as they do in training.
    """
    outputs = []
    with torch.no_grad():
        for i in range(len(population)):
            member = population.materialise(i, model).eval()
            for layer in member.modules():
                if of_batch and isinstance(layer, BATCH_NORM):
                    layer.train()
            outputs.append(member(x if in_dims == (0, None) else x[i]))
    return torch.stack(outputs)


def centres_statistics(model, x):
    """The buffers that a training step on `x` leaves, if nothing before it counts."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, BATCH_NORM):
            layer.train().momentum = 1.0
    with torch.no_grad():
        model(x)
    return dict(model.named_buffers())


def trusted(fitness):
    """A fitness that is not called again to find out whether it rates members apart."""
    fitness_room._independent.add(fitness)
    return fitness


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


@cache
def modules_of(build, size=4):
    return StackedPopulation.from_modules([make(build, seed) for seed in range(1, size + 1)])


def fitness_of(*args, **kwargs):
    """What `evaluate` says the members are worth."""
    return evaluate(*args, **kwargs).fitness


def captured(model, *args, **kwargs):
    return capture(model, *sign(args, kwargs))


def seen(model, *args, **kwargs):
    return look(model, *sign(args, kwargs))


def program(model, *args, **kwargs):
    return seen(model, *args, **kwargs).steps(type(model).__name__)
