"""Experiments with policies, a member on a row of its own: one thread, a call after the other.

A bound population is compared with PyTorch as one writes it by hand, all kept that can be kept.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.bench.bound import called
from benchmarks.bench.by_hand import noise_by_hand, stacked_by_hand
from benchmarks.bench.clock import Contender, one_thread
from benchmarks.bench.elsewhere import plain_vmap
from benchmarks.bench.experiment import Bench, Comparison, Experiment
from benchmarks.bench.judge import Figure, Row, Target
from benchmarks.bench.networks import policy
from benchmarks.bench.sequences import RecurrentPolicy
from benchmarks.bench.settings import Sizes
from tinkering.noise import Dense
from tinkering.population import PerturbedPopulation, StackedPopulation

SIGMA = 0.02
_SMALL, _LARGE = (4, 32, 32, 2), (376, 256, 256, 17)
_OF_ONE = Target(0.5, 0.8)
_FEW = 2
"""Members whose arithmetic takes next to nothing."""
_MICROSECONDS = Target(must=60.0, at_most=True)


def _stacked(sizes: tuple[int, ...], members: int, target: Target, bench: Bench) -> Iterator[Row]:
    """Compare members with weights of their own with what one does with a stack by hand."""
    name = f"stacked-{_joined(sizes)}-{members}"
    with one_thread():
        models, (x,) = _drawn(lambda: policy(*sizes), members, members, sizes[0])
        ours = called(models[0], StackedPopulation.from_modules(models), x)
        contenders = [
            ours.contender("ours"),
            Contender("vmap", plain_vmap(models, x, in_dim=0), members),
            Contender("hand", stacked_by_hand(models, x), members),
        ]
        seen = f"StackedPopulation, bound, {_joined(sizes)}, {members:,} members, a row each"
        comparisons = [
            Comparison(name, seen, "ours", "vmap", "x vmap", target),
            Comparison(f"{name}-hand", seen, "ours", "hand", "of baddbmm"),
        ]
        rows, _ = bench.compared(contenders, comparisons)
    yield from map(ours.noted, rows)


def _perturbed(sizes: tuple[int, ...], members: int, bench: Bench) -> Iterator[Row]:
    """Compare members around a centre with one model on as many rows."""
    name = f"perturbed-{_joined(sizes)}-{members}"
    with one_thread():
        (model,), (x,) = _drawn(lambda: policy(*sizes), 1, members, sizes[0])
        ours = called(model, PerturbedPopulation(model, members, SIGMA), x)
        contenders = [
            ours.contender("ours"),
            Contender("one", partial(model, x[:, 0]), members),
            Contender("hand", noise_by_hand(model, SIGMA, x), members),
        ]
        seen = f"noise of rank 1, bound, {_joined(sizes)}, {members:,} members, a row each"
        comparisons = [
            Comparison(name, seen, "ours", "one", "of one", _OF_ONE),
            Comparison(f"{name}-hand", seen, "ours", "hand", "of hand"),
        ]
        rows, _ = bench.compared(contenders, comparisons)
    yield from map(ours.noted, rows)


def _dense(members: int, bench: Bench) -> Iterator[Row]:
    """Compare members of dense noise with ``baddbmm`` on all their weights."""
    name = f"dense-{_joined(_LARGE)}-{members}"
    with one_thread():
        (model,), (x,) = _drawn(lambda: policy(*_LARGE), 1, members, _LARGE[0])
        population = PerturbedPopulation(model, members, SIGMA, Dense())
        ours = called(model, population, x)
        models = [population.materialise(index) for index in range(members)]
        hand = Contender("hand", stacked_by_hand(models, x), members)
        del models
        seen = f"dense noise, bound, {_joined(_LARGE)}, {members:,} members, a row each"
        target = Target(1.0, 1.5)
        comparisons = [Comparison(name, seen, "ours", "hand", "of baddbmm", target)]
        rows, _ = bench.compared([ours.contender("ours"), hand], comparisons)
    yield from map(ours.noted, rows)


def _recurrent(members: int, bench: Bench) -> Iterator[Row]:
    """Compare a step of recurrent policies with one model's, and with vmap."""
    name = f"gru-64-{members}"
    with one_thread():
        models, inputs = _drawn(RecurrentPolicy, members, members, 8, 64)
        model, once = models[0], [each[:, 0] for each in inputs]
        ours = called(model, PerturbedPopulation(model, members, SIGMA), *inputs)
        stacked = called(model, StackedPopulation.from_modules(models), *inputs)
        contenders = [
            ours.contender("ours"),
            Contender("one", partial(model, *once), members),
            stacked.contender("stacked"),
            Contender("vmap", plain_vmap(models, *inputs, in_dim=0), members),
        ]
        seen = f"GRUCell(8, 64) and a head, {members:,} members, a step each"
        around, explicit = f"noise of rank 1, bound, {seen}", f"StackedPopulation, bound, {seen}"
        comparisons = [
            Comparison(name, around, "ours", "one", "of one", _OF_ONE),
            Comparison(f"{name}-stacked", explicit, "stacked", "vmap", "x vmap", Target(1.0)),
        ]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # vmap's own
            rows, _ = bench.compared(contenders, comparisons)
    for row in rows:
        yield (ours if row.name == name else stacked).noted(row)


def _python(bench: Bench) -> Iterator[Row]:
    """Yield what a bound call takes beyond its operations."""
    name = f"python-{_joined(_SMALL)}"
    with one_thread():
        (model,), (x,) = _drawn(lambda: policy(*_SMALL), 1, _FEW, _SMALL[0])
        ours = called(model, PerturbedPopulation(model, _FEW, SIGMA), x)
        contenders = [
            ours.contender("ours"),
            Contender("hand", noise_by_hand(model, SIGMA, x), _FEW),
        ]
        comparisons = [Comparison(name, "", "ours", "hand", "")]
        rows, rates = bench.compared(contenders, comparisons)
    pairs = zip(rates.readings["ours"], rates.readings["hand"], strict=True)
    more = [1e6 * (_FEW / mine - _FEW / hand) for mine, hand in pairs]
    for row in rows:
        said = f"a bound call of {_joined(_SMALL)} and {_FEW} members, less its operations by hand"
        figure = Figure(statistics.median(more), "us")
        yield ours.noted(replace(row, what=said, judged=figure, target=_MICROSECONDS))


def _joined(sizes: tuple[int, ...]) -> str:
    return "-".join(map(str, sizes))


def _drawn(
    build: Callable[[], nn.Module], models: int, rows: int, *widths: int
) -> tuple[list[nn.Module], list[Tensor]]:
    """Return models of their own, and for each width inputs ``[rows, 1, width]``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = [build().eval() for _ in range(models)]
        return made, [torch.randn(rows, 1, width) for width in widths]


def experiments(sizes: Sizes) -> list[Experiment]:
    """Return the experiments of this file."""
    few, many = sizes.policies
    found = []
    for layers, members, target in (
        (_SMALL, few, Target(1.0, 3.0)),
        (_SMALL, many, Target(1.0, 3.0)),
        (_LARGE, few, Target(1.0, 1.2)),
    ):
        name = f"stacked-{_joined(layers)}-{members}"
        run = partial(_stacked, layers, members, target)
        found.append(Experiment((name, f"{name}-hand"), run))
    for layers in (_SMALL, _LARGE):
        for members in (few, many):
            name = f"perturbed-{_joined(layers)}-{members}"
            found.append(Experiment((name, f"{name}-hand"), partial(_perturbed, layers, members)))
    return [
        *found,
        Experiment((f"gru-64-{few}", f"gru-64-{few}-stacked"), partial(_recurrent, few)),
        Experiment((f"dense-{_joined(_LARGE)}-{many}",), partial(_dense, many)),
        Experiment((f"python-{_joined(_SMALL)}",), _python),
    ]
