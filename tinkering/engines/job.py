"""What an engine is asked to do, and in which portions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tinkering.engines.network import Network
from tinkering.graph.branch import Branch
from tinkering.graph.probe import LOCK
from tinkering.graph.program import Program
from tinkering.graph.signature import Batch
from tinkering.population import CountedPopulation, Population


@dataclass(frozen=True)
class Job:
    """A population, and the kind of inputs that its members are to see."""

    model: nn.Module
    """The architecture, with the norm policy's layers."""
    source: nn.Module
    """The architecture that the user gave."""
    population: Population
    batch: Batch
    """Inputs of the kind: what a later call has differs in numbers and in how many examples."""
    network: Network
    """What the architecture does with such inputs."""
    program: Program | None
    """Its steps; None where it could not be captured, or not for such a batch."""
    not_captured: str
    """Why not."""
    dtype: torch.dtype
    randomness: str
    keeps_own: bool = False
    """Whether it computes with copies of the module's tensors, which nobody changes."""

    @property
    def members(self) -> CountedPopulation:
        """The population, where its members can be counted."""
        if not isinstance(self.population, CountedPopulation):
            raise TypeError("no members")
        return self.population

    @property
    def random(self) -> bool:
        """Whether the forward draws random numbers: active dropout."""
        return self.network.random

    @cached_property
    def branch(self) -> Branch | None:
        """Where members part; None where nothing is computed alike for all of them."""
        if self.program is None:
            return None
        return self.network.branch(self.population.differing)

    @cached_property
    def own(self) -> dict[str, Tensor]:
        """The module's parameters and buffers, for what the population does not have."""
        names = {name for name, _ in self.model.named_parameters()}
        names |= {name for name, _ in self.model.named_buffers()}
        state = dict(self.source.named_parameters()) | dict(self.source.named_buffers())
        own = {name: value.detach() for name, value in state.items() if name in names}
        return {name: value.clone() for name, value in own.items()} if self.keeps_own else own

    def state(self, index: int) -> dict[str, Tensor]:
        """Return a member's parameters and buffers, by name."""
        params, buffers = self.population.member(index)
        known = {**params, **buffers}
        return {name: known.get(name, value) for name, value in self.own.items()}

    def called(
        self, module: nn.Module, state: Mapping[str, Tensor], tensors: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return the tensors that a copy of the module makes of a batch with a member's state.

        Args:
            module: a `skeleton`, which a forward may assign attributes to.
            state: parameters and buffers by name.
            tensors: what the member sees.
        """
        # Copies, since a forward may write into whatever it is given.
        # In a module of float32, what is float64 is so for a reason.
        keeps = not any(map(_is_double, module.parameters()))
        own = {
            name: _own(value, torch.float64 if keeps and _is_double(value) else self.dtype)
            for name, value in state.items()
        }
        signature, known = self.batch.signature, self.network.result
        args, kwargs = signature.arguments([_own(value, self.dtype) for value in tensors])
        results = known.tree.tensors(functional_call(module, own, args, kwargs))
        if known.shapes is not None:
            pairs = zip(tensors, signature.axes, strict=True)
            examples = next(len(value) for value, axes in pairs if axes.examples)
            expected = [(examples, *shape) for shape in known.shapes]
            results = list(map(_restored, results, expected))
        return [widened(result) for result in results]

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


def _restored(result: Tensor, expected: tuple[int, ...]) -> Tensor:
    """Return a result with the axis of a single example that ``squeeze`` took away."""
    if result.dim() < len(expected) and result.numel() == math.prod(expected):
        return result.reshape(expected)
    return result


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


def narrowed(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor of a floating-point dtype in another one, and others as they are."""
    return value.to(dtype) if value.is_floating_point() else value


def widened(value: Tensor) -> Tensor:
    """Return a tensor of a floating-point dtype in float32, and others as they are."""
    return value.float() if value.is_floating_point() else value
