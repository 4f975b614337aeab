"""Experiments with convolutional networks of common kinds: every member on an image of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.bench.centred import population
from benchmarks.bench.clock import Contender
from benchmarks.bench.experiment import Bench, Comparison, Experiment
from benchmarks.bench.judge import Row, Target
from benchmarks.bench.pure import Pure
from benchmarks.bench.settings import Sizes
from benchmarks.bench.vision import ConvNext, MobileNet, ResNet18
from tinkering.evaluation.bound import bind

_MEMBERS = 256
"""At most: a call takes seconds."""
_TILES = (16, 64)
"""Images at a time in pure inference."""

_NETWORKS: dict[str, tuple[Callable[[], nn.Module], Target]] = {
    "mobilenet": (MobileNet, Target(0.5, 0.75)),
    "mobilenet-excited": (partial(MobileNet, nn.Hardswish, excite=True), Target()),
    "convnext": (ConvNext, Target(0.5, 0.75)),
    "resnet18": (ResNet18, Target(0.75, 0.9)),
}
"""Each makes a network, and has what its row in float32 must reach."""
_DTYPES = {"": torch.float32, "-bf16": torch.bfloat16}


def _images(*shape: int) -> Tensor:
    return torch.randn(*shape, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def _made(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def _beside_inference(name: str, ending: str, bench: Bench) -> Iterator[Row]:
    """Yield how members of one network fare beside one model on as many images."""
    build, target = _NETWORKS[name]
    count = min(_MEMBERS, bench.sizes.other_members)
    model, x, dtype = _made(build), _images(count, 1), _DTYPES[ending]
    members = population(model, count, everything=True)
    bound = bind(model, members, x, in_dims=(0, 0), dtype=dtype)
    ours = Contender("own", partial(bound, x), count)
    pure = Pure(model, dtype, bench.sizes.compiled, _images)
    ways = [prepare(tile) for tile in _TILES for prepare in (pure.pack, pure.freeze, pure.leave)]
    rivals = [pure.contender(way, min(count, 2 * max(_TILES))) for way in dict.fromkeys(ways)]
    kind = str(dtype).removeprefix("torch.")
    comparison = Comparison(
        f"net-{name}{ending}",
        f"{name}, {count:,} members, an image of 32 x 32 each, {kind}, all parameters perturbed",
        "own",
        "pure",
        "of pure",
        Target() if ending else target,
    )
    yield from bench.compared([ours, *rivals], [comparison])[0]


def experiments(sizes: Sizes) -> list[Experiment]:
    """Return the experiments of this file."""
    del sizes
    return [
        Experiment((f"net-{name}{ending}",), partial(_beside_inference, name, ending))
        for name in _NETWORKS
        for ending in _DTYPES
    ]
