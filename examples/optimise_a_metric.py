"""Optimise the metric itself: macro-F1 where half of the digits are rare, after cross-entropy.

Macro-F1 is the mean over classes of 2 hits / (said + true). It counts, so it has no gradient, and a
rare class weighs as much in it as a frequent one. Backpropagation follows cross-entropy in its
place, which mostly hears of the frequent ones. Evolution goes on from there with macro-F1.

What it gains on training images is more than what it gains on others, and backpropagation that goes
on for long gets as far on those: see the rows at the end before you choose.

Run it with ``python examples/optimise_a_metric.py``; ``--short`` evolves for fewer generations.
"""

import argparse
import copy
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinkering import EvolutionStrategy, Weights, evaluate
from tinkering.data import BatchOrder, Split, load


def macro_f1(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean F1 of the classes, 0 to 1, one scalar per member."""
    classes = logits.shape[2]
    said = F.one_hot(logits.argmax(2), classes)  # [members, batch, classes]
    true = F.one_hot(labels, classes)
    hits = (said * true).sum(1)
    return (2 * hits / (said.sum(1) + true.sum(1)).clamp_min(1)).mean(1)


def small(split: Split) -> tuple[Tensor, Tensor]:
    """Return images of 7 x 7 pixels, one row each, and their labels."""
    return F.avg_pool2d(split.x, 4).flatten(1), split.y


def imbalanced(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return all images of 0 to 4, and a tenth of those of 5 to 9."""
    seen = F.one_hot(y, 10).cumsum(0).gather(1, y[:, None]).squeeze(1)  # of its class, so far
    keep = (y < 5) | (seen % 10 == 0)
    return x[keep], y[keep]


def train(
    model: nn.Module, x: Tensor, y: Tensor, epochs: int, weights: Tensor | None = None
) -> nn.Module:
    """Return the model after some epochs of cross-entropy."""
    optimiser = torch.optim.Adam(model.parameters(), lr=0.005)
    batches = BatchOrder(len(x), batch=64)
    for step in range(epochs * len(x) // 64):
        chosen = batches.order(step)
        loss = F.cross_entropy(model(x[chosen]), y[chosen], weights)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def evolve(model: nn.Module, x: Tensor, y: Tensor, generations: int) -> nn.Module:
    """Return the model after some generations of macro-F1 on all images given."""
    strategy = EvolutionStrategy(Weights(64, sigma=0.1), learning_rate=0.03, averaging=0.9)
    state = strategy.init(dict(model.named_parameters()))
    for _ in range(generations):
        # For a network as small as this one, and images that all share, this engine is faster.
        evaluation = evaluate(model, strategy.ask(state), x, y, macro_f1, engine="sequential")
        state = strategy.tell(state, evaluation)
    evolved = copy.deepcopy(model)
    evolved.load_state_dict(strategy.centre(state))
    return evolved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="30 generations in place of 150")
    generations = 30 if parser.parse_args().short else 150

    digits = load("mnist5k")
    x, y = imbalanced(*small(digits.train))
    splits = [(x, y), imbalanced(*small(digits.test)), small(digits.test)]
    print(f"{len(x)} training images, of each digit {y.bincount().tolist()}")
    print("macro-F1:                          training | test, as imbalanced | test, all images")

    def show(name: str, model: nn.Module) -> float:
        with torch.no_grad():
            rates = [macro_f1(model(x)[None], y[None]).item() for x, y in splits]
        print(f"{name:36}{rates[0]:.3f} | {rates[1]:19.3f} | {rates[2]:.3f}")
        return rates[1]

    torch.manual_seed(0)
    start = nn.Linear(49, 10)
    model = train(copy.deepcopy(start), x, y, epochs=10)
    before = show("cross-entropy, 10 epochs", model)
    after = show(f"then {generations} generations of macro-F1", evolve(model, x, y, generations))

    # What else one would try: more of the same, and a loss in which rare classes weigh more.
    show("cross-entropy, 100 epochs", train(copy.deepcopy(start), x, y, epochs=100))
    weights = len(y) / (10 * y.bincount())
    show("weighted, 10 epochs", train(copy.deepcopy(start), x, y, epochs=10, weights=weights))
    show("weighted, 100 epochs", train(copy.deepcopy(start), x, y, epochs=100, weights=weights))
    if after <= before:
        sys.exit("Evolution did not improve macro-F1 on the test images.")


if __name__ == "__main__":
    main()
