"""Norms that compute with the examples that they see, against PyTorch's in train mode."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fed_back import Loop, Place, evaluation_of, fed_back
from graph_nets import residual
from perturbed import cosine, labels_for, relative
from small_nets import (
    BATCH_NORM,
    conv1d_net,
    depthwise,
    inputs_for,
    make,
    normalised_perceptron,
    pre_activation_resnet,
    resnet,
    trusted,
)
from torch import nn

from tinkering.evaluation.entry import evaluate
from tinkering.layers.renewed import RenewedNorm
from tinkering.population import FedBackActivations

NETWORKS = [
    normalised_perceptron,
    conv1d_net,
    depthwise,
    residual,
    resnet,
    pre_activation_resnet,
]


class TestTheNormsDerivative:
    """Against autograd of PyTorch's norm in train mode, in double precision."""

    @pytest.mark.parametrize("shape", [(6, 4, 5, 3), (6, 4, 7), (9, 4)], ids=["2d", "1d", "linear"])
    @pytest.mark.parametrize("weighted", [True, False])
    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
    )
    def test_before(self, shape, weighted, dtype, tolerance):
        seen = (2 * torch.randn(shape) + 3).to(dtype)
        change = torch.randn(shape).to(dtype)
        weight = torch.rand(4) + 0.5 if weighted else None
        axes = [axis for axis in range(len(shape)) if axis != 1]
        exact = seen.double().requires_grad_()
        mean, variance = exact.mean(axes), exact.var(axes, correction=0)
        eps = 1e-3
        inverse = (variance + eps).rsqrt()
        norm = RenewedNorm(seen, mean.detach().float(), inverse.detach().float(), weight, eps)
        doubled = None if weight is None else weight.double()
        made = F.batch_norm(exact, None, None, doubled, training=True, eps=eps)
        (expected,) = torch.autograd.grad((made * change.double()).sum(), exact)
        found = norm.before(change, 1)
        assert found.dtype == dtype
        assert found.shape == shape
        assert relative(found.double(), expected) <= tolerance
        torch.testing.assert_close(norm.variance, variance.detach().float(), rtol=1e-4, atol=0)

    def test_what_would_move_mean_or_variance_is_left_out(self):
        seen = torch.randn(50, 4)
        mean, inverse = seen.mean(0), (seen.var(0, correction=0) + 1e-5).rsqrt()
        norm = RenewedNorm(seen, mean, inverse, None, 1e-5)
        assert norm.before(torch.ones(50, 4), 1).abs().max() < 1e-4
        assert norm.before(seen - mean, 1).abs().max() < 1e-3
        assert norm.before(torch.randn(50, 4), 1).abs().max() > 0.5


def in_train_mode(model, x):
    """What the module returns in train mode, and a twin whose statistics are those of `x`."""
    twin = copy.deepcopy(model)
    hooks = []
    for layer in twin.modules():
        if isinstance(layer, BATCH_NORM):

            def note(layer, given):
                axes = [axis for axis in range(given[0].dim()) if axis != 1]
                layer.seen = given[0].mean(axes), given[0].var(axes, correction=0)

            hooks.append(layer.register_forward_pre_hook(note))
    outputs = twin.train()(x).detach()
    for hook in hooks:
        hook.remove()
    for layer in twin.modules():
        if isinstance(layer, BATCH_NORM):
            layer.running_mean, layer.running_var = layer.seen
    return outputs, twin.eval()


def outputs_of(model, x, **settings):
    """The centre's outputs, read under noise that is too small to matter."""
    seen = []

    @trusted
    def fitness(logits, labels):
        seen.append(logits[:, 0].clone().view(-1, 2, logits.shape[2]).mean(1))
        return logits.sum((1, 2)) + labels[:, 0]

    evaluation_of(model, x, fitness=fitness, sigma=1e-6, readings=2, **settings)
    return torch.cat(seen)


@pytest.fixture(autouse=True)
def _one_thread():
    """Parts in their order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestTheCentre:
    @pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
    @torch.no_grad()
    def test_each_part_is_the_module_in_train_mode(self, build, monkeypatch):
        monkeypatch.setattr(FedBackActivations, "images_a_part", 5)
        model, x = make(build, seed=2), inputs_for(build, 10)
        found = outputs_of(model, x, renewed=True)
        expected = torch.cat([in_train_mode(model, part)[0] for part in x.split(5)])
        assert relative(found, expected) <= 1e-4
        fixed = outputs_of(model, x)
        assert relative(fixed, model(x)) <= 1e-4
        assert relative(fixed, expected) > 0.1  # the statistics matter

    @pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
    @torch.no_grad()
    def test_in_bfloat16(self, build):
        model, x = make(build, seed=2), inputs_for(build, 16)
        found = outputs_of(model, x, renewed=True, dtype=torch.bfloat16)
        expected, _ = in_train_mode(model, x)
        assert cosine(found - found.mean(0), expected - expected.mean(0)) > 0.99

    def test_nothing_of_the_callers_changes(self):
        model, x = make(residual), inputs_for(residual, 6)
        before, images = copy.deepcopy(model.state_dict()), x.clone()
        evaluation_of(model, x, renewed=True)
        assert torch.equal(x, images)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
        assert not model.training


PERCEPTRON = [Place("3", ("1",), ("2",)), Place("4", ("4",), rectified=False)]
DEPTHWISE = [
    Place("1", ("0",), ("1",), rectified=False, curve=F.relu6),
    Place("5", ("3",), ("4",)),
    Place("7", ("6",), ("7",), rectified=False, curve=F.silu),
]
CONV1D = [
    Place("2", ("0",), ("1",)),
    Place("3", ("3",), rectified=False, curve=torch.tanh),
]


class TestMembers:
    @pytest.mark.parametrize(
        ("build", "places"),
        [(normalised_perceptron, PERCEPTRON), (depthwise, DEPTHWISE), (conv1d_net, CONV1D)],
        ids=["perceptron", "depthwise", "conv1d"],
    )
    @torch.no_grad()
    def test_they_have_the_statistics_of_the_part(self, build, places, monkeypatch):
        monkeypatch.setattr(FedBackActivations, "images_a_part", 4)
        model, x = make(build, seed=2), inputs_for(build, 8)
        population = fed_back(model, x, renewed=True, samples=2, sigma=0.3, cells=40)
        result = evaluate(model, population, x, labels_for(x))
        for place in places:
            total = 0
            for start in (0, 4):
                _, twin = in_train_mode(model, x[start : start + 4])
                loop = Loop(twin, places, population)
                for i in range(start, start + 4):
                    image, logits = x[i : i + 1], twin(x[i : i + 1])
                    for row in (2 * i, 2 * i + 1):
                        total = total + loop.tried(place, image, logits, row)
            found = result.effects[place.name].total
            assert relative(found[:-1], total[:-1]) <= 1e-3, place.name
            assert relative(found[-1], total[-1]) <= 1e-6, place.name


def of_images():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1)
    )


of_images.shape = (2, 4, 4)


def of_series():
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 1)
    )


of_series.shape = (2, 8)


def of_features():
    return nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 1))


of_features.shape = (6,)


class Sum(nn.Module):
    """Two layers, each with a norm of its own, whose results are added."""

    shape = (2, 4, 4)

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1, bias=False)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.last = nn.Linear(64, 1)

    def forward(self, x):
        y = F.relu(self.norm(self.one(x)) + self.other(self.two(x.sin())))
        return self.last(y.flatten(1))


def squared_error(outputs, targets):
    return -(outputs - targets).square().mean((1, 2))


class TestTheGradient:
    """A layer's Jacobian is the last layer's weight: behind it the estimate is the gradient."""

    @pytest.mark.parametrize("build", [of_images, of_series, of_features, Sum])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.01), (torch.bfloat16, 0.1)])
    def test_is_autograds_in_train_mode(self, build, dtype, tolerance):
        model, x, y = make(build, seed=2), inputs_for(build, 24), torch.randn(24, 1)
        twin = copy.deepcopy(model).train()
        squared_error(twin(x).unsqueeze(1), y.unsqueeze(1)).mean().backward()
        expected = {name: p.grad for name, p in twin.named_parameters()}
        *_, (last, head) = model.named_modules()
        known = head.weight.detach()
        if known.shape[1] in (24, 64):  # noise is put on four channels, which are last
            known = known.view(4, -1).T.reshape(1, -1)
        first = "one.weight:result" if build is Sum else "0.weight:result"
        learned = {first: torch.cat([1.3 * known, torch.ones_like(known)])}
        learned[f"{last}.weight:result"] = torch.tensor([[1.3], [1.0]])
        changes = {"learned": learned, "readings": 4000, "fitness": squared_error, "y": y}
        result = evaluation_of(model, x, renewed=True, dtype=dtype, **changes)
        fixed = evaluation_of(model, x, dtype=dtype, **changes)
        weight = "one.weight" if build is Sum else "0.weight"
        size = expected[weight].norm()
        taken_away = {n for n in result.gradient if expected[n].norm() <= 1e-5 * size}
        assert taken_away == {weight.replace("weight", "bias")}
        for name, value in result.gradient.items():
            of_what = size if name in taken_away else expected[name].norm()
            assert (value - expected[name]).norm() / of_what <= tolerance, name
        # The statistics matter.
        assert (fixed.gradient[weight] - expected[weight]).norm() / size > 0.2
