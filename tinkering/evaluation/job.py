"""What an engine is asked to do, and in which portions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from tinkering.evaluation.graph import Program
from tinkering.population import Population


@dataclass(frozen=True)
class Job:
    """A population and the images its members are to see."""

    model: nn.Module
    """The architecture, with the norm policy's layers."""
    source: nn.Module
    """The architecture that the user gave."""
    population: Population
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

    @contextmanager
    def seeded(self) -> Iterator[Callable[[int], None]]:
        """Give a function that seeds PyTorch's generator; its state is as if untouched after.

        The seeds follow from the generator's state, so ``torch.manual_seed`` decides them,
        and the next evaluation draws others.
        """
        if not self.random:
            yield _leave
            return
        base = int(torch.randint(2**62, ()))
        with torch.random.fork_rng(devices=[]):
            yield lambda index: _seed(base + index)


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


def _leave(number: int) -> None:
    """Do nothing where nothing is drawn."""
    del number


def _seed(number: int) -> None:
    torch.manual_seed(number)
