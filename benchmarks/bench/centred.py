"""Experiments with members around a centre: beside pure inference, other networks, noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from benchmarks.bench.clock import Contender
from benchmarks.bench.experiment import DTYPE, Bench, Comparison, Experiment, quotient
from benchmarks.bench.judge import Figure, Row, Target
from benchmarks.bench.networks import images, network
from benchmarks.bench.settings import Sizes
from tinkering.engines.thread_pool import map_in_order
from tinkering.evaluation.batchnorm import norm_scales
from tinkering.evaluation.entry import forward, plan
from tinkering.graph.signature import InDims
from tinkering.noise import LowRank, Noise, Separable
from tinkering.population import PerturbedPopulation

_SIGMA = 0.02
_OWN: InDims = (0, 0)
_SHARED: InDims = (0, None)


def population(
    model: nn.Module, size: int, noise: Noise | None = None, everything: bool = False
) -> PerturbedPopulation:
    """Return members around a model, as ``tinkering evolve`` has them.

    Args:
        model: the centre.
        size: members.
        noise: of rank 1 by default.
        everything: whether the scales of norms evolve as well.
    """
    return PerturbedPopulation(evolving(model, everything), size, _SIGMA, noise or LowRank(1))


def evolving(model: nn.Module, everything: bool = False) -> dict[str, Tensor]:
    """Return the parameters that evolve, by name, as `population` has them."""
    fixed = set() if everything else norm_scales(model)
    return {n: p.detach() for n, p in model.named_parameters() if n not in fixed}


def _contender(
    name: str, model: nn.Module, members: PerturbedPopulation, x: Tensor, in_dims: InDims
) -> Contender:
    run = partial(forward, model, members, x, in_dims, DTYPE)
    return Contender(name, run, len(members) * (len(x) if in_dims == _SHARED else x.shape[1]))


def _own_images(target: Target, width: int, bench: Bench) -> Iterator[Row]:
    count = bench.sizes.members
    model, x = network("resnet", width), images(count, 1)
    pure = yield from bench.pure("resnet", width, count)
    ways = {
        "": population(model, count),
        "-every": population(model, count, everything=True),
        "-separable": population(model, count, Separable(1)),
    }
    contenders = [_contender(f"own{way}", model, of, x, _OWN) for way, of in ways.items()]
    seen = f"{count:,} members, an image each, width {width}"
    words = {
        "": f"noise of rank 1, {seen}",
        "-every": f"noise of rank 1 on norms' scales too, {seen}",
        "-separable": f"separable noise of rank 1, {seen}",
    }
    comparisons = [
        Comparison(
            f"factored-w{width}{way}",
            words[way],
            f"own{way}",
            "pure",
            "of pure",
            Target() if way else target,
        )
        for way in ways
    ]
    yield from bench.compared([*contenders, *pure], comparisons)[0]


def _shared_batch(bench: Bench) -> Iterator[Row]:
    width, count = bench.sizes.wide, bench.sizes.sharing
    model, x = network("resnet", width), images(bench.sizes.batch)
    pure = yield from bench.pure("resnet", width, count * len(x))
    ours = _contender("shared", model, population(model, count), x, _SHARED)
    what = f"noise of rank 1, {count} members that share {len(x)} images, width {width}"
    name, target = f"shared-w{width}", Target(0.78, 0.92)
    comparisons = [Comparison(name, what, "shared", "pure", "of pure", target)]
    yield from bench.compared([ours, *pure], comparisons)[0]


def _other_networks(width: int, bench: Bench) -> Iterator[Row]:
    """Yield how other networks fare by their own pure inference, beside the ResNet."""
    count, x = bench.sizes.other_members, images(bench.sizes.other_members, 1)
    wanted = [name for name in ("vgg", "preact") if bench.wants(f"{name}-w{width}")]
    contenders, comparisons = [], []
    for name in ("resnet", *wanted):
        model = network(name, width)
        contenders.append(_contender(f"{name}-w{width}", model, population(model, count), x, _OWN))
        for way in (yield from bench.pure(name, width, count)):
            contenders.append(Contender(f"{name}/{way.name}", way.run, way.images))
        what = f"{name} of width {width}, {count:,} members, an image each"
        unit = "of pure"
        comparisons.append(
            Comparison(f"{name}-w{width}", what, f"{name}-w{width}", f"{name}/pure", unit)
        )
    # The ResNet is needed for its ratio, whether its own row was asked for or not.
    rows, rates = replace(bench, pattern="").compared(contenders, comparisons)
    by_resnet = quotient(rates, f"resnet-w{width}", "resnet/pure")
    for name, row in zip(("resnet", *wanted), rows, strict=True):
        own = quotient(rates, row.name, f"{name}/pure")
        if name != "resnet":
            yield Row(
                row.name,
                f"{row.what}: its part of its pure inference, by the ResNet's",
                row.measured,
                Figure(own / by_resnet, "of ResNet"),
                Target(must=0.85),
                note=f"{own:.2f} of its pure inference; the ResNet {by_resnet:.2f}",
                readings=row.readings,
            )


def _noise(width: int, bench: Bench) -> Iterator[Row]:
    """Yield the share of an evaluation's time that drawing its noise would take alone."""
    count = bench.sizes.members
    model, x = network("resnet", width), images(count, 1)
    members = population(model, count)
    evaluation = _contender("forward", model, members, x, _OWN)
    tiles = plan(model, members, x, _OWN, DTYPE).tiles
    portions = list(tiles.of_members(count))

    def draw(portion: slice) -> None:
        members[portion].draw()

    def draw_all() -> None:
        for _ in map_in_order(draw, portions, tiles.threads):
            pass

    name = f"noise-w{width}"
    comparisons = [Comparison(name, "", "forward", "draw", "%")]
    contenders = [evaluation, Contender("draw", draw_all, count)]
    rows, _ = bench.compared(contenders, comparisons)
    for row in rows:
        what = f"drawing noise of rank 1 for {count:,} members, width {width}, by evaluation"
        share = row.judged and Figure(row.judged.value, "%")
        target = Target(must=0.10, at_most=True)
        yield Row(name, what, row.measured, share, target, readings=row.readings)


def experiments(sizes: Sizes) -> list[Experiment]:
    """Return the experiments of this file."""
    targets = {
        sizes.wide: Target(0.78, 0.92),
        sizes.middle: Target(0.60, 0.85),
        sizes.narrow: Target(0.55, 0.80),
    }
    found = [
        Experiment(
            tuple(f"factored-w{width}{way}" for way in ("", "-every", "-separable")),
            partial(_own_images, target, width),
        )
        for width, target in targets.items()
    ]
    found.append(Experiment((f"shared-w{sizes.wide}",), _shared_batch))
    ends = (sizes.wide, sizes.narrow)
    for width in ends:
        names = (f"vgg-w{width}", f"preact-w{width}")
        found.append(Experiment(names, partial(_other_networks, width)))
    return found + [Experiment((f"noise-w{width}",), partial(_noise, width)) for width in ends]
