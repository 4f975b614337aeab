"""The same network and images with backpropagation: what evolution is up against.

    python benchmarks/backpropagation.py
    python benchmarks/backpropagation.py --statistics renewed --learning-rate 0.01
    python benchmarks/backpropagation.py --data idx:FOLDER --shift 2 --seconds 300

Adam on exact gradients of batches of 64. `--statistics` says what BatchNorm layers compute with:
"batch" is how such networks are trained everywhere; "fixed" and "renewed" are the two ways of
`tinkering evolve`, so that it can be seen what they cost by themselves.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
import torch.nn.functional as F
from torch.func import functional_call

from tinkering.data import DEFAULT, BatchOrder, Dataset, load
from tinkering.evaluation.batchnorm import norm_scales, reference_statistics
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.tasks.batches import Batches
from tinkering.tasks.classification import measure_split

BATCH, REFERENCE_IMAGES, MEASUREMENTS = 64, 128, 6


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--data", default=DEFAULT, help="as tinkering evolve takes it")
    flags.add_argument("--shift", type=int, default=0, help="pixels by which images are moved")
    flags.add_argument("--statistics", choices=["batch", "fixed", "renewed"], default="batch")
    flags.add_argument("--width", type=int, default=8)
    flags.add_argument("--steps", type=int, help="600 if there is no --seconds either")
    flags.add_argument("--seconds", type=float, help="of training; measurements come on top")
    flags.add_argument("--learning-rate", type=float, default=0.003)
    flags.add_argument("--seed", type=int, default=0)
    given = flags.parse_args()
    if given.steps is None and given.seconds is None:
        given.steps = 600
    limits = [limit for limit in (given.steps, given.seconds) if limit is not None]
    if min(limits) <= 0:
        flags.error("--steps and --seconds are above 0")
    train(load(given.data), given)


def train(images: Dataset, given: argparse.Namespace) -> None:
    """Train until a limit is reached, and print what the test images say on the way."""
    batches = Batches(images.train, given.seed, group=None, batch=BATCH, shift=given.shift)
    torch.manual_seed(given.seed)
    classes = len(images.classes)
    model = SimpleResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes, width=given.width)
    fixed = norm_scales(model)  # as in evolution, so that the same parameters learn
    params = {n: p for n, p in model.named_parameters() if n not in fixed}
    optimiser = torch.optim.Adam(params.values(), lr=given.learning_rate)
    reference = BatchOrder(len(images.train), REFERENCE_IMAGES, given.seed)
    start_images = images.train.images(BatchOrder(len(images.train), 2048).order(0))
    buffers = reference_statistics(model, detached(model), start_images)

    step, seconds, measured, done = 0, 0.0, 0, 0.0
    while done < 1:
        start = time.monotonic()
        x, y = batches.of_all(step)
        if given.statistics == "batch":
            logits = model.train()(x)
        else:
            if given.statistics == "renewed":
                drawn = images.train.images(reference.order(step))
                buffers = reference_statistics(model, detached(model), drawn)
            logits = functional_call(model.eval(), buffers, (x,))
        optimiser.zero_grad()
        F.cross_entropy(logits, y).backward()
        optimiser.step()
        step += 1
        seconds += time.monotonic() - start
        done = max(step / (given.steps or math.inf), seconds / (given.seconds or math.inf))
        if int(MEASUREMENTS * done) > measured:
            measured = int(MEASUREMENTS * done)
            known = buffers
            if given.statistics != "fixed":
                known = reference_statistics(model, detached(model), start_images)
            accuracy, loss = measure_split(model, detached(model), known, images.test)
            print(
                f"{step} steps, {BATCH * step:,} images, {seconds:.0f} s: "
                f"test accuracy {100 * accuracy:.1f} %, test loss {loss:.3f}",
                flush=True,
            )


def detached(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


if __name__ == "__main__":
    main()
