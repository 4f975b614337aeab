"""Evolve a network of your own for a fitness of your own, with ask and tell.

Run it with ``python examples/own_network.py --generations 100``.
"""

import argparse

import torch
from torch import Tensor, nn

from tinkering import EvolutionStrategy, evaluate
from tinkering.data import BatchOrder, Split, load


class TinyNet(nn.Module):
    """One convolution and one linear layer, 5,338 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, kernel_size=5, stride=3)
        self.linear = nn.Linear(8 * 8 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, [batch, 10]."""
        return self.linear(torch.relu(self.conv(x)).flatten(1))


def share_of_right_answer(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean probability of the right class, a number a member.

    Needs no derivative: any number that is larger for the better member will do.
    """
    probabilities = logits.softmax(dim=2)  # [members, batch, classes]
    return probabilities.gather(2, labels.unsqueeze(2)).mean(dim=(1, 2))


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Return the share of right answers, 0 to 1."""
    return (model(split.x).argmax(1) == split.y).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=100)
    generations = parser.parse_args().generations

    digits = load("mnist5k")
    torch.manual_seed(0)
    model = TinyNet().eval()
    print(f"before: test accuracy {accuracy(model, digits.test):.1%}")

    strategy = EvolutionStrategy(population=256, sigma=0.05, learning_rate=0.02, averaging=0.9)
    state = strategy.init(dict(model.named_parameters()))
    batches = BatchOrder(len(digits.train), batch=64)
    for generation in range(generations):
        chosen = batches.order(generation)
        x, y = digits.train.images(chosen), digits.train.labels[chosen]
        fitness = evaluate(model, strategy.ask(state), x, y, share_of_right_answer)
        state = strategy.tell(state, fitness)

    model.load_state_dict(strategy.centre(state))
    print(f"after {generations} generations: test accuracy {accuracy(model, digits.test):.1%}")


if __name__ == "__main__":
    main()
