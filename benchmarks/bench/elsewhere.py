"""Plain PyTorch in a process of its own: as it is for those who do not use this library.

From the first evaluation on, the allocator keeps what is freed
(`tinkering.native.allocator`), and that makes plain ``vmap`` faster as well, by a third or so.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from benchmarks.bench.networks import images, network

_ways: dict[str, Callable[[], object]] = {}
"""What a process has been set up to do."""


def plain_vmap(
    models: list[nn.Module], *inputs: Tensor, in_dim: int | None = None
) -> Callable[[], Any]:
    """Return the call that PyTorch's tutorial on ensembles has: vmap over a functional call.

    Args:
        models: of one architecture.
        *inputs: what they are called with.
        in_dim: 0 where the inputs are ``[members, batch, ...]``; None where all share them.
    """
    params, buffers = stack_module_state(models)
    params = {name: value.detach() for name, value in params.items()}

    def call(params: dict[str, Tensor], buffers: dict[str, Tensor], *inputs: Tensor) -> Any:
        return functional_call(models[0], (params, buffers), inputs)

    together = vmap(call, in_dims=(0, 0, *[in_dim] * len(inputs)), randomness="same")
    return lambda: together(params, buffers, *inputs)


@contextmanager
def plain_ways(members: int, width: int, batch: int) -> Iterator[dict[str, Callable[[], object]]]:
    """Give ``vmap`` and ``loop``, each of which evaluates the members once, elsewhere.

    Args:
        members: networks with weights of their own, those of `networks.network`.
        width: of the networks.
        batch: images that all of them see.
    """
    context = multiprocessing.get_context("forkserver")
    settings = (members, width, batch, torch.get_num_threads())
    with ProcessPoolExecutor(1, context, _set_up, settings) as process:
        yield {
            name: lambda name=name: process.submit(_go, name).result()  # type: ignore[misc]
            for name in ("vmap", "loop")
        }


def _set_up(members: int, width: int, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    models = [network("resnet", width, seed) for seed in range(members)]
    x = images(batch)
    _ways["vmap"] = plain_vmap(models, x)
    _ways["loop"] = lambda: [model(x) for model in models]


@torch.no_grad()
def _go(name: str) -> None:
    _ways[name]()
