"""How near the engine that is chosen comes to the fastest one: modules, populations, sizes.

    python benchmarks/grid.py            # some minutes
    python benchmarks/grid.py --short    # the ends and the middle

Every case is a bound population with inputs of its members' own, and every engine that can evaluate
it is timed. Printed are milliseconds a call, the chosen engine marked, and its time by the fastest
one's. The exit status is 1 where fewer than nine of ten cases are within 1.3 of the fastest.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from benchmarks.bench.bound import Called, called
from benchmarks.bench.clock import Rates, compare
from benchmarks.bench.networks import policy
from benchmarks.bench.sequences import Block, RecurrentPolicy
from tinkering.engines.table import ENGINES
from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.noise import Dense, LowRank
from tinkering.population import PerturbedPopulation, Population

NEAR, SHARE = 1.3, 0.9
"""Times the fastest engine's time, and the share of cases that must be as near as that."""
_SIGMA = 0.02
_MOST_WORK, _MOST_WEIGHTS = 2e9, 5e7
"""Multiplications of a call, and weights of all members, of the largest cases."""
_PLAINLY_SLOWER = 3.0
"""Times the fastest engine's time, from where a first reading is enough."""


@dataclass(frozen=True)
class Kind:
    """Modules of one kind, as wide as one likes, and what an example of their inputs is."""

    build: Callable[[int], nn.Module]
    inputs: Callable[[int], Sequence[tuple[int, ...]]]
    widths: tuple[int, int, int]
    positions: int = 1
    """How often an example meets a weight: tokens, or pixels."""


def convolutions(width: int) -> nn.Module:
    first = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    second = [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(16 * width, 10))


def norms(width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs in (8, width, width):
        layers += [nn.Linear(inputs, width), nn.LayerNorm(width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, 2))


KINDS = {
    "mlp": Kind(lambda w: policy(8, w, w, 2), lambda _: [(8,)], (16, 64, 256)),
    "conv": Kind(convolutions, lambda _: [(1, 16, 16)], (4, 16, 32), 256),
    "block": Kind(lambda w: Block(w, 2, True), lambda w: [(16, w)], (32, 64, 128), 16),
    "gru": Kind(lambda w: RecurrentPolicy(8, w), lambda w: [(8,), (w,)], (16, 64, 256)),
    "norms": Kind(norms, lambda _: [(8,)], (16, 64, 256)),
}
POPULATIONS: dict[str, Callable[[nn.Module, int], Population]] = {
    "stacked": lambda model, members: PerturbedPopulation(model, members, _SIGMA).stack(),
    "dense": lambda model, members: PerturbedPopulation(model, members, _SIGMA, Dense()),
    "rank 1": lambda model, members: PerturbedPopulation(model, members, _SIGMA, LowRank(1)),
}
MEMBERS, EXAMPLES = (8, 64, 512), (1, 8, 64)


@dataclass(frozen=True)
class Case:
    """A population, and on what it is called."""

    kind: str
    width: int
    population: str
    members: int
    examples: int

    @property
    def fits(self) -> bool:
        """Whether it is small enough to be timed with every engine."""
        weights = self.members * sum(p.numel() for p in _model(self.kind, self.width).parameters())
        work = weights * self.examples * KINDS[self.kind].positions
        return weights <= _MOST_WEIGHTS and work <= _MOST_WORK

    def called(self, engine: str) -> Called:
        """Return it bound to an engine, and called once."""
        model = _model(self.kind, self.width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            shapes = KINDS[self.kind].inputs(self.width)
            inputs = [torch.randn(self.members, self.examples, *shape) for shape in shapes]
        members = POPULATIONS[self.population](model, self.members)
        found = called(model, members, *inputs, engine=engine)
        found.bound(*inputs)
        return found

    def by_every_engine(self) -> dict[str, Called]:
        """Return it bound to every engine that can evaluate it, by their names."""
        found = {}
        for engine in ENGINES:
            try:
                found[engine] = self.called(engine)
            except UnsupportedLayerError:
                continue
            except ArgumentError as error:
                if error.args[0] != "engine":  # it is not for this kind of population
                    raise
        return found


@dataclass(frozen=True)
class Timed:
    """A case, the engine that was chosen, and the milliseconds of all."""

    case: Case
    chosen: str
    milliseconds: dict[str, float]
    ratio: float
    """Of the chosen engine's time to the fastest one's."""


@cache
def _model(kind: str, width: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return KINDS[kind].build(width).eval()


def cases(short: bool) -> Iterator[Case]:
    """Yield the cases; the short form has the ends of what is long otherwise."""
    for kind, about in KINDS.items():
        widths = about.widths[1:2] if short else about.widths
        members, examples = (MEMBERS[::2], EXAMPLES[::2]) if short else (MEMBERS, EXAMPLES)
        for sizes in itertools.product(widths, POPULATIONS, members, examples):
            if (case := Case(kind, *sizes)).fits:
                yield case


def timed(case: Case, rounds: int, shortest: float) -> Timed:
    """Return how long every engine takes that can evaluate a case.

    Args:
        case: is timed.
        rounds: readings of those that are not plainly slower.
        shortest: seconds that a reading takes at least.
    """
    chosen = case.called("auto").bound.plan.engine
    contenders = [each.contender(name) for name, each in case.by_every_engine().items()]
    first = compare(contenders, 1, shortest)
    near = first.median(first.ranked()[0]) / _PLAINLY_SLOWER
    close = [c for c in contenders if c.name == chosen or first.median(c.name) >= near]
    again = compare(close, rounds, shortest)
    rates = Rates({**first.readings, **again.readings})
    calls = case.members * case.examples
    took = {c.name: 1e3 * calls / rates.median(c.name) for c in contenders}
    return Timed(case, chosen, took, max(again.ratio(c.name, chosen) for c in close))


def line(one: Timed) -> str:
    """Return a case as a line of the table."""
    case = one.case
    marks = {name: "*" if name == one.chosen else " " for name in ENGINES}
    took = [
        f"{one.milliseconds[name]:10.3f}{marks[name]}" if name in one.milliseconds else f"{'-':>11}"
        for name in ENGINES
    ]
    sizes = f"{case.kind:6} {case.width:5}  {case.population:8} {case.members:7} {case.examples:8}"
    return f"{sizes}{''.join(took)}  {one.ratio:5.2f}{'' if one.ratio <= NEAR else '  slow'}"


def share_near(ratios: Sequence[float]) -> float:
    """Return the share of cases whose chosen engine is near the fastest one."""
    return sum(ratio <= NEAR for ratio in ratios) / len(ratios)


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--short", action="store_true", help="a fifth of the cases")
    flags.add_argument("--rounds", type=int, default=3, help="readings of each engine")
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--only", default="", help="words that a case's line begins with: gru, mlp")
    given = flags.parse_args()
    torch.set_num_threads(given.threads)
    print(
        "kind   width  population members examples"
        + "".join(f"{n:>11}" for n in ENGINES)
        + "  ratio"
    )
    ratios: dict[str, list[float]] = {}
    for case in cases(given.short):
        if case.kind.startswith(given.only):
            one = timed(case, given.rounds, 0.02)
            ratios.setdefault(case.population, []).append(one.ratio)
            print(line(one), flush=True)
    for population, each in ratios.items():
        print(f"{population}: {share_near(each):.2f} of {len(each)} within {NEAR}")
    every = list(itertools.chain.from_iterable(ratios.values()))
    share = share_near(every)
    print(f"all: {share:.2f} of {len(every)} within {NEAR}, must {SHARE}")
    return 0 if share >= SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
