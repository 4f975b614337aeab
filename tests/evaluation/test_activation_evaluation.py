"""How perturbed activations are evaluated: in portions, as readings, in bfloat16, and purely."""

import copy

import pytest
import torch
import torch.nn.functional as F
from graph_nets import Net, conv, residual
from perturbed import cosine, evaluation_of, held_parameters, labels_for, perturbed, relative
from small_nets import (
    InPlace,
    conv1d_net,
    depthwise,
    inputs_for,
    made,
    make,
    perceptron,
    trusted,
)
from torch import nn

from tinkering.engines import activation_plan
from tinkering.evaluation.entry import evaluate, plan_evaluation
from tinkering.evaluation.fitness import accuracy
from tinkering.models import BasicBlock, SimpleResNet


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


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
        model = made(build)
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
        model, x = made(perceptron), inputs_for(perceptron, 6)

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
        evaluation_of(made(perceptron), inputs_for(perceptron, 5), samples=3, fitness=fitness)
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
        model, x = made(perceptron), inputs_for(perceptron, 6)
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
        model, x = made(perceptron), inputs_for(perceptron, 6)
        needed = [
            plan_evaluation(
                model, perturbed(model, x, None, blur=blur, readings=readings), x
            ).needed
            for blur, readings in ((1.0, 1), (1.0, 10_000), (0.0, 10_000))
        ]
        assert needed[1] > needed[0] + 10_000 * 8 * 5 * 4  # members, classes, bytes
        assert needed[2] == needed[0]  # without noise they are all the same


class TestPurity:
    def test_the_same_call_gives_the_same_bits_and_other_noise_others(self):
        model, x = made(residual), inputs_for(residual, 3)
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
        model, other, x = made(perceptron_with_norm), perceptron_with_norm(), torch.randn(3, 8)
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
        model, x = made(perceptron), inputs_for(perceptron, 3)
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
    def test_twins(self, name):
        one, other = IN_PLACE[name]
        model = Net(one, **layers()).eval()
        twin = Net(other, **model._modules).eval()
        x, y = torch.randn(4, 3, 5, 5), torch.arange(4)

        def fitness(logits, labels):
            return -F.cross_entropy(logits.flatten(1), labels[:, 0], reduction="none")

        images = x.clone()
        names = held_parameters(twin, x)
        scores = [
            evaluation_of(m, images, names=names, y=y, fitness=fitness, samples=4)
            for m in (model, twin)
        ]
        assert torch.equal(images, x)
        assert relative(scores[0].fitness, scores[1].fitness) <= 1e-5
        for key, value in scores[0].gradient.items():
            assert relative(value, scores[1].gradient[key]) <= 1e-4, key


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
        model, x = made(build), inputs_for(build, 4)
        wide, narrow = (
            evaluation_of(model, x, samples=16, sigma=0.3, dtype=dtype)
            for dtype in (torch.float32, torch.bfloat16)
        )
        for name, value in wide.gradient.items():
            assert cosine(value, narrow.gradient[name]) > 0.9, name
