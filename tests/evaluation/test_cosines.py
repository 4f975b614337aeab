"""How well estimates point along autograd's gradient, against sqrt(n / (n + D)).

n directions tell n numbers of D: an estimate from independent noise on a linear function has that
cosine with its gradient. On the reference network, narrow and as wide as it is meant to be.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from perturbed import evaluation_of
from torch import nn

from tinkering.evaluation.entry import evaluate
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.noise import Dense, LowRank, Stream
from tinkering.strategies.perturbation import Generation
from tinkering.strategies.weights import Weights

WITHIN = 0.15
IMAGES = 8


class Tail(nn.Module):
    """The reference network behind its third stage; each example's result there is a weight.

    So the gradient of that weight is, example by example, how fitness changes with activations.
    """

    def __init__(self, network, seen):
        super().__init__()
        self.shape = seen.shape[1:]
        self.seen = nn.Linear(len(seen), seen[0].numel(), bias=False)
        self.seen.weight.data = seen.flatten(1).T.clone()
        self.stage, self.linear = network.layer4, network.linear

    def forward(self, x):
        y = F.relu(self.seen(x)).unflatten(1, self.shape)
        return self.linear(self.stage(y).mean((2, 3)))


def network_of(width):
    torch.manual_seed(0)
    network = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=width)
    x = torch.randn(IMAGES, 1, 28, 28)
    with torch.no_grad():
        for _ in range(20):  # so that norms do norm
            network(x)
    return network.eval(), x


@pytest.mark.parametrize("width", [8, 64])
def test_noise_on_activations(width):
    """Of each image's activation; D is how many of its numbers are open."""
    network, x = network_of(width)
    seen = []
    hook = network.layer4.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        network(x)
    hook.remove()
    model, which, y = Tail(network, seen[0]), torch.eye(IMAGES), torch.arange(IMAGES)
    samples = 96
    result = evaluation_of(model, which, names={"seen.weight"}, y=y, samples=samples, sigma=0.01)
    F.cross_entropy(model(which), y).neg().backward()
    estimate, truth = result.gradient["seen.weight"], model.seen.weight.grad
    found = F.cosine_similarity(estimate, truth, dim=0)
    open_ = (truth != 0).sum(0)
    # Members are compared with each other: one direction fewer than there are.
    expected = ((samples - 1) / (samples - 1 + open_)).sqrt()
    assert found.mean().item() == pytest.approx(expected.mean().item(), rel=WITHIN)


@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize("noise", [Dense(), LowRank(1)], ids=["dense", "rank-1"])
def test_noise_on_weights(width, noise):
    """Of the classifier; products of two vectors tell less than numbers of their own do."""
    network, x = network_of(width)
    y, pairs = torch.arange(IMAGES), 256
    truth = torch.autograd.grad(F.cross_entropy(network(x), y), network.linear.weight)[0]
    outputs, inputs = truth.shape
    numbers = outputs * inputs if noise == Dense() else (outputs + 2) * (inputs + 2) - 2
    found = []
    for seed in range(4):
        perturb = Weights(2 * pairs, sigma=0.01, noise=noise)
        centre = {"linear.weight": network.linear.weight.detach()}
        generation = Generation(centre, {"linear.weight": 1.0}, Stream(seed, 0), "raw")
        evaluation = evaluate(network, perturb.around(generation), x, y)
        estimate = perturb.gradient(generation, evaluation)["linear.weight"]
        found.append(-F.cosine_similarity(estimate.flatten(), truth.flatten(), dim=0).item())
    expected = math.sqrt(pairs / (pairs + numbers))
    assert sum(found) / len(found) == pytest.approx(expected, rel=WITHIN)
