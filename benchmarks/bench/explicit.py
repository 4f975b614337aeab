"""Experiments with explicit members: the functional call and bfloat16 beside ``vmap``, a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import stack_module_state

from benchmarks.bench.clock import Contender
from benchmarks.bench.elsewhere import plain_vmap, plain_ways
from benchmarks.bench.experiment import DTYPE, Bench, Comparison, Experiment, contenders_by_name
from benchmarks.bench.judge import Row, Target
from benchmarks.bench.networks import images, lenet, network, policy
from benchmarks.bench.settings import Sizes
from tinkering.evaluation.entry import forward
from tinkering.models import get_parallel_forward_pass_fn
from tinkering.population import StackedPopulation


def members(bench: Bench) -> list[nn.Module]:
    """Return networks with weights of their own."""
    return [network("resnet", bench.sizes.wide, seed) for seed in range(bench.sizes.explicit)]


def parallel_call(models: list[nn.Module], x: Tensor) -> Callable[[], Tensor]:
    """Return the functional call, on stacked parameters."""
    state = stack_module_state(models)
    call = get_parallel_forward_pass_fn(models[0])
    return lambda: call(state, x)


def _call(bench: Bench) -> Iterator[Row]:
    sizes = bench.sizes
    models, x = members(bench), images(sizes.small_batch)
    count = len(models) * len(x)
    seen = f"{len(models)} members, {len(x)} images, width {sizes.wide}, float32"
    what = f"get_parallel_forward_pass_fn, {seen}"
    comparisons = [
        Comparison("vmap-fp32", f"plain vmap, {seen}", "vmap"),
        Comparison(
            "vmap-fp32-kept", "the same where freed memory is kept", "kept", "vmap", "x vmap"
        ),
        Comparison("loop-fp32", f"a loop over modules, {seen}", "loop"),
        Comparison("call-vs-vmap", what, "call", "vmap", "x vmap", Target(2.5, 2.8)),
        Comparison("call-vs-loop", what, "call", "loop", "x loop", Target(goal=1.0)),
    ]
    with plain_ways(len(models), sizes.wide, len(x)) as plain:
        ways = {**plain, "kept": plain_vmap(models, x), "call": parallel_call(models, x)}
        contenders = contenders_by_name({name: (way, count) for name, way in ways.items()})
        yield from bench.compared(contenders, comparisons)[0]


_SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "4-32-32-2": (lambda: policy(4, 32, 32, 2), (1, 4), (64, 1024)),
    "40-128-128-8": (lambda: policy(40, 128, 128, 8), (1, 40), (64, 1024)),
    "lenet": (lenet, (32, 1, 28, 28), (64,)),
}
"""Small networks, what all members see, and how many there are."""


def _small_call(name: str, members: int, bench: Bench) -> Iterator[Row]:
    """Compare the functional call with vmap where a call is short, both in this process."""
    build, shape, _ = _SMALL[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = [build().eval() for _ in range(members)]
        x = torch.randn(shape)
    ways = {"vmap": plain_vmap(models, x), "call": parallel_call(models, x)}
    count = members * len(x)
    seen = f"get_parallel_forward_pass_fn, {name}, {members} members, {len(x)} shared"
    row = f"call-{name}-{members}"
    comparison = Comparison(row, seen, "call", "vmap", "x vmap here", Target(0.95, 1.0))
    contenders = contenders_by_name({key: (way, count) for key, way in ways.items()})
    yield from bench.compared(contenders, [comparison])[0]


def _bfloat16(bench: Bench) -> Iterator[Row]:
    sizes = bench.sizes
    models, x = members(bench), images(sizes.batch)
    count = len(models) * len(x)
    pure = yield from bench.pure("resnet", sizes.wide, count)
    seen = f"{len(models)} members, {len(x)} images, width {sizes.wide}"
    what = f"StackedPopulation in bfloat16, {seen}"
    at = f"bf16-b{sizes.batch}"
    bound = "pure inference beside plain vmap in float32"
    comparisons = [
        Comparison("bf16-vs-vmap", what, "stacked", "vmap", "x vmap", Target(9.0, 13.0)),
        Comparison("bf16-vs-vmap-bound", bound, "pure", "vmap", "x vmap"),
        Comparison(f"{at}-vs-pure", what, "stacked", "pure", "of pure", Target(0.78, 0.90)),
    ]
    with plain_ways(len(models), sizes.wide, len(x)) as plain:
        contenders = [Contender("vmap", plain["vmap"], count), stacked(models, x), *pure]
        yield from bench.compared(contenders, comparisons)[0]


def _large_batch(bench: Bench) -> Iterator[Row]:
    models, x = members(bench), images(bench.sizes.large_batch)
    pure = yield from bench.pure("resnet", bench.sizes.wide, len(models) * len(x))
    what = f"StackedPopulation in bfloat16, {len(models)} members, {len(x)} images"
    name = f"bf16-b{len(x)}-vs-pure"
    target = Target(0.92, 0.97)
    comparisons = [Comparison(name, what, "stacked", "pure", "of pure", target)]
    yield from bench.compared([stacked(models, x), *pure], comparisons)[0]


def stacked(models: list[nn.Module], x: Tensor, dtype: torch.dtype = DTYPE) -> Contender:
    """Return the evaluation of a stacked population on a shared batch."""
    population = StackedPopulation.from_modules(models)
    count = len(models) * len(x)
    return Contender("stacked", lambda: forward(models[0], population, x, dtype=dtype), count)


def experiments(sizes: Sizes) -> list[Experiment]:
    """Return the experiments of this file."""
    at = f"bf16-b{sizes.batch}-vs-pure"
    return [
        Experiment(
            ("vmap-fp32", "vmap-fp32-kept", "loop-fp32", "call-vs-vmap", "call-vs-loop"), _call
        ),
        *(
            Experiment((f"call-{name}-{members}",), partial(_small_call, name, members))
            for name, (_, _, counts) in _SMALL.items()
            for members in counts
        ),
        Experiment(("bf16-vs-vmap", "bf16-vs-vmap-bound", at), _bfloat16),
        Experiment((f"bf16-b{sizes.large_batch}-vs-pure",), _large_batch),
    ]
