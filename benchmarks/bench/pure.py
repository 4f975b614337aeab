"""Pure inference: what one network costs that is given, and never changes.

No population can be cheaper than its images through a single network whose norms are
folded, whose weights are packed, and which is handed tiles of the size it likes best. So
this is what evaluation is measured by. Two ways are tried, and the faster one counts:

- packed: this library's fused layers on one state, a tile a thread; in tiles of several sizes.
- frozen: PyTorch's compiler, told that weights are constants; where there is no compiler,
  the module itself. It compiles for one size of tiles, and that takes seconds, so it is
  tried in the sizes that are told.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.bench.clock import Contender
from benchmarks.bench.networks import images
from tinkering.engines.thread_pool import map_in_order
from tinkering.graph.capture import capture
from tinkering.graph.program import Program
from tinkering.graph.runner import Runner
from tinkering.graph.signature import sign
from tinkering.layers.unperturbed import UnperturbedLayers

_Forward = Callable[[Tensor], Tensor]
_MANY = 256
"""Compiled forms of one class that are kept side by side; PyTorch would stop at eight."""


def frozen(model: nn.Module, tile: Tensor) -> tuple[_Forward, str]:
    """Return the model compiled as constants for tiles of one size; and how: "frozen", "eager".

    Args:
        model: in eval mode, in the dtype and layout of the tile; it is copied.
        tile: the images it is compiled for.
    """
    module = copy.deepcopy(model)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the compiler's own
        with _setting("_inductor", freezing=True), _setting("_dynamo", recompile_limit=_MANY):
            compiled = cast(_Forward, torch.compile(module, dynamic=False))
            try:
                compiled(tile)
            except Exception:  # no compiler, or one that fails: each release has its own errors
                return module, "eager"
    return compiled, "frozen"


def packed(model: nn.Module, tile: Tensor) -> _Forward:
    """Return the model through this library's fused layers, on one state.

    Args:
        model: in eval mode and float32.
        tile: some images, in the dtype of the computation.
    """
    program = Program(capture(model, *sign((tile.float(),), {})))
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    values = program.captured.values({name: value.detach() for name, value in state.items()})
    runner = Runner(program, values, UnperturbedLayers(program, values, tile.dtype).calls)

    def forward(x: Tensor) -> Tensor:
        return runner.run([x])[0]

    with torch.no_grad():
        forward(tile)  # packs the weights
    return forward


class Pure:
    """The ways to run one network as fast as is known, at some tile sizes.

    Args:
        model: the network, in eval mode and float32.
        dtype: of the computation.
        compiled: whether to try PyTorch's compiler; without it, the module itself is run.
        draw: returns some images.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        compiled: bool,
        draw: Callable[[int], Tensor] = images,
    ) -> None:
        self._model = model
        self._dtype = dtype
        self._compiled = compiled
        self._draw = draw
        narrow: nn.Module = copy.deepcopy(model)
        self._narrow: nn.Module = narrow.to(  # type: ignore[call-overload]
            dtype=dtype, memory_format=torch.channels_last
        )
        self._ways: dict[str, tuple[Tensor, _Forward, bool]] = {}

    def pack(self, count: int) -> str:
        """Prepare the packed way for tiles of `count` images; return its name: "packed-128"."""
        name, tile = f"packed-{count}", self._tile(count)
        self._ways[name] = (tile, packed(self._model, tile), True)
        return name

    def freeze(self, count: int) -> str:
        """Likewise for the frozen way: "frozen-128", or "eager-128" without a compiler."""
        tile = self._tile(count)
        forward, how = frozen(self._narrow, tile) if self._compiled else (self._narrow, "eager")
        name = f"{how}-{count}"
        self._ways[name] = (tile, forward, False)
        return name

    def leave(self, count: int) -> str:
        """Likewise for the module as it is: "eager-128"."""
        name = f"eager-{count}"
        self._ways[name] = (self._tile(count), self._narrow, False)
        return name

    def contender(self, name: str, count: int) -> Contender:
        """Return a way that was prepared, on at least `count` images."""
        tile, forward, side_by_side = self._ways[name]
        tiles = -(-count // len(tile))
        if side_by_side:  # as many for every thread: one that waits for another would count
            threads = torch.get_num_threads()
            tiles = -(-tiles // threads) * threads
        run = partial(_side_by_side if side_by_side else _in_turn, forward, tile, tiles)
        return Contender(f"pure:{name}", run, tiles * len(tile))

    def _tile(self, count: int) -> Tensor:
        return self._draw(count).to(dtype=self._dtype, memory_format=torch.channels_last)


def _in_turn(forward: _Forward, tile: Tensor, tiles: int) -> None:
    """Run tiles one after the other, with threads inside the operations."""
    for _ in range(tiles):
        forward(tile)


def _side_by_side(forward: _Forward, tile: Tensor, tiles: int) -> None:
    """Run tiles on threads of their own."""

    def run(_: int) -> None:
        forward(tile)

    for _ in map_in_order(run, range(tiles), torch.get_num_threads()):
        pass


def _setting(package: str, **settings: Any) -> AbstractContextManager[None]:
    """Return what changes some of the compiler's global settings, and sets them back."""
    config: Any = import_module(f"torch.{package}.config")
    return cast(AbstractContextManager[None], config.patch(**settings))
