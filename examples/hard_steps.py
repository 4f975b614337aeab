"""Learn where the gradient is zero: a network whose every unit is a hard step, -1 or 1.

Each class has 15 voters among the last units, and its logit counts them. Moving a weight a little
changes nothing, so backpropagation has nothing to follow. Evolution only asks which members were
fitter. Three ways are shown: noise on the weights, noise on activations, and learned feedback.

Run it with ``python examples/hard_steps.py``; ``--short`` stops after a few generations.
"""

import argparse
import sys
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinkering import (
    Activations,
    Classification,
    EvolutionStrategy,
    Feedback,
    Weights,
    constant,
)
from tinkering.data import load

VOTERS = 15


class StepNet(nn.Module):
    """Two layers of hard steps, 119,830 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(784, 128)
        self.second = nn.Linear(128, 10 * VOTERS)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, [batch, 10]."""
        x = torch.sign(self.first(x.flatten(1)))
        votes = torch.sign(self.second(x))
        return votes.unflatten(1, (10, VOTERS)).sum(2) / VOTERS**0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a tenth of the generations")
    share = 0.1 if parser.parse_args().short else 1.0

    digits = load("mnist5k")
    torch.manual_seed(0)
    model = StepNet().eval()
    start = dict(model.named_parameters())

    F.cross_entropy(model(digits.train.x), digits.train.y).backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
    print(f"norm of autograd's gradient: {gradients.norm().item()}")

    # All are evolution, with the same ask and tell; they differ in what a member is.
    on_weights = Weights(
        population=4096,
        antithetic=False,
        group=8,  # eight members share an image, and are compared with each other
        sigma=0.1,  # as large as it takes to turn steps over
    )
    weights = EvolutionStrategy(on_weights, learning_rate=0.02, averaging=0.9)
    activations = EvolutionStrategy(
        Activations(samples=8, sigma=0.3),
        learning_rate=constant(0.004),
        optimiser=partial(torch.optim.Adam, betas=(0.9, 0.99)),
    )
    feedback = EvolutionStrategy(
        Feedback(sigma=0.3),
        learning_rate=0.004,
        decay=300,
        averaging=0.997,
        optimiser=partial(torch.optim.Adam, betas=(0.9, 0.99)),
    )
    ways = [
        ("noise on weights", weights, Classification(model, digits, group=8), 300),
        ("noise on activations", activations, Classification(model, digits, batch=256), 400),
        ("learned feedback", feedback, Classification(model, digits, batch=256, shift=2), 4000),
    ]
    improved = True
    for name, strategy, task, generations in ways:
        state = strategy.init(start)
        before = task.measure(start)["test_accuracy"]
        for generation in range(int(generations * share)):
            evaluation = task.evaluate(strategy.ask(state), generation)
            state = strategy.tell(state, evaluation)
        after = task.measure(strategy.centre(state))["test_accuracy"]
        print(
            f"{name}: test accuracy {before:.1%} before, {after:.1%} "
            f"after {state.generation} generations"
        )
        improved = improved and after > before + 0.1
    if not improved:
        sys.exit("Evolution did not learn.")


if __name__ == "__main__":
    main()
