"""Members whose activations are perturbed, against plain loops with hooks, and against autograd."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from graph_nets import residual
from perturbed import cosine, evaluation_of, held_parameters, labels_for, relative
from small_nets import (
    InPlace,
    Shared,
    conv1d_net,
    depthwise,
    inputs_for,
    made,
    make,
    normalised_perceptron,
    perceptron,
)
from torch import nn

from tinkering.models import BasicBlock, SimpleResNet
from tinkering.noise import Stream

# A plain loop: one member, one image and one forward of the module at a time.


@dataclass
class Point:
    """A place in a module where a member's noise is added, and whose weights it tells about."""

    module: str
    layers: tuple[tuple[str, str | None], ...]
    """Convolution or linear layer and its norm, by name; their sum is what is perturbed."""
    before: bool = False
    """Whether the module's input is the place, rather than what it returns."""
    rectified: bool = True

    def watch(self, model, seen):
        """Call a function with the value, which returns what to go on with."""
        module = model.get_submodule(self.module)
        if self.before:
            return module.register_forward_pre_hook(lambda _, given: (seen(given[0]),))
        return module.register_forward_hook(lambda _module, _given, made: seen(made))


class Loop:
    def __init__(self, model, points, members, sigma, stream):
        self.model, self.points, self.stream = model, points, stream
        self.members, self.sigma = members, sigma

    def run(self, x, point=None, change=None):
        """The module's result, and the value at a point, which may be changed."""
        found = []

        def seen(value):
            found.append(value.clone())
            return value if change is None else change(value)

        hooks = [] if point is None else [point.watch(self.model, seen)]
        logits = self.model(x)
        for hook in hooks:
            hook.remove()
        return logits, found

    def signs(self, point, row, like):
        """Pixel after pixel, all channels of one after the other."""
        name = f"{point.layers[0][0]}.weight:result"
        signs = self.stream.signs(name, range(row, row + 1), like.numel()).float()
        if like.dim() < 4:
            return signs.view_as(like)
        _, channels, height, width = like.shape
        return signs.view(1, height, width, channels).permute(0, 3, 1, 2)

    def evaluate(self, x, y):
        fitness = torch.zeros(len(x), len(self.points), self.members)
        estimate = {name: torch.zeros_like(p) for name, p in self.model.named_parameters()}
        for at, point in enumerate(self.points):
            for i in range(len(x)):
                image = x[i : i + 1]
                _, (value,) = self.run(image, point)
                alone = point.rectified or value.numel() == 1
                spread = value if alone else value - value.mean()
                amount = self.sigma * spread.square().mean().sqrt()
                open_ = value > 0 if point.rectified else torch.ones_like(value).bool()
                noise = []
                for member in range(self.members):
                    signs = self.signs(point, i * self.members + member, value)
                    noise.append(torch.where(open_, signs, 0.0))
                    moved = value + amount * noise[-1]
                    logits, _ = self.run(image, point, lambda _, moved=moved: moved)
                    fitness[i, at, member] = -F.cross_entropy(logits, y[i : i + 1])
                change = torch.zeros_like(value)
                for member in range(self.members):
                    others = [fitness[i, at, o] for o in range(self.members) if o != member]
                    advantage = fitness[i, at, member] - sum(others) / len(others)
                    change += advantage * noise[member] / (self.members * amount)
                for layer, norm in point.layers:
                    self.add(estimate, layer, norm, image, change / len(x))
        return fitness.flatten(), estimate

    def add(self, estimate, layer, norm, image, change):
        """What a change of a layer's result says about its weights, as plain sums."""
        module = self.model.get_submodule(layer)
        given = []
        hook = module.register_forward_pre_hook(lambda _, args: given.append(args[0]))
        self.model(image)
        hook.remove()
        (x,) = given
        if norm is not None:
            behind = self.model.get_submodule(norm)
            estimate[f"{norm}.bias"] += change.sum((0, 2, 3))
            scale = behind.weight / (behind.running_var + behind.eps).sqrt()
            change = change * scale.view(1, -1, 1, 1)
        if module.bias is not None:
            estimate[f"{layer}.bias"] += change.sum([0, *range(2, change.dim())])
        if isinstance(module, nn.Linear):
            estimate[f"{layer}.weight"] += torch.outer(change[0], x[0])
            return
        (pad, _), (stride, _), (kernel, _) = module.padding, module.stride, module.kernel_size
        x = F.pad(x, [pad] * 4)
        height, width = (stride * (size - 1) + 1 for size in change.shape[2:])
        for row in range(kernel):
            for column in range(kernel):
                tap = x[:, :, row : row + height : stride, column : column + width : stride]
                products = change.unsqueeze(2) * tap.unsqueeze(1)
                estimate[f"{layer}.weight"][:, :, row, column] += products.sum((0, 3, 4))


def sequential():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


SEQUENTIAL = [
    Point("2", (("0", "1"),)),
    Point("4", (("3", None),)),
    Point("7", (("7", None),), rectified=False),
]


def small_resnet():
    return SimpleResNet(BasicBlock, [1, 1, 1, 1], num_classes=5, width=2)


def _block(stage, shortcut):
    own = f"layer{stage}.0"
    sharing = [(f"{own}.conv2", f"{own}.bn2")]
    sharing += [(f"{own}.shortcut.0", f"{own}.shortcut.1")] * shortcut
    return [
        Point(f"{own}.conv2", ((f"{own}.conv1", f"{own}.bn1"),), before=True),
        Point(own, tuple(sharing)),
    ]


RESNET = [
    Point("layer1", (("conv1", "bn1"),), before=True),
    *(point for stage in (1, 2, 3, 4) for point in _block(stage, stage > 1)),
    Point("linear", (("linear", None),), rectified=False),
]


class TestAgainstALoop:
    @pytest.mark.parametrize(
        ("build", "points", "images", "members"),
        [(sequential, SEQUENTIAL, 3, 4), (small_resnet, RESNET, 3, 4)],
        ids=["sequential", "resnet"],
    )
    @torch.no_grad()
    def test_fitness_and_estimate(self, build, points, images, members):
        model, x = make(build, seed=2), torch.randn(images, 1, 8, 8)
        model.get_submodule(points[-1].module).weight.mul_(20)  # so that all noise matters
        result = evaluation_of(model, x, samples=members, sigma=0.5, seed=5, generation=7)
        loop = Loop(model, points, members, 0.5, Stream(5, 7))
        fitness, estimate = loop.evaluate(x, labels_for(x))
        assert result.fitness.shape == (len(points) * images * members,)
        torch.testing.assert_close(result.fitness, fitness, rtol=1e-4, atol=1e-5)
        each = fitness.view(images, len(points), members)
        assert (each.amax(2) - each.amin(2)).max() > 0.1  # the noise matters
        assert result.gradient.keys() == held_parameters(model, x)
        for name, value in result.gradient.items():
            assert value.abs().max() > 0
            assert relative(value, estimate[name]) <= 3e-4, name  # differences of near numbers

    @torch.no_grad()
    def test_where_a_rectifier_is_shut_nothing_is_known(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5)).eval()
        model[0].weight[1:3] = 0
        model[0].bias.copy_(torch.tensor([0.3, -1.0, 0.0, 0.2]))
        estimate = evaluation_of(model, torch.randn(6, 3), samples=16).gradient
        assert torch.equal(estimate["0.bias"][1:3], torch.zeros(2))
        assert torch.equal(estimate["0.weight"][1:3], torch.zeros(2, 3))
        assert (estimate["0.bias"][[0, 3]] != 0).all()


def features_of_tokens():
    """A linear layer on [images, tokens, features]."""
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 5)
    )


features_of_tokens.shape = (3, 4)


def log_probabilities():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.LogSoftmax(1))


log_probabilities.shape = (6,)


def one_pixel():
    return nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1, groups=2), nn.Flatten(), nn.Linear(6, 5)
    )


one_pixel.shape = (4, 1, 1)


def one_channel():
    return nn.Sequential(
        nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Conv2d(1, 1, (3, 1)), nn.Flatten()
    )


one_channel.shape = (1, 3, 5)


def one_column():
    return nn.Sequential(nn.Conv2d(1, 4, (3, 1), padding=(1, 0)), nn.ReLU(), nn.Conv2d(4, 1, 1))


one_column.shape = (1, 5, 1)


class SeenAsRows(nn.Module):
    """Asks how many images there are, and reads them twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 1)
        self.last = nn.Linear(24, 5)

    def forward(self, x):
        y = self.second(torch.relu(self.first(x))) * (1 + torch.sin(x))
        return self.last(y.view(x.size(0), -1))


SeenAsRows.shape = (2, 3, 4)


class ThreeSummands(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(5, n) for n in (6, 6, 6, 6))
        self.last = nn.Linear(6, 5)

    def forward(self, x):
        return self.last(torch.relu(self.a(x) + self.b(x.tanh()) + self.c(x.sin()) + self.d(-x)))


ThreeSummands.shape = (5,)


class TwiceInOneSum(nn.Module):
    """Of a layer used twice, both uses count."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.last(torch.relu(self.first(x) + self.first(x.square())))


TwiceInOneSum.shape = (5,)


def zero_head():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    return model


zero_head.shape = (6,)


CONVERGE = {
    perceptron: 1200,
    normalised_perceptron: 1200,
    features_of_tokens: 1000,
    log_probabilities: 1600,
    one_pixel: 1000,
    one_channel: 1000,
    one_column: 800,
    zero_head: 400,
    SeenAsRows: 2000,
    ThreeSummands: 500,
    TwiceInOneSum: 500,
    Shared: 3000,
    InPlace: 4000,
    conv1d_net: 3000,
    depthwise: 24000,
    residual: 4000,
}
"""Networks, and how many members they take: more, the more numbers a layer makes."""


def estimate_and_gradient(build, members, model=None, x=None, sigma=0.01):
    model = made(build) if model is None else model
    model.zero_grad()
    for p in model.parameters():
        p.requires_grad_()
    x = inputs_for(build, 3) if x is None else x
    y = labels_for(x)

    def fitness(logits, labels):
        return -F.cross_entropy(logits.flatten(1), labels[:, 0], reduction="none")

    F.cross_entropy(model(x).flatten(1), y).neg().backward()
    gradient = {name: p.grad for name, p in model.named_parameters()}
    scores = evaluation_of(model, x, samples=members, sigma=sigma, fitness=fitness, y=y)
    return scores.gradient, gradient


class TestAgainstAutograd:
    @pytest.mark.parametrize("build", CONVERGE, ids=lambda build: build.__name__)
    def test_with_many_members_the_estimate_is_the_gradient(self, build):
        estimate, gradient = estimate_and_gradient(build, CONVERGE[build])
        assert len(estimate) >= 2
        moving = {name for name, value in gradient.items() if value is not None}
        moving = {name for name in estimate if name in moving and gradient[name].norm() > 1e-6}
        assert len(moving) >= 2
        for name in moving:
            assert cosine(estimate[name], gradient[name]) > 0.95, name
        one, other = (torch.cat([g[n].flatten() for n in moving]) for g in (estimate, gradient))
        assert 0.9 < one.norm() / other.norm() < 1.1

    @pytest.mark.parametrize("build", [log_probabilities, one_pixel])
    def test_four_times_the_members_halve_the_error(self, build):
        model, x = made(build), inputs_for(build, 3)
        _, gradient = estimate_and_gradient(build, 2, model=model, x=x)

        def error(members):
            squares = []
            for generation in range(10):
                estimate = evaluation_of(
                    model, x, samples=members, sigma=0.01, generation=generation
                ).gradient
                squares += [
                    sum((estimate[n] - gradient[n]).square().sum().item() for n in estimate)
                ]
            return (sum(squares) / len(squares)) ** 0.5

        few, more, many = (error(members) for members in (16, 64, 256))
        assert 1.7 < few / more < 2.3
        assert 1.7 < more / many < 2.3
