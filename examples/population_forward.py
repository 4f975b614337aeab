"""Run an ensemble of perturbed models in one call: how flat is the place a model stands in?

Run it with ``python examples/population_forward.py``.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import stack_module_state

from tinkering import (
    BasicBlock,
    PerturbedPopulation,
    SimpleResNet,
    accuracy,
    get_parallel_forward_pass_fn,
    recalibrate,
)
from tinkering.data import BatchOrder, Dataset, load

MEMBERS = 8


def train(model: nn.Module, digits: Dataset, steps: int = 60) -> None:
    """Train with gradients: a population does not care where its centre comes from."""
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    batches = BatchOrder(len(digits.train), batch=64)
    for step in range(steps):
        chosen = batches.order(step)
        loss = F.cross_entropy(model(digits.train.images(chosen)), digits.train.labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    recalibrate(model, digits.train.images(torch.arange(512)))


def main() -> None:
    digits = load("mnist5k")
    torch.manual_seed(0)
    model = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=4)
    train(model, digits)
    model.eval()
    x, y = digits.test.images(torch.arange(200)), digits.test.labels[:200]

    for sigma in (0.01, 0.03, 0.1):
        # Modules of their own around one centre. Any list of modules with the same
        # architecture would do, such as eight checkpoints.
        population = PerturbedPopulation(model, size=MEMBERS, sigma=sigma)
        stacked = stack_module_state([population.materialise(i) for i in range(MEMBERS)])
        with torch.no_grad():
            logits = get_parallel_forward_pass_fn(model)(stacked, x)
        members = accuracy(logits, y.expand(MEMBERS, -1))
        ensemble = accuracy(logits.softmax(2).mean(0, keepdim=True), y[None])
        print(
            f"sigma {sigma}: logits {list(logits.shape)}, "
            f"accuracy of members {members.min():.1%} to {members.max():.1%}, "
            f"of the ensemble {ensemble.item():.1%}"
        )

    # With in_dims (0, 0) each member has a batch of its own.
    batches = x.unflatten(0, (MEMBERS, -1))
    with torch.no_grad():
        logits = get_parallel_forward_pass_fn(model, in_dims=(0, 0))(stacked, batches)
    print(f"a batch for each: images {list(batches.shape)}, logits {list(logits.shape)}")


if __name__ == "__main__":
    main()
