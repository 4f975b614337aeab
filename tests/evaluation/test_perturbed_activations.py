"""Members whose activations are perturbed, against plain loops with hooks, and against autograd."""

import copy
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from graph_nets import Net, conv
from graph_nets import norm as norm_of
from perturbed import held_parameters, perturbed
from small_nets import (
    InPlace,
    Shared,
    conv1d_net,
    depthwise,
    inputs_for,
    make,
    normalised_perceptron,
    perceptron,
    transformer,
    trusted,
)
from torch import nn

from tinkering.engines import activation_plan
from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.evaluation.entry import evaluate, plan_evaluation
from tinkering.evaluation.fitness import accuracy
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.noise import Stream


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def labels_for(x):
    return torch.arange(len(x)) % 5


def evaluation_of(model, x, *, names=None, y=None, fitness=None, dtype=torch.float32, **changes):
    population = perturbed(model, x, names, **changes)
    given = {} if fitness is None else {"fitness": fitness}
    y = labels_for(x) if y is None else y
    return evaluate(model, population, x, y, **given, dtype=dtype)


def relative(result, expected):
    return ((result - expected).abs().max() / expected.abs().max()).item()


def cosine(one, other):
    return F.cosine_similarity(one.flatten(), other.flatten(), 0).item()


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


def residual():
    """Two blocks with norms, of which the first changes the channels."""

    def forward(m, x):
        y = F.relu(m.n1(m.c1(x)))
        y = F.relu(m.n2(m.c2(y)) + m.n3(m.c3(x)))
        y = F.relu(m.n5(m.c5(F.relu(m.n4(m.c4(y))))) + y)
        return m.last(y.mean((2, 3)))

    convs = {f"c{i}": conv(4, 4, bias=False) for i in (2, 4, 5)}
    convs |= {"c1": conv(2, 4), "c3": conv(2, 4, kernel=1, bias=False)}
    return Net(forward, **convs, **{f"n{i}": norm_of(4) for i in range(1, 6)}, last=nn.Linear(4, 5))


residual.shape = (2, 4, 4)

CONVERGE = {
    perceptron: 400,
    normalised_perceptron: 400,
    features_of_tokens: 1000,
    log_probabilities: 400,
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
    depthwise: 8000,
    residual: 4000,
}
"""Networks, and how many members they take: more, the more numbers a layer makes."""


def estimate_and_gradient(build, members, model=None, x=None, sigma=0.01):
    model = cached(build) if model is None else model
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
        model, x = cached(build), inputs_for(build, 3)
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


def perceptron_with_norm():
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5))


perceptron_with_norm.shape = (8,)


def tokens_of_words():
    """Embeddings that stay, and a head that evolves."""
    return nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(24, 6), nn.Linear(6, 5))


class TestTiles:
    BUILDS = (residual, depthwise, conv1d_net, perceptron)

    @pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
    @pytest.mark.parametrize(("fitting", "threads"), [(1, 1), (7, 2), (10, 1), (1000, 2)])
    def test_they_change_nothing(self, build, fitting, threads, monkeypatch, set_threads):
        model = cached(build)
        x = inputs_for(build, 5)
        whole = evaluation_of(model, x, samples=3, sigma=0.2)
        monkeypatch.setattr(activation_plan, "images_in_cache", lambda *_: fitting)
        set_threads(threads)
        parts = evaluation_of(model, x, samples=3, sigma=0.2)
        torch.testing.assert_close(parts.fitness, whole.fitness, rtol=1e-4, atol=1e-4)
        for name, value in whole.gradient.items():
            assert relative(parts.gradient[name], value) <= 1e-4, name
        assert parts.forwards == whole.forwards

    def test_nor_where_some_fitness_is_not_finite(self, monkeypatch):
        model, x = cached(perceptron), inputs_for(perceptron, 6)

        def fitness(logits, labels):
            worth = logits[:, 0, 0] * (1 + labels[:, 0])
            return torch.where(worth > worth.new_tensor(0.1), torch.nan, worth)

        whole = evaluation_of(model, x, samples=6, fitness=fitness)
        assert 0 < whole.fitness.isnan().sum() < len(whole.fitness)
        monkeypatch.setattr(activation_plan, "images_in_cache", lambda *_: 1)
        parts = evaluation_of(model, x, samples=6, fitness=fitness)
        for name, value in whole.gradient.items():
            assert torch.isfinite(value).all()
            assert relative(parts.gradient[name], value) <= 1e-4, name

    def test_how_many_images_a_tile_has(self, monkeypatch, set_threads):
        set_threads(1)  # tiles in their order
        seen = []

        @trusted
        def fitness(logits, labels):
            seen.append(len(labels))
            return logits.sum((1, 2))

        monkeypatch.setattr(activation_plan, "images_in_cache", lambda *_: 8)
        evaluation_of(cached(perceptron), inputs_for(perceptron, 5), samples=3, fitness=fitness)
        assert seen == [6, 6, 6, 6, 3, 3]  # two images' members, at two layers


class TestReadings:
    def read(self, members=4, **changes):
        """What a fitness is shown: logits ``[layers, images, members, readings, classes]``."""
        seen = []

        @trusted
        def fitness(logits, labels):
            assert torch.equal(labels, labels[:, :1].expand(logits.shape[:2]))
            seen.append(logits)
            return logits.sum((1, 2))

        torch.manual_seed(1)
        model, x = cached(perceptron), inputs_for(perceptron, 6)
        scores = evaluation_of(model, x, samples=members, sigma=0.5, fitness=fitness, **changes)
        logits = torch.cat(seen)
        return logits.view(-1, members, *logits.shape[1:]), scores

    def test_an_images_members_are_read_under_the_same_noise(self, set_threads):
        set_threads(1)
        plain, _ = self.read()
        read, _ = self.read(blur=3.0, readings=500)
        assert read.shape[2] == 500
        noise = read - plain
        torch.testing.assert_close(noise, noise[:, :1].expand_as(noise), rtol=0, atol=1e-4)
        each = noise[: len(noise) // 2, 0]  # the images at the first layer
        assert 2.8 < each.std() < 3.2
        assert abs(each.mean()) < 0.2
        assert all(cosine(each[0], other) < 0.1 for other in each[1:])

    def test_without_noise_readings_are_alike(self, set_threads):
        set_threads(1)
        read, _ = self.read(readings=3)
        assert torch.equal(read, self.read()[0].expand_as(read))

    def test_portions_and_threads_change_nothing(self, monkeypatch, set_threads):
        set_threads(1)
        _, whole = self.read(blur=1.0, readings=5)
        monkeypatch.setattr(activation_plan, "images_in_cache", lambda *_: 4)
        set_threads(2)
        _, parts = self.read(blur=1.0, readings=5)
        torch.testing.assert_close(parts.fitness, whole.fitness, rtol=1e-4, atol=1e-4)

    def test_being_right_under_noise_has_a_gradient(self):
        """Of two classes one is right with the probability that the noise leaves it ahead."""
        torch.manual_seed(0)
        model, x = (
            nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).eval(),
            torch.randn(8, 6),
        )
        y = torch.arange(8) % 2
        logits = model(x)
        ahead = logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None])
        torch.special.ndtr(ahead / (0.7 * 2**0.5)).mean().backward()
        changes = {"samples": 400, "sigma": 0.1, "blur": 0.7, "readings": 400}
        scores = evaluation_of(model, x, y=y, fitness=accuracy, **changes)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        estimate = torch.cat([scores.gradient[n].flatten() for n, _ in model.named_parameters()])
        assert cosine(estimate, gradient) > 0.95
        assert 0.85 < estimate.norm() / gradient.norm() < 1.15

    def test_they_count_for_memory(self):
        model, x = cached(perceptron), inputs_for(perceptron, 6)
        needed = [
            plan_evaluation(
                model, perturbed(model, x, None, blur=blur, readings=readings), x
            ).needed
            for blur, readings in ((1.0, 1), (1.0, 10_000), (0.0, 10_000))
        ]
        assert needed[1] > needed[0] + 10_000 * 8 * 5 * 4  # members, classes, bytes
        assert needed[2] == needed[0]  # without noise they are all the same


@cache
def cached(build):
    return make(build)


class TestPurity:
    def test_the_same_call_gives_the_same_bits_and_other_noise_others(self):
        model, x = cached(residual), inputs_for(residual, 3)
        first, again = evaluation_of(model, x), evaluation_of(model, x)
        assert torch.equal(first.fitness, again.fitness)
        assert all(torch.equal(v, again.gradient[n]) for n, v in first.gradient.items())
        for change in ({"generation": 1}, {"seed": 1}):
            other = evaluation_of(model, x, **change)
            assert not torch.equal(first.fitness, other.fitness)
            assert all(not torch.equal(v, other.gradient[n]) for n, v in first.gradient.items())

    @pytest.mark.parametrize("build", [depthwise, InPlace], ids=["with norms", "in place"])
    def test_nothing_of_the_callers_changes(self, build):
        model, x = make(build), inputs_for(build, 3)
        before, images = copy.deepcopy(model.state_dict()), x.clone()
        population = perturbed(model, x, None)
        params = {name: p.clone() for name, p in population.params.items()}
        drawn = torch.random.get_rng_state()
        evaluate(model, population, x, labels_for(x))
        assert torch.equal(drawn, torch.random.get_rng_state())
        assert torch.equal(x, images)
        assert all(torch.equal(p, population.params[name]) for name, p in params.items())
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
        assert all(p.grad is None for p in model.parameters())
        assert not model.training

    def test_the_centre_is_the_populations_and_the_statistics_are_the_callers(self):
        model, other, x = cached(perceptron_with_norm), perceptron_with_norm(), torch.randn(3, 8)
        other.eval()[1].running_mean.add_(0.5)
        population = perturbed(other, x, None)
        own = {n: p.detach() for n, p in model.named_parameters()}
        merged = copy.deepcopy(other)
        still = {n: p for n, p in own.items() if n not in population.params}
        assert still
        merged.load_state_dict(still, strict=False)
        population = population.with_buffers(dict(other.named_buffers()))
        given = evaluate(model, population, x, labels_for(x))
        expected = evaluate(merged, population, x, labels_for(x))
        assert torch.equal(given.fitness, expected.fitness)
        assert all(torch.equal(v, expected.gradient[n]) for n, v in given.gradient.items())

    def test_parameters_in_double_precision(self):
        model, x = cached(perceptron), inputs_for(perceptron, 3)
        twice = copy.deepcopy(model).double()
        result, expected = evaluation_of(twice, x.double()), evaluation_of(model, x)
        for name, value in result.gradient.items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(value.float(), expected.gradient[name], rtol=1e-4, atol=1e-4)

    def test_words_stay_words(self):
        model, x = tokens_of_words().eval(), torch.randint(11, (5, 6))
        scores = evaluation_of(model, x, samples=4)
        assert scores.gradient.keys() == {"2.weight", "2.bias", "3.weight", "3.bias"}
        assert torch.isfinite(scores.fitness).all()


def overwritten(m, x):
    y = m.first(x)
    z = torch.sin(m.conv(torch.tanh(m.shortcut(y))))
    y.mul_(0.5).add_(z)
    return m.last(F.relu(y.add_(1))) + m.other(y)


def not_overwritten(m, x):
    y = m.first(x)
    z = torch.sin(m.conv(torch.tanh(m.shortcut(y))))
    y = y * 0.5 + z + 1
    return m.last(F.relu(y)) + m.other(y)


def shut_later(m, x):
    y = m.first(x)
    kept = m.shortcut(y)
    y.clamp_(min=0.1)
    return m.last(m.conv(y) + kept)


def shut_apart(m, x):
    y = m.first(x)
    kept = m.shortcut(y)
    return m.last(m.conv(y.clamp(min=0.1)) + kept)


def images_written(m, x):
    x.mul_(2)
    y = m.first(x)
    x.add_(1)
    return m.conv(y) * x.mean((1, 2, 3), keepdim=True)


def images_kept(m, x):
    return m.conv(m.first(x * 2)) * (x * 2 + 1).mean((1, 2, 3), keepdim=True)


def seen_while_written(m, x):
    """A layer in between a view and what is written to it."""
    y = m.first(x)
    part = y[:, :2]
    z = m.conv(y.tanh())
    part.mul_(2)
    return y * z


def seen_apart(m, x):
    y = m.first(x)
    return torch.cat([y[:, :2] * 2, y[:, 2:]], 1) * m.conv(y.tanh())


def layers():
    names = {name: conv(4) for name in ("conv", "shortcut", "last", "other")}
    return {"first": conv(), **names}


IN_PLACE = {
    "added to": (overwritten, not_overwritten),
    "what a layer read": (shut_later, shut_apart),
    "images": (images_written, images_kept),
    "through a view": (seen_while_written, seen_apart),
}


class TestInPlace:
    """A network that overwrites its values has the scores of its twin that does not."""

    @pytest.mark.parametrize("name", IN_PLACE)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_twins(self, name, dtype):
        one, other = IN_PLACE[name]
        model = Net(one, **layers()).eval()
        twin = Net(other, **model._modules).eval()
        x, y = torch.randn(4, 3, 5, 5), torch.arange(4)

        def fitness(logits, labels):
            return -F.cross_entropy(logits.flatten(1), labels[:, 0], reduction="none")

        images = x.clone()
        names = held_parameters(twin, x)
        scores = [
            evaluation_of(m, images, names=names, y=y, fitness=fitness, dtype=dtype, samples=4)
            for m in (model, twin)
        ]
        assert torch.equal(images, x)
        # Where one of the two rounds in between, the other may not.
        tolerance = 1e-4 if dtype == torch.float32 else 0.3
        assert relative(scores[0].fitness, scores[1].fitness) <= tolerance / 10
        for key, value in scores[0].gradient.items():
            assert relative(value, scores[1].gradient[key]) <= tolerance, key

    @pytest.mark.parametrize("activation", [nn.ReLU6, nn.SiLU, nn.ReLU])
    def test_activations(self, activation):
        def build(inplace):
            return nn.Sequential(
                nn.Conv2d(1, 4, 3),
                nn.BatchNorm2d(4),
                activation(inplace=inplace),
                nn.Conv2d(4, 4, 3, groups=4),
                activation(inplace=inplace),
                nn.MaxPool2d(2),
                activation(inplace=inplace),
                nn.Flatten(),
                nn.Linear(16, 5),
            )

        x = torch.randn(3, 1, 8, 8)
        one, other = (
            evaluation_of(make(lambda i=i: build(i)), x, samples=5) for i in (True, False)
        )
        torch.testing.assert_close(one.fitness, other.fitness)
        for name, value in one.gradient.items():
            assert relative(value, other.gradient[name]) <= 1e-4, name


class TestBfloat16:
    def test_is_close_to_float32(self):
        model = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=8).eval()
        x, y = torch.rand(8, 1, 28, 28), torch.arange(8)
        wide, narrow = (
            evaluation_of(model, x, y=y, samples=16, sigma=0.1, dtype=dtype)
            for dtype in (torch.float32, torch.bfloat16)
        )
        assert narrow.fitness.dtype == torch.float32
        assert not torch.equal(wide.fitness, narrow.fitness)
        every = [torch.cat([v.flatten() for v in s.gradient.values()]) for s in (wide, narrow)]
        assert torch.corrcoef(torch.stack(every))[0, 1] > 0.95
        for name, value in wide.gradient.items():
            assert narrow.gradient[name].dtype == torch.float32
            assert cosine(value, narrow.gradient[name]) > 0.9, name

    @pytest.mark.parametrize("build", [depthwise, conv1d_net, perceptron])
    def test_other_networks(self, build):
        model, x = cached(build), inputs_for(build, 4)
        wide, narrow = (
            evaluation_of(model, x, samples=16, sigma=0.3, dtype=dtype)
            for dtype in (torch.float32, torch.bfloat16)
        )
        for name, value in wide.gradient.items():
            assert cosine(value, narrow.gradient[name]) > 0.9, name


class TestRefusals:
    MODEL = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 5)).eval()
    X = torch.ones(3, 8)

    def said(self, kind, model=MODEL, x=X, names=("0.weight",), **changes):
        with pytest.raises(kind) as caught:
            evaluation_of(model, x, names=set(names), **changes)
        return str(caught.value)

    def test_no_images(self):
        message = self.said(ArgumentError, x=torch.zeros(0, 8))
        assert message == "inputs: needed at least one example, got [0, 8]."

    @pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), ()], ids=str)
    def test_labels_that_do_not_fit(self, shape):
        message = self.said(ArgumentError, y=torch.zeros(shape, dtype=torch.long))
        if shape == (3, 1):  # of other models: whether it fits, the fitness knows
            assert message == (
                "targets: needed a label for every row of logits, [24, 1], got [24, 1, 1]."
            )
            return
        assert (
            message
            == f"targets: needed a target for every example of the inputs, [3], got {list(shape)}."
        )

    def test_a_fitness_of_all_members_together(self, set_threads):
        set_threads(1)  # all images in a tile
        message = self.said(ArgumentError, fitness=lambda logits, _: logits.mean(), samples=2)
        assert message == (
            "fitness: needed a tensor of shape [members] = [6], one scalar per member, got a "
            "tensor of shape []. Average over the examples of a member (dimension 1), not over the "
            "members."
        )

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
    def test_a_dtype(self, dtype):
        message = self.said(ArgumentError, dtype=dtype)
        assert message == f"dtype: needed torch.float32 or torch.bfloat16, got {dtype}."

    def test_a_parameter_that_the_model_has_not(self):
        assert self.said(ArgumentError, names=("0.weight", "head.weight")) == (
            "population: needed only parameters that the model has, got 'head.weight'. The model "
            "has '0.weight', '0.bias', '2.weight', ...."
        )

    def test_a_parameter_of_another_shape(self):
        population = perturbed(self.MODEL, self.X, {"0.bias"})
        population.params["0.bias"] = torch.zeros(3)
        with pytest.raises(ArgumentError) as caught:
            evaluate(self.MODEL, population, self.X, labels_for(self.X))
        assert str(caught.value) == (
            "population: needed '0.bias' of shape [4], as the model's, got [3]."
        )

    def test_images_that_the_module_does_not_take(self):
        assert self.said(ArgumentError, x=torch.zeros(3, 7)).startswith(
            "inputs: needed examples that Sequential takes, [batch, ...] for each member, got "
            "[3, 7]"
        )

    def test_images_that_are_not_independent(self):
        norm = nn.BatchNorm1d(4, track_running_stats=False)
        model = nn.Sequential(nn.Linear(8, 4), norm, nn.Linear(4, 5)).eval()
        assert self.said(UnsupportedLayerError, model) == (
            "Sequential: no member-wise form of its forward (the examples of a batch are not "
            "independent) is known."
        )

    def test_a_norm_in_train_mode(self):
        model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)).train()
        message = self.said(ArgumentError, model)
        assert message.startswith(
            "model: needed BatchNorm layers in eval mode, because members cannot train the running "
            "statistics of one module, got '1' in train mode. Call model.eval(), or "
        )

    def test_active_dropout(self):
        model = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5), nn.Linear(4, 5)).train()
        message = self.said(UnsupportedLayerError, model)
        assert message == "Sequential: no member-wise form of active dropout is known."
        assert torch.isfinite(evaluation_of(model.eval(), self.X).fitness).all()

    def test_a_forward_that_is_no_graph(self):
        class Asks(nn.Linear):
            def forward(self, x):
                return super().forward(x) * (2 if x.sum() > 0 else 1)

        message = self.said(UnsupportedLayerError, Asks(8, 5), names=("weight",))
        assert message.startswith("Asks: its forward is no graph of operations (")

    NOT_PERTURBED = (
        "{}: no member-wise form of an operation whose result is not perturbed is known."
    )

    @pytest.mark.parametrize(
        ("layer", "name"),
        [
            (lambda: nn.LayerNorm(4), "1.weight"),
            (lambda: nn.LayerNorm(4), "1.bias"),
            (lambda: nn.BatchNorm1d(4), "1.weight"),
            (lambda: nn.PReLU(4), "1.weight"),
        ],
    )
    def test_a_parameter_whose_result_is_not_perturbed(self, layer, name):
        model = nn.Sequential(nn.Linear(8, 4), layer(), nn.Linear(4, 5)).eval()
        message = self.said(UnsupportedLayerError, model, names=("0.weight", name))
        assert message == self.NOT_PERTURBED.format(name)
        assert evaluation_of(model, self.X, names={"0.weight", "2.bias"}).gradient["0.weight"].any()

    @pytest.mark.parametrize(
        ("forward", "name"),
        [
            (lambda m, x: m.one(x) * m.one.bias.exp(), "one.bias"),
            (lambda m, x: m.one(x) + m.one.weight.square().mean(), "one.weight"),
            (lambda m, x: F.linear(m.one(x), m.one.bias.diag()), "one.bias"),
            (lambda m, x: m.one(x), "other.weight"),
            (lambda m, x: F.linear(x, m.one.weight.abs()), "one.weight"),
        ],
    )
    def test_a_parameter_that_does_something_else_as_well(self, forward, name):
        """An estimate from the layer alone would be wrong without a word."""
        model = Net(forward, one=nn.Linear(8, 5), other=nn.Linear(8, 5)).eval()
        message = self.said(UnsupportedLayerError, model, names=(name,))
        assert message == self.NOT_PERTURBED.format(name)

    def test_images_that_are_not_along_the_first_axis(self):
        assert self.said(
            UnsupportedLayerError,
            make(transformer),
            inputs_for(transformer, 3),
            names=("encoder.layers.0.self_attn.in_proj_weight",),
        ) == (
            "encoder.layers.0.self_attn.in_proj_weight: no member-wise form of "
            "aten.linear.default on examples that are not along axis 0 is known."
        )

    def test_a_layer_that_sees_no_image(self):
        model = Net(
            lambda m, x: m.one(x) @ m.other(torch.eye(5)),
            one=nn.Linear(8, 5),
            other=nn.Linear(5, 5),
        ).eval()
        assert self.said(UnsupportedLayerError, model, names=("one.bias", "other.weight")) == (
            "other.weight: no member-wise form of aten.linear.default on examples that are not "
            "along axis 0 is known."
        )

    @pytest.mark.parametrize("samples", [1, 0, -3])
    def test_samples(self, samples):
        message = self.said(ArgumentError, samples=samples)
        assert message == f"samples: needed an integer of at least 2, got {samples}."

    @pytest.mark.parametrize("sigma", [0.0, -0.1, float("inf"), float("nan")])
    def test_sigma(self, sigma):
        message = self.said(ArgumentError, sigma=sigma)
        assert message == f"sigma: needed a finite number above 0, got {sigma}."

    @pytest.mark.parametrize("blur", [-0.1, float("inf"), float("nan")])
    def test_blur(self, blur):
        message = self.said(ArgumentError, blur=blur)
        assert message == f"blur: needed a finite number of at least 0, got {blur}."

    @pytest.mark.parametrize("readings", [0, -1])
    def test_readings(self, readings):
        message = self.said(ArgumentError, readings=readings)
        assert message == f"readings: needed an integer of at least 1, got {readings}."

    def test_nothing_that_evolves(self):
        message = self.said(ArgumentError, names=())
        assert message == "params: needed at least one parameter that evolves, got none."


def total(logits, labels):  # noqa: ARG001
    return logits.flatten(1).sum(1)
