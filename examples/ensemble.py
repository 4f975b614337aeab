"""Run ten trained networks as one population, and let them vote.

The networks are trained by backpropagation, each from a start and in an order of its own. Stacked,
they are a population like any other: one call gives the logits of all.

Run it with ``python examples/ensemble.py``; ``--short`` trains for fewer epochs.
"""

import argparse
import sys

import torch
import torch.nn.functional as F
from torch import nn

from tinkering import StackedPopulation, accuracy, forward
from tinkering.data import BatchOrder, Split, load

NETWORKS = 10


def trained(seed: int, images: Split, epochs: int) -> nn.Module:
    """Return a small network, trained by backpropagation."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, kernel_size=5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    batches = BatchOrder(len(images), batch=64, seed=seed)
    for step in range(epochs * len(images) // 64):
        chosen = batches.order(step)
        loss = F.cross_entropy(model(images.images(chosen)), images.labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one epoch each in place of five")
    epochs = 1 if parser.parse_args().short else 5

    digits = load("mnist5k")
    models = [trained(seed, digits.train, epochs) for seed in range(NETWORKS)]

    ensemble = StackedPopulation.from_modules(models)
    x, y = digits.test.x, digits.test.y
    logits = forward(models[0], ensemble, x, in_dims=(0, None))  # all see the same images
    each = accuracy(logits, y.expand(NETWORKS, -1))
    print(f"logits {list(logits.shape)}: networks, test images, classes")
    print("each network:", ", ".join(f"{share:.1%}" for share in each.tolist()))

    # A vote is the mean of what the networks hold likely. It is a "network" of its own to
    # `accuracy`, which wants a first axis of members.
    vote = accuracy(logits.softmax(2).mean(0, keepdim=True), y[None]).item()
    mean = each.mean().item()
    print(f"mean of the networks {mean:.1%}, the vote {vote:.1%}")
    if vote <= mean:
        sys.exit("The vote is no better than its networks are on average.")


if __name__ == "__main__":
    main()
