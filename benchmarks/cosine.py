"""How near estimates come to the true gradient, layer by layer, while a network learns.

    python benchmarks/cosine.py --width 8 --generations 0 300
    python benchmarks/cosine.py --width 64 --generations 0 100

The network learns by feedback. Where it stands after some generations, two estimates are made of
the same images: that of feedback, from what it has learned until then, and that of noise on
activations, 8 members an image. Each is compared with autograd's gradient of the same fitness, with
the batch norms as the estimate has them. At the start feedback knows nothing: it is given 200
generations in which it learns what layers do, and no step is taken.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tinkering import Activations, Classification, EvolutionStrategy, Feedback, fastest_dtype
from tinkering.data import load
from tinkering.evaluation.batchnorm import norm_scales
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.strategies.evolution_strategy import EvolutionState

LEARNS_FIRST = 200
ADAM = partial(torch.optim.Adam, betas=(0.9, 0.99))


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--width", type=int, default=8)
    flags.add_argument("--generations", type=int, nargs="+", default=[0, 300])
    flags.add_argument("--images", type=int, default=512)
    flags.add_argument("--seed", type=int, default=0)
    given = flags.parse_args()

    torch.manual_seed(given.seed)
    model = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=given.width).eval()
    fixed = norm_scales(model)
    start = {n: p.detach() for n, p in model.named_parameters() if n not in fixed}
    task = partial(Classification, model, load("mnist5k"), dtype=fastest_dtype())
    learns = task(statistics="renewed", batch=128, shift=2)
    strategy = EvolutionStrategy(
        Feedback(every=8), 0.004 * (8 / given.width) ** 0.5, decay=1000, optimiser=ADAM
    )
    still = EvolutionStrategy(Feedback(every=8), learning_rate=_no_step)
    state = still.init(start)
    for generation in range(LEARNS_FIRST):
        state = still.tell(state, learns.evaluate(still.ask(state), generation))
    known = state.learned
    state = strategy.init(start)
    for until in sorted(given.generations):
        while state.generation < until:
            evaluation = learns.evaluate(strategy.ask(state), state.generation)
            state = strategy.tell(state, evaluation)
        compare(model, task, state, known if until == 0 else state.learned, given)


def _no_step(generation: int) -> float:
    del generation
    return 0.0


def compare(
    model: nn.Module,
    task: partial[Classification],
    state: EvolutionState,
    learned: Mapping[str, Tensor],
    given: argparse.Namespace,
) -> None:
    """Print the cosines of both estimates at a centre."""
    model.load_state_dict(dict(state.params), strict=False)  # fixed statistics are those of here
    feedback, activations = EvolutionStrategy(Feedback()), EvolutionStrategy(Activations())
    renewed = task(statistics="renewed", batch=given.images)
    plain = task(statistics="fixed", batch=given.images)
    at = EvolutionState(10**6, state.params, state.average, state.optimiser, learned=learned)
    x, y = renewed._batches.of_all(10**6)
    estimates = [
        renewed.evaluate(feedback.ask(at), 10**6).gradient,
        plain.evaluate(activations.ask(at), 10**6).gradient,
    ]
    params = {n: p.detach() for n, p in model.named_parameters()} | dict(state.params)
    parts = feedback.ask(at).parts(len(x))  # the norms' statistics are each part's
    truth = [
        gradient(model.train(), params, {}, parts, x, y),
        gradient(model.eval(), params, plain.buffers(params), parts, x, y),
    ]
    print(f"\nwidth {given.width}, after {state.generation} generations, {given.images} images")
    print("| weight | feedback | noise on activations |\n|---|---|---|")
    for name, value in state.params.items():
        if value.dim() > 1:
            found = [cosine(e[name], t[name]) for e, t in zip(estimates, truth, strict=True) if e]
            print(f"| `{name}` | {found[0]:.2f} | {found[1]:.2f} |")


def gradient(
    model: nn.Module,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    parts: list[slice],
    x: Tensor,
    y: Tensor,
) -> dict[str, Tensor]:
    """Return autograd's gradient of the mean fitness, some images at a time."""
    own = {name: p.clone().requires_grad_() for name, p in params.items()}
    kept = {name: b.clone() for name, b in model.named_buffers()}
    for part in parts:
        logits = functional_call(model, {**own, **kept, **buffers}, (x[part],))
        (-F.cross_entropy(logits, y[part], reduction="sum") / len(x)).backward()
    model.eval()
    return {name: p.grad for name, p in own.items() if p.grad is not None}


def cosine(one: Tensor, other: Tensor) -> float:
    return F.cosine_similarity(one.flatten().double(), other.flatten().double(), 0).item()


if __name__ == "__main__":
    main()
