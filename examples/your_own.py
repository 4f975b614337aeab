"""Evolve a network of your own, on data of your own, for a fitness of your own.

Here the data are a curve of which every fifth point is far off, and the fitness is the median
error, which does not care how far.

Run it with ``python examples/your_own.py``; ``--generations 30`` is a short form.
"""

import argparse
import sys

import torch
from torch import Tensor, nn

from tinkering import EvolutionStrategy, Weights, evaluate


class Curve(nn.Module):
    """A number in, a number out: any module will do."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(1, 32)
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return predictions, [batch, 1]."""
        return self.out(torch.tanh(self.hidden(x)))


def median_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return minus the median error of each member; [members, batch, 1], [members, batch]."""
    return -(predictions.squeeze(2) - targets).abs().median(1).values


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--generations", type=int, default=300)
generations = parser.parse_args().generations

torch.manual_seed(0)
x = torch.rand(200, 1) * 6 - 3
truth = torch.sin(2 * x).squeeze(1)
y = truth + 10 * (torch.arange(200) % 5 == 0)  # every fifth is off by ten
model = Curve()


def error() -> float:
    """Return the mean distance from the true curve."""
    return (model(x).squeeze(1) - truth).abs().mean().item()


before = error()
strategy = EvolutionStrategy(Weights(128, sigma=0.05), learning_rate=0.05, averaging=0.9)
state = strategy.init(dict(model.named_parameters()))
for _ in range(generations):
    state = strategy.tell(state, evaluate(model, strategy.ask(state), x, y, median_error))
model.load_state_dict(strategy.centre(state))
print(f"mean distance from the true curve: {before:.3f} before, {error():.3f} after")
if error() >= before:
    sys.exit("Evolution did not improve on the start.")
