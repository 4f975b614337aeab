"""Experiments with transformers: members around a centre, an example each, beside inference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.bench.bound import called
from benchmarks.bench.clock import Contender, one_thread
from benchmarks.bench.experiment import DTYPE, Bench, Comparison, Experiment
from benchmarks.bench.judge import Row, Target
from benchmarks.bench.policies import SIGMA
from benchmarks.bench.pure import frozen
from benchmarks.bench.sequences import CausalTransformer, VisionTransformer
from benchmarks.bench.settings import Sizes
from tinkering.population import PerturbedPopulation

_TILE = 16
"""Examples at a time in pure inference: 64 and 256 are no faster."""
_KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], str]] = {
    "causal": (
        CausalTransformer,
        lambda count: torch.randint(256, (count, 64)),
        "causal transformer, 4 layers of 128, 64 tokens",
    ),
    "vit": (
        VisionTransformer,
        lambda count: torch.randn(count, 3, 32, 32),
        "vision transformer, 6 layers of 192, 32x32 in patches of 4",
    ),
}
_DTYPES = {"": DTYPE, "-fp32": torch.float32}


def inference(model: nn.Module, x: Tensor, dtype: torch.dtype, compiled: bool) -> list[Contender]:
    """Return one model on all examples, in tiles: as it is, and compiled as constants.

    Args:
        model: in eval mode and float32; it is copied.
        x: ``[examples, ...]``, numbers or words.
        dtype: of the computation.
        compiled: whether to try PyTorch's compiler.
    """
    narrow = copy.deepcopy(model).to(dtype)
    tiles = torch.split(x.to(dtype) if x.is_floating_point() else x, _TILE)
    ways: dict[str, Callable[[Tensor], Tensor]] = {"eager": narrow}
    if compiled:
        forward, how = frozen(narrow, tiles[0])
        ways[how] = forward
    return [
        Contender(f"pure:{how}", partial(_in_turn, forward, tiles), len(x))
        for how, forward in ways.items()
    ]


def _in_turn(forward: Callable[[Tensor], Tensor], tiles: tuple[Tensor, ...]) -> None:
    for tile in tiles:
        forward(tile)


def _own_examples(kind: str, way: str, bench: Bench) -> Iterator[Row]:
    build, draw, words = _KINDS[kind]
    dtype, count = _DTYPES[way], bench.sizes.sequences
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = build().eval(), draw(count)
        ours = called(model, PerturbedPopulation(model, count, SIGMA), x.unsqueeze(1), dtype=dtype)
        pure = inference(model, x, dtype, bench.sizes.compiled)
        said = f"{words}, {count} members, an example each, {str(dtype).removeprefix('torch.')}"
        target = Target() if way else Target(0.6, 0.85)
        comparison = Comparison(f"{kind}{way}", said, "own", "pure", "of pure", target)
        rows, _ = bench.compared([ours.contender("own"), *pure], [comparison])
    yield from map(ours.noted, rows)


def experiments(sizes: Sizes) -> list[Experiment]:
    """Return the experiments of this file."""
    del sizes
    return [
        Experiment((f"{kind}{way}",), partial(_own_examples, kind, way))
        for kind in _KINDS
        for way in _DTYPES
    ]
