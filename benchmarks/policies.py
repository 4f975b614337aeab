"""A call of a bound population of policies, beside the same arithmetic by hand and one model.

    python benchmarks/policies.py

Every member has one row of its own. By hand: a dozen operations of PyTorch on factors that are
kept, nothing checked. One model: as many rows through one network. All on one thread, in turns.
"""

import argparse
import itertools
import statistics
import time

import torch
from torch import nn

from tinkering import PerturbedPopulation, bind

POLICIES = {"4-32-32-2": (4, 32, 32, 2), "376-256-256-17": (376, 256, 256, 17)}


def network(sizes):
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def by_hand(model, members):
    """Return what computes members of rank-one noise from rows of inputs."""
    layers = [part for part in model if isinstance(part, nn.Linear)]
    kept = [
        (
            layer.weight.detach().t(),
            layer.bias.detach() + 0.02 * torch.randn(members, layer.out_features),
            0.02 * torch.randn(members, layer.out_features),
            torch.randn(members, layer.in_features),
        )
        for layer in layers
    ]

    def call(x):
        h = x[:, 0]
        for at, (weight, shift, left, right) in enumerate(kept):
            dot = (h * right).sum(1, keepdim=True)
            h = torch.addcmul(torch.addmm(shift, h, weight), dot, left)
            if at < len(kept) - 1:
                h = torch.tanh(h)
        return h

    return call


def milliseconds(calls, rounds):
    """Return the median time of each call; they take turns."""
    read = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            read[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times[rounds // 10 :]) for name, times in read.items()}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("policy           members   one model   by hand     bound   bound / by hand")
    for name, sizes in POLICIES.items():
        for members in (256, 1024):
            model, x = network(sizes), torch.randn(members, 1, sizes[0])
            hand = by_hand(model, members)
            bound = bind(model, PerturbedPopulation(model, members, 0.02), x, in_dims=(0, 0))
            took = milliseconds(
                {"one": lambda: model(x), "hand": lambda: hand(x), "bound": lambda: bound(x)},  # noqa: B023
                rounds,
            )
            ratio = took["bound"] / took["hand"]
            print(
                f"{name:16} {members:7}  {took['one']:7.3f} ms {took['hand']:7.3f} ms "
                f"{took['bound']:7.3f} ms   {ratio:.2f}"
            )


if __name__ == "__main__":
    main()
