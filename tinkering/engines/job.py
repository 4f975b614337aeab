"""What an engine is asked to do, and in which portions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tinkering.graph.probe import LOCK
from tinkering.graph.program import Program
from tinkering.population import CountedPopulation


@dataclass(frozen=True)
class Job:
    """A population and the images its members are to see."""

    model: nn.Module
    """The architecture, with the norm policy's layers."""
    source: nn.Module
    """The architecture that the user gave."""
    population: CountedPopulation
    batches: Tensor
    """``[members, batch, ...]``; a view where the batch is shared."""
    shared: bool
    """Whether all members see the same batch."""
    dtype: torch.dtype
    randomness: str
    program: Program | None
    """The module's steps; None where it could not be captured."""
    not_captured: str
    """Why not."""
    random: bool
    """Whether the forward draws random numbers: active dropout."""
    result: tuple[int, ...] | None
    """Shape of what the module makes of one image, where its results are ``[images, ...]``."""

    @cached_property
    def own(self) -> dict[str, Tensor]:
        """The module's parameters and buffers, for what the population does not have."""
        names = {name for name, _ in self.model.named_parameters()}
        names |= {name for name, _ in self.model.named_buffers()}
        state = dict(self.source.named_parameters()) | dict(self.source.named_buffers())
        return {name: value.detach() for name, value in state.items() if name in names}

    def state(self, index: int) -> dict[str, Tensor]:
        """Return a member's parameters and buffers, by name."""
        params, buffers = self.population.member(index)
        known = {**params, **buffers}
        return {name: known.get(name, value) for name, value in self.own.items()}

    def called(self, module: nn.Module, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return what a copy of the module makes of a batch with a member's state.

        Args:
            module: a `skeleton`, which a forward may assign attributes to.
            state: parameters and buffers by name.
            x: ``[batch, ...]``.
        """
        # Copies, since a forward may write into whatever it is given.
        # In a module of float32, what is float64 is so for a reason.
        keeps = not any(map(_is_double, module.parameters()))
        own = {
            name: _own(value, torch.float64 if keeps and _is_double(value) else self.dtype)
            for name, value in state.items()
        }
        result: Tensor = functional_call(module, own, (_own(x, self.dtype),))
        expected = None if self.result is None else (len(x), *self.result)
        if expected and result.dim() < len(expected) and result.numel() == math.prod(expected):
            result = result.reshape(expected)  # `squeeze` took the axis of one image
        return result.float()

    def seeds(self) -> Callable[[int], AbstractContextManager[object]]:
        """Return what seeds PyTorch's generator for a while, by a number.

        The seeds follow from the generator's state, so ``torch.manual_seed`` decides them,
        and the next evaluation draws others.
        """
        if not self.random:
            return lambda _: nullcontext()
        with LOCK:  # another thread's member may be drawing
            base = int(torch.randint(2**62, ()))
        return lambda number: _seeded(base + number)


@contextmanager
def _seeded(number: int) -> Iterator[None]:
    with LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        yield


def _is_double(value: Tensor) -> bool:
    return value.dtype == torch.float64


def _own(value: Tensor, dtype: torch.dtype) -> Tensor:
    cast = narrowed(value, dtype)
    return cast.clone() if cast is value else cast


@dataclass(frozen=True)
class Tiles:
    """The portions of an evaluation."""

    members: int
    """Members that a thread takes at a time, and whose noise it draws at once."""
    images: int
    """Images that it runs at a time: a part of a member's batch, or the batches of some."""
    threads: int
    """Portions at a time."""

    def of_members(self, count: int) -> Iterator[slice]:
        """Yield slices that cover `count` members.

        Example:
            >>> list(Tiles(members=2, images=1, threads=1).of_members(3))
            [slice(0, 2, None), slice(2, 3, None)]
        """
        for start in range(0, count, self.members):
            yield slice(start, min(start + self.members, count))


Run = Callable[[Tiles], Iterator[tuple[slice, Tensor]]]
"""What an engine prepares: it yields some members at a time, and their logits
``[members, batch, classes]`` in float32."""


def narrowed(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor of decimal numbers in another dtype, and others as they are."""
    return value.to(dtype) if value.is_floating_point() else value
