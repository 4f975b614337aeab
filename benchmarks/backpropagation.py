"""The same network and digits with backpropagation: what evolution is up against.

    python benchmarks/backpropagation.py
    python benchmarks/backpropagation.py --statistics renewed --learning-rate 0.01

Adam on exact gradients of batches of 64. `--statistics` says what BatchNorm layers compute with:
"batch" is how such networks are trained everywhere; "fixed" and "renewed" are the two ways of
`tinkering evolve`, so that it can be seen what they cost by themselves.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from torch.func import functional_call

from tinkering.data import BatchOrder, load
from tinkering.evaluation.batchnorm import norm_scales, reference_statistics
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.tasks.classification import measure_split

REFERENCE_IMAGES = 128


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--statistics", choices=["batch", "fixed", "renewed"], default="batch")
    flags.add_argument("--width", type=int, default=8)
    flags.add_argument("--steps", type=int, default=600)
    flags.add_argument("--learning-rate", type=float, default=0.003)
    flags.add_argument("--seed", type=int, default=0)
    given = flags.parse_args()

    digits = load("mnist5k")
    train = digits.train
    torch.manual_seed(given.seed)
    model = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=given.width)
    fixed = norm_scales(model)  # as in evolution, so that the same parameters learn
    params = {n: p for n, p in model.named_parameters() if n not in fixed}
    optimiser = torch.optim.Adam(params.values(), lr=given.learning_rate)
    order = BatchOrder(len(train), 64, given.seed)
    reference = BatchOrder(len(train), REFERENCE_IMAGES, given.seed)
    start_images = train.images(BatchOrder(len(train), 2048).order(0))
    buffers = reference_statistics(model, detached(model), start_images)

    start = time.monotonic()
    for step in range(given.steps):
        chosen = order.order(step)
        x, y = train.images(chosen), train.labels[chosen]
        if given.statistics == "batch":
            logits = model.train()(x)
        else:
            if given.statistics == "renewed":
                images = train.images(reference.order(step))
                buffers = reference_statistics(model, detached(model), images)
            logits = functional_call(model.eval(), buffers, (x,))
        loss = F.cross_entropy(logits, y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (step + 1) % max(1, given.steps // 6) == 0:
            if given.statistics == "fixed":
                known = buffers
            else:
                known = reference_statistics(model, detached(model), start_images)
            accuracy, test_loss = measure_split(model, detached(model), known, digits.test)
            print(
                f"{step + 1} steps, {64 * (step + 1):,} images, {time.monotonic() - start:.0f} s: "
                f"test accuracy {100 * accuracy:.1f} %, test loss {test_loss:.3f}"
            )


def detached(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


if __name__ == "__main__":
    main()
