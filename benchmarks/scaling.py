"""What Ray's workers cost on this machine, and what that means for a thousand of them.

    python benchmarks/scaling.py                        # measures, prints, draws; some 10 minutes
    python benchmarks/scaling.py --widths 8 --rounds 3  # a part of it
    python benchmarks/scaling.py --costs scaling/costs.json  # draws what was measured before

First it times a generation of `--population` members by one process with two threads and by two
workers of one thread, in turns. Then it measures what a model of a generation needs: seconds a
member and a part, of the driver, of messages and of the update. The model is compared with what
was measured, and drawn for up to 4,096 workers. Run it on a machine that does nothing else.
Assumptions are in docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from matplotlib.figure import Figure

import tinkering as t
from tinkering.data import load
from tinkering.distributed.evaluator import PARTS_A_WORKER

NETWORK = 1.25e9
"""Bytes a second of the driver's and of each node's connection: 10 Gbit/s."""
CPUS_A_NODE = 32
WORKERS = [2**power for power in range(13)]


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--widths", type=int, nargs="+", default=[64, 8])
    flags.add_argument("--population", type=int, default=4096)
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--out", type=Path, default=Path("scaling"))
    flags.add_argument("--costs", type=Path, help="of an earlier call, in the place of measuring")
    given = flags.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.costs is not None:
        costs = [Costs(**each) for each in json.loads(given.costs.read_text())]
        for each in costs:
            print(each.table(given.population))
        print(draw(costs, given.population, given.out / "scale.png"))
        return
    dispatch = seconds_to_dispatch()
    print(f"the driver takes {1000 * dispatch:.2f} ms a part")
    costs = []
    for width in given.widths:
        measured = compare(width, given.population, given.rounds)
        print(measured, flush=True)
        costs.append(fit(width, given.population, dispatch, measured))
        two = sum(costs[-1].seconds(given.population, 2).values())
        print(
            f"the model says {two:.3f} s for two workers, measured: "
            f"{measured.workers + measured.update:.3f} s"
        )
        print(costs[-1].table(given.population), flush=True)
    (given.out / "costs.json").write_text(json.dumps([asdict(each) for each in costs], indent=1))
    print(draw(costs, given.population, given.out / "scale.png"))


def make_model(width: int) -> t.SimpleResNet:
    torch.manual_seed(0)
    return t.SimpleResNet(t.BasicBlock, [1, 1, 1, 1], width=width)


def make_task(width: int) -> t.Classification:
    return t.Classification(make_model(width), load("mnist5k"), group=8, dtype=t.fastest_dtype())


def make_strategy(population: int) -> t.EvolutionStrategy:
    return t.EvolutionStrategy(t.Weights(population, antithetic=False, group=8))


@dataclass(frozen=True)
class Comparison:
    """A generation's seconds, medians."""

    width: int
    members: int
    here: float
    """Evaluated by one process with two threads."""
    workers: float
    """Evaluated by two workers of one thread."""
    update: float
    sent: int
    received: int
    each: tuple[float, ...]
    """Ratios of the rounds."""

    def __str__(self) -> str:
        return (
            f"width {self.width}, {self.members:,} members: one process with two threads "
            f"{self.here + self.update:.3f} s, two workers of one thread "
            f"{self.workers + self.update:.3f} s: "
            f"{(self.here + self.update) / (self.workers + self.update):.3f} of its speed "
            f"(rounds: {', '.join(f'{ratio:.2f}' for ratio in self.each)}); the update takes "
            f"{self.update:.3f} s, {100 * self.update / (self.workers + self.update):.1f} % of a "
            f"generation; {self.sent:,} bytes to a node, {self.received:,} back"
        )


def compare(width: int, members: int, rounds: int) -> Comparison:
    """Time generations by this process and by two workers, in turns."""
    torch.set_num_threads(2)
    task, strategy = make_task(width), make_strategy(members)
    state = strategy.init(dict(make_model(width).named_parameters()))
    here, there, update = [], [], []
    with t.RayEvaluator(partial(make_task, width), workers=2, threads=1) as evaluator:
        for number in range(rounds + 1):
            population = strategy.ask(state)
            before = time.perf_counter()
            expected = task.evaluate(population, number).fitness
            here.append(time.perf_counter() - before)
            before = time.perf_counter()
            fitness = evaluator.evaluate(population, number).fitness
            there.append(time.perf_counter() - before)
            if not torch.allclose(fitness, expected, rtol=1e-3, atol=1e-3):
                raise SystemExit(f"width {width}: workers gave another fitness")
            before = time.perf_counter()
            state = strategy.tell(state, fitness)
            update.append(time.perf_counter() - before)
        exchange = evaluator.exchange()
    here, there, update = here[1:], there[1:], update[1:]  # the first warms up
    return Comparison(
        width,
        members,
        median(here),
        median(there),
        median(update),
        exchange["bytes_sent"],
        exchange["bytes_received"],
        tuple((h + u) / (w + u) for h, w, u in zip(here, there, update, strict=True)),
    )


class Nothing:
    """A task that takes no time, so that what is left is the way there and back."""

    def evaluate(self, population: torch.Tensor, generation: int) -> t.Evaluation:
        """Return one scalar per member."""
        del generation
        return t.Evaluation(torch.zeros(len(population)))

    def measure(self, params: Any) -> dict[str, float]:
        """Return nothing."""
        del params
        return {}

    def parts(self, population: torch.Tensor, count: int) -> list[slice]:
        """Return a part a member."""
        del count
        return [slice(at, at + 1) for at in range(len(population))]

    def part(self, population: torch.Tensor, generation: int, part: slice) -> t.Evaluation:
        """Return its scalar."""
        return self.evaluate(population[part], generation)


def seconds_to_dispatch(parts: int = 500) -> float:
    """Return the driver's own seconds for a part: handing out, taking back."""
    with t.RayEvaluator(Nothing, workers=2) as evaluator:
        evaluator.evaluate(torch.zeros(parts), 0)
        before = time.process_time()
        evaluator.evaluate(torch.zeros(parts), 1)
        return (time.process_time() - before) / parts


@dataclass(frozen=True)
class Costs:
    """What a generation is made of, in seconds on one thread."""

    width: int
    centre: int
    """Bytes of the message that every node fetches."""
    member: float
    part: float
    """Of every part besides its members: the centre's weights are prepared anew."""
    spread: float
    """Standard deviation of a part's seconds, by its mean."""
    message: float
    """To write the population here, or to read it in a worker."""
    dispatch: float
    """Of the driver, a part."""
    update: float
    """Of a member, in the update."""
    unit: int
    """Members that cannot be divided: a tile."""
    sharded: bool = False
    """Whether workers sum the update, each its own members'."""
    relayed: bool = False
    """Whether nodes hand on the centre, and hand out the parts to their own workers."""

    def seconds(self, members: int, workers: int, network: float = NETWORK) -> dict[str, float]:
        """Return what a generation takes, by what it takes it for."""
        unit = self.unit * max(1, math.ceil(members / self.unit / (workers * PARTS_A_WORKER)))
        parts = math.ceil(members / unit)
        rounds = math.ceil(parts / workers)  # parts of the busiest worker
        evaluating = rounds * (self.part + unit * self.member)
        # The largest of so many sums of independent times, as for a normal distribution.
        late = math.sqrt(2 * math.log(workers)) if workers > 1 else 0.0
        late *= self.spread * evaluating / math.sqrt(rounds)
        nodes = math.ceil(workers / CPUS_A_NODE)
        away, handing = (nodes if nodes > 1 else 0), parts * self.dispatch
        if self.relayed:
            away = math.ceil(math.log2(nodes)) if nodes > 1 else 0
            handing = (nodes + parts / nodes) * self.dispatch
        update = self.update * members
        if self.sharded:  # sums meet in a tree: up and down
            levels = math.ceil(math.log2(workers)) if workers > 1 else 0
            update = update / workers + 2 * levels * self.centre / network
        return {
            "evaluation": evaluating,
            "stragglers": late,
            "message": 2 * self.message + away * self.centre / network,
            "driver": max(0.0, handing - evaluating) + self.dispatch,
            "update": update,
        }

    def speed(self, members: int, workers: int) -> float:
        """Return how much faster that is than one worker."""
        alone = sum(self.seconds(members, 1).values())
        return alone / sum(self.seconds(members, workers).values())

    def table(self, members: int) -> str:
        """Return what the model says of some sizes and designs."""
        lines = [
            f"width {self.width}",
            "| design | workers | members | seconds | speed-up | evaluation | stragglers | "
            "message | driver | update |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for name, design in self.designs().items():
            for count, workers in ((members, 32), (members, 1000), (16 * members, 1000)):
                shares = design.seconds(count, workers)
                whole = sum(shares.values())
                speed = design.speed(count, workers)
                lines.append(
                    f"| {name} | {workers:,} | {count:,} | {whole:.3f} | {speed:,.0f} | "
                    + " | ".join(f"{100 * share / whole:.0f} %" for share in shares.values())
                    + " |"
                )
        return "\n".join(lines)

    def designs(self) -> dict[str, Costs]:
        """Return this, and what would move its limits."""
        sharded = replace(self, sharded=True)
        relayed = replace(sharded, relayed=True)
        return {"as it is": self, "update sharded": sharded, "and relayed": relayed}


def fit(width: int, members: int, dispatch: float, measured: Comparison) -> Costs:
    """Measure what the model needs, on one thread."""
    torch.set_num_threads(1)
    task, strategy = make_task(width), make_strategy(members)
    population = strategy.ask(strategy.init(dict(make_model(width).named_parameters())))
    unit = task.plan(population).tiles.members
    one, four = (population[: unit * times] for times in (1, 4))
    task.evaluate(four, 0)
    short, long, message, update = [], [], [], []
    state, fitness = strategy.init(dict(population.params)), torch.randn(members)
    for number in range(12):
        short.append(seconds_of(partial(task.evaluate, one, number)))
        long.append(seconds_of(partial(task.evaluate, four, number)))
        message.append(seconds_of(lambda: pickle.loads(pickle.dumps(population))))
        if number < 3:
            update.append(seconds_of(partial(strategy.tell, state, fitness)))
    member = (median(long) - median(short)) / (len(four) - len(one))
    return Costs(
        width=width,
        centre=measured.sent,
        member=member,
        part=max(0.0, median(short) - len(one) * member),
        spread=stdev(long) / mean(long),
        message=median(message) / 2,
        dispatch=dispatch,
        update=median(update) / members,
        unit=unit,
    )


def seconds_of(what: Callable[[], object]) -> float:
    before = time.perf_counter()
    what()
    return time.perf_counter() - before


def draw(costs: list[Costs], members: int, path: Path) -> Path:
    """Draw speed-ups against workers."""
    figure = Figure(figsize=(4.5 * len(costs), 3.6), dpi=120, layout="constrained")
    for axes, each in zip(figure.subplots(1, len(costs), squeeze=False)[0], costs, strict=True):
        axes.plot(WORKERS, WORKERS, color="0.7", label="ideal")
        for label, style, points in curves(each, members):
            axes.plot(WORKERS, points, style, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_title(f"width {each.width}")
        axes.set_xlabel("workers of one thread")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("times as fast as one")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)
    return path


def curves(costs: Costs, members: int) -> Iterator[tuple[str, str, list[float]]]:
    for count, colour in ((members, "C0"), (16 * members, "C1")):
        for (name, design), style in zip(costs.designs().items(), ("-", "--", ":"), strict=True):
            points = [design.speed(count, workers) for workers in WORKERS]
            yield f"{count:,} members, {name}", f"{colour}{style}", points


if __name__ == "__main__":
    main()
