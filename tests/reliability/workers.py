"""Workers that are killed in every generation, and nodes that come and go.

    python tests/reliability/workers.py --generations 50

In every generation a worker, drawn by chance, is killed with SIGKILL at a random time. Every
generation's fitness is compared with that of a single process to the last bit, and how many
results of each part were taken is counted. Then a run has its workers on two nodes of a Ray
cluster on this machine; one of the nodes is removed and another one added while it goes on, whose
worker must take part. Ends with exit code 1 where anything is not what it would be in calm.
"""

import argparse
import contextlib
import io
import os
import random
import signal
import sys
import threading
import time
from collections import Counter

import torch
from torch import nn

from tinkering.data import load
from tinkering.distributed import evaluator as distributed
from tinkering.distributed.evaluator import RayEvaluator
from tinkering.distributed.round import Round
from tinkering.engines import planning as plan
from tinkering.strategies.evolution_strategy import EvolutionStrategy
from tinkering.strategies.weights import Weights
from tinkering.tasks.classification import Classification

WORKERS = 3
PATIENCE = 120.0
STRATEGY = EvolutionStrategy(Weights(192, 0.02), learning_rate=0.01)


class Noted(Round):
    """A round that notes what becomes of its parts."""

    latest = None

    def __init__(self, parts):
        super().__init__(parts)
        self.taken, self.returned_by, self.interrupted = Counter(), [], 0
        Noted.latest = self

    def returned(self, worker, part, result, now):
        before = self._results.get(part)
        super().returned(worker, part, result, now)
        self.taken[part] += self._results[part] is not before
        self.returned_by.append(worker)

    def lost(self, worker):
        self.interrupted += any(holder == worker for holder, _ in self._held)
        return super().lost(worker)


class Slowly(Classification):
    """A classification whose parts take some time, so that there is a middle of them."""

    seconds = 0.03

    def part(self, population, generation, part):
        time.sleep(self.seconds)
        return super().part(population, generation, part)


def make_task():
    # Sixteen tiles, and as many parts for four of them a worker.
    plan._NOISE = 1
    plan.images_in_cache = lambda *_: 4
    plan._FEWEST_IMAGES = 1
    return Slowly(network(), load("mnist5k").subset(train=400, test=20))


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 10),
    )


def start():
    return STRATEGY.init({name: p.detach() for name, p in network().named_parameters()})


def same_bits(a, b):
    return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


def same_centre(a, b):
    a, b = STRATEGY.centre(a), STRATEGY.centre(b)
    return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)


def calm(generations):
    """Each generation's fitness in this process, and the last state."""
    task, state, fitness = make_task(), start(), []
    for generation in range(generations):
        fitness.append(task.evaluate(STRATEGY.ask(state), generation).fitness)
        state = STRATEGY.tell(state, fitness[-1])
    return fitness, state


class Kills:
    """Kills of workers, and what came of the generations."""

    def __init__(self, chance):
        self.chance = chance
        self.kills = self.middle = self.repeated = self.lost = self.wrong = 0
        self.seconds = []

    def kill(self, evaluator, after):
        time.sleep(after)
        seats = evaluator._pool.started
        if seats:
            os.kill(self.chance.choice(seats).identity.process, signal.SIGKILL)
            self.kills += 1

    def run(self, evaluator, expected):
        """Return the last state of a run that is disturbed in every generation."""
        state, longest = start(), 0.1
        for generation, fitness in enumerate(expected):
            self.wait_for_all(evaluator)
            after = self.chance.uniform(0, longest)
            killer = threading.Thread(target=self.kill, args=(evaluator, after))
            killer.start()
            before = time.monotonic()
            got = evaluator.evaluate(STRATEGY.ask(state), generation).fitness
            self.seconds.append(time.monotonic() - before)
            killer.join()
            longest = sorted(self.seconds)[len(self.seconds) // 2]
            round_ = Noted.latest
            once = len(round_.taken) > WORKERS and {*round_.taken.values()} == {1}
            self.wrong += not (once and same_bits(got, fitness))
            self.middle += round_.interrupted
            self.repeated += round_.repeated
            state = STRATEGY.tell(state, got)
        self.wait_for_all(evaluator)
        self.lost = evaluator.lost
        return state

    def wait_for_all(self, evaluator):
        """A worker that was killed between two parts is noticed here."""
        until = time.monotonic() + PATIENCE
        while evaluator.lost < self.kills or len(evaluator._pool.started) < WORKERS:
            if time.monotonic() > until:
                raise SystemExit(f"{len(evaluator._pool.started)} workers of {WORKERS}")
            time.sleep(0.3)  # and leave the processor to the one that starts
            evaluator.evaluate(STRATEGY.ask(start()), 0)


def nodes(generations, say):
    """The last state of a run that loses a node and gets another, and who took part."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        leaving = cluster.add_node(num_cpus=2)
        with RayEvaluator(make_task, WORKERS, address=cluster.address, say=say) as evaluator:
            return move(cluster, leaving, evaluator, generations)
    finally:
        cluster.shutdown()


def move(cluster, leaving, evaluator, generations):
    state, generation, on_new, coming = start(), 0, 0, None

    def step():
        nonlocal state, generation
        state = STRATEGY.tell(state, evaluator.evaluate(STRATEGY.ask(state), generation))
        generation += 1

    until = time.monotonic() + PATIENCE
    while len(evaluator._pool.started) < WORKERS and time.monotonic() < until:
        evaluator._pool.events(0.1)
    on_leaving = len(workers_on(leaving, evaluator))
    step()
    going = threading.Timer(0.1, cluster.remove_node, (leaving,), {"allow_graceful": False})
    going.start()
    while generation < generations // 2:
        step()
    going.join()
    fewest = len(evaluator._pool.started)
    coming = cluster.add_node(num_cpus=2)
    until = time.monotonic() + PATIENCE
    while not workers_on(coming, evaluator) and time.monotonic() < until:
        evaluator._pool.events(0.1)
    while generation < generations:
        step()
        there = workers_on(coming, evaluator)
        on_new += sum(worker in there for worker in Noted.latest.returned_by)
    return state, on_leaving, fewest, evaluator.lost, on_new


def workers_on(node, evaluator):
    """The numbers of workers that a node's raylet has started."""
    (raylet,) = node.all_processes["raylet"]
    numbers = set()
    for seat in evaluator._pool.started:
        try:
            with open(f"/proc/{seat.identity.process}/stat") as file:  # noqa: PTH123
                parent = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == raylet.process.pid:
            numbers.add(seat.number)
    return numbers


def main(generations, seed, node_generations):
    torch.set_num_threads(1)
    distributed.Round = Noted
    lines, good = [], True
    if generations:
        expected, state = calm(generations)
        kills = Kills(random.Random(seed))
        with RayEvaluator(make_task, WORKERS) as evaluator:
            same = same_centre(kills.run(evaluator, expected), state)
        good &= same and not kills.wrong and kills.kills == kills.lost == generations
        lines += [
            f"generations, {WORKERS} workers             {generations:>6}",
            f"workers killed                     {kills.kills:>6}",
            f"of these in the middle of a part   {kills.middle:>6}",
            f"workers lost and replaced          {kills.lost:>6}",
            f"parts handed out again             {kills.repeated:>6}",
            f"generations whose fitness differs  {kills.wrong:>6}",
            f"centre of the calm run             {'yes' if same else 'NO':>6}",
        ]
    if node_generations:
        _, state = calm(node_generations)
        got, before, fewest, lost, after = nodes(node_generations, lambda _: None)
        same = same_centre(got, state)
        good &= same and before > 0 and fewest < WORKERS and lost >= before and after > 0
        lines += [
            f"generations on two nodes           {node_generations:>6}",
            f"workers on the node that was lost  {before:>6}",
            f"workers left without it            {fewest:>6}",
            f"parts done on the node that came   {after:>6}",
            f"centre of the calm run             {'yes' if same else 'NO':>6}",
        ]
    return lines, good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=50, help="with a kill in each")
    parser.add_argument("--node-generations", type=int, default=30, help="around a lost node")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    # Ray tells of every worker that is lost.
    with contextlib.redirect_stdout(io.StringIO()):
        lines, good = main(given.generations, given.seed, given.node_generations)
    print("\n".join(lines))  # noqa: T201
    sys.exit(not good)
