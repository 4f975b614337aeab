"""The engine's own promises: what is fused, what is refused, and what bfloat16 keeps."""

import pytest
import torch
from torch import nn

import tinkering
from tinkering.data import load
from tinkering.errors import UnsupportedLayerError
from tinkering.evaluation.batchnorm import reference_statistics
from tinkering.evaluation.capture import capture
from tinkering.evaluation.factored import Rewriter
from tinkering.evaluation.memberwise import MemberBatchNorm, MemberConv2d, MemberLinear
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.population import PerturbedPopulation


def resnet(width=4):
    model = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=width)
    tinkering.recalibrate(model, load("mnist5k").train.x[:64])
    return model.eval()


def rewritten(model, names=None):
    """Return the classes of the member-wise operations in a module's graph."""
    params = {n: p.detach() for n, p in model.named_parameters() if names is None or n in names}
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    captured = capture(model, torch.zeros(2, 1, 28, 28))
    draw = PerturbedPopulation(params, size=4, sigma=0.1).draw()
    graph = Rewriter(captured, state, draw, 0.1, torch.float32).rewrite()
    return [type(module) for module in graph.children()]


def test_a_convolution_takes_in_its_norm_unless_the_norms_scale_evolves():
    model = resnet()
    norms = [name for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    fixed = {f"{name}.weight" for name in norms}
    assert len(fixed) == 12
    without_scales = {name for name, _ in model.named_parameters()} - fixed
    assert rewritten(model, without_scales) == [MemberConv2d] * 12 + [MemberLinear]
    everything = rewritten(model)
    assert everything.count(MemberBatchNorm) == 12
    assert everything.count(MemberConv2d) == 12


def test_only_what_evolves_is_member_wise():
    assert rewritten(resnet(), {"linear.weight"}) == [MemberLinear]


def ranks(values):
    return values.argsort().argsort().double()


@pytest.mark.parametrize(("sigma", "least"), [(0.02, 0.99), (0.001, 0.95)])
def test_bfloat16_ranks_members_as_float32_does(sigma, least):
    """On real digits. Casting ``W + sigma E`` to bfloat16 would drown a small sigma."""
    digits = load("mnist5k")
    model = resnet(width=8)
    population = PerturbedPopulation(model, size=128, sigma=sigma)
    params, x = population.params, digits.train.x[:32]
    population = population.with_buffers(reference_statistics(model, params, x))
    fitness = [
        tinkering.evaluate(model, population, x, digits.train.y[:32], dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    correlation = torch.corrcoef(torch.stack([ranks(f) for f in fitness]))[0, 1]
    assert correlation >= least


def test_statistics_of_a_batch_are_refused_because_they_mix_members():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()
    ).eval()
    population = PerturbedPopulation(model, size=4, sigma=0.1)
    with pytest.raises(UnsupportedLayerError, match="images of a batch are not independent"):
        tinkering.forward(model, population, torch.zeros(2, 1, 5, 5))


def test_a_forward_that_cannot_be_captured_is_named_with_the_reason():
    class DependsOnData(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return self.linear(x) if x.sum() > 0 else -self.linear(x)

    model = DependsOnData().eval()
    population = PerturbedPopulation(model, size=4, sigma=0.1)
    with pytest.raises(UnsupportedLayerError, match=r"DependsOnData.*cannot capture"):
        tinkering.forward(model, population, torch.zeros(2, 3))


def test_a_graph_is_captured_once_for_a_shape():
    model = resnet()
    small, large = torch.zeros(2, 1, 28, 28), torch.zeros(2, 1, 32, 32)
    assert capture(model, small) is capture(model, torch.ones(7, 1, 28, 28))
    assert capture(model, small) is not capture(model, large)


class MinusTheMeanOfItsBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x - x.mean(0))


def test_a_forward_that_couples_the_images_of_a_batch_is_refused():
    """Folded into one batch, members would have an influence on each other."""
    model = MinusTheMeanOfItsBatch().eval()
    population = PerturbedPopulation(model, size=4, sigma=0.1)
    with pytest.raises(UnsupportedLayerError, match="images of a batch are not independent"):
        tinkering.forward(model, population, torch.zeros(2, 3))


def test_a_forward_that_returns_more_than_a_tensor_is_refused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return self.linear(x), x

    model = Two().eval()
    population = PerturbedPopulation(model, size=4, sigma=0.1)
    with pytest.raises(UnsupportedLayerError, match=r"Two: .* \(it returns tuple, no tensor\)"):
        tinkering.forward(model, population, torch.zeros(2, 3))


def test_a_submodule_put_into_train_mode_after_the_first_call_is_noticed():
    model = resnet()
    population = PerturbedPopulation(model, size=4, sigma=0.1)
    tinkering.forward(model, population, torch.zeros(2, 1, 28, 28))
    model.bn1.train()
    with pytest.raises(UnsupportedLayerError, match="images of a batch are not independent"):
        tinkering.forward(model, population, torch.zeros(2, 1, 28, 28))


class SequenceFirst(nn.Module):
    """Moves the images to the second axis, as recurrent layers have them."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(x.transpose(0, 1)).transpose(0, 1).flatten(1)


def test_images_that_are_not_along_the_first_axis_are_refused():
    model = SequenceFirst().eval()
    population = PerturbedPopulation(model, size=6, sigma=0.1)
    with pytest.raises(UnsupportedLayerError, match="without the images along its first axis"):
        tinkering.forward(model, population, torch.randn(12, 12, 4))


def test_a_norm_in_train_mode_is_refused_whatever_comes_behind_it():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))
    nn.init.zeros_(model[3].weight)  # hides the norm's influence from the logits
    model.eval()[1].train()
    population = PerturbedPopulation(model, size=4, sigma=0.1)
    with pytest.raises(UnsupportedLayerError, match="the statistics of its batch, which mix"):
        tinkering.forward(model, population, torch.randn(3, 1, 5, 5))


def test_a_constant_in_the_forward_and_a_bias_alone_on_rows():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x):
            return self.linear(x - torch.tensor([0.5, 1.0, 2.0, 4.0])).flatten(1)

    model = Shifted().eval()
    bias = {"linear.bias": model.linear.bias.detach()}
    x = torch.randn(3, 5, 4)
    for population in (
        PerturbedPopulation(model, size=4, sigma=0.1),
        PerturbedPopulation(bias, size=4, sigma=0.1),
    ):
        loop = torch.stack([population.materialise(i, model)(x) for i in range(4)])
        torch.testing.assert_close(tinkering.forward(model, population, x), loop)


@pytest.mark.parametrize(
    ("x", "dtype", "message"),
    [
        (torch.zeros(2, 3), torch.int32, "dtype: needed torch.float32 or torch.bfloat16, got"),
        (torch.zeros(2, 3, device="meta"), torch.float32, "x: needed a tensor on the CPU, got"),
        (torch.zeros(0, 3), torch.float32, "x: needed at least one image, got [0, 3]."),
    ],
)
def test_message(x, dtype, message):
    model = nn.Linear(3, 2).eval()
    population = PerturbedPopulation(model, size=4, sigma=0.1)
    with pytest.raises(ValueError, match="needed") as caught:
        tinkering.forward(model, population, x, dtype=dtype)
    assert str(caught.value).startswith(message)


def test_a_weight_that_is_computed_in_the_forward_is_refused():
    class Positive(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(2))

        def forward(self, x):
            return nn.functional.linear(x, self.weight.abs(), self.bias)

    model = Positive().eval()
    population = PerturbedPopulation({"bias": model.bias.detach()}, size=4, sigma=0.1)
    with pytest.raises(UnsupportedLayerError, match="a weight that is computed in the forward"):
        tinkering.forward(model, population, torch.zeros(2, 3))
