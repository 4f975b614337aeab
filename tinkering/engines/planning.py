"""How an evaluation will be done: which engine, in which portions, in how much memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from tinkering.engines import memory
from tinkering.engines.cost import Load, load_of
from tinkering.engines.job import Job, Tiles
from tinkering.errors import ArgumentError
from tinkering.graph.signature import Batch
from tinkering.population import PerturbedPopulation, Population

_CACHE = 2 << 20
"""Bytes of a run's largest activation: larger ones leave the processor's caches."""
_SHARE_OF_WEIGHTS = 3
"""Weights are read again for every run, so a run has activations of a third of their size."""
_MOST_IMAGES = 4096
_FEWEST_IMAGES = 8
"""A run of fewer spends more on its calls than its activations gain by staying in the caches."""
_NOISE = 4 << 20
"""Bytes of noise to draw at once: drawing costs some calls for every parameter, so many
members' noise is drawn together, as long as it stays in the caches until it is used."""
_PORTIONS_A_THREAD = 2
"""At least, where they fill a run: a thread that something else holds up then leaves the rest to
the others. It follows from the sizes alone, and so do the bits."""
_LITTLE_WORK = 10_000_000
"""Multiplications of a call that one thread does before a second one would have begun."""
_AT_ONCE = ("factored", "batched")
"""Engines that run many members as one batch."""
_MIB = 1 << 20


@dataclass(frozen=True)
class Plan:
    """How an evaluation is done, and why so.

    Example:
        >>> from torch import nn
        >>> from tinkering import PerturbedPopulation, plan
        >>> model = nn.Linear(8, 4)
        >>> plan(model, PerturbedPopulation(model, 64, 0.1), torch.zeros(5, 8)).engine
        'factored'
    """

    engine: str
    """``"factored"``, ``"batched"``, ``"sequential"``, ``"vmapped"``; or ``"activations"``."""
    reason: str
    """Why this engine."""
    tiles: Tiles
    """Members and images at a time, and threads."""
    dtype: torch.dtype
    needed: int
    """Bytes that the evaluation takes beyond the population, the module and `x`, at most."""
    budget: int
    """Bytes that it may take."""
    keeps: bool = False
    """Whether members' noise, or their packed weights, are made once for all calls."""
    shares: bool = False
    """Whether layers before the first that differs between members are computed once for all."""
    notes: tuple[str, ...] = ()
    """What else is worth knowing, such as what could not be made fast."""
    expected: float | None = None
    """Seconds of one thread, as the sizes and the kind of processor let one expect; None where
    nothing is known."""

    def __str__(self) -> str:
        tiles = self.tiles
        lines = [
            f"engine {self.engine}: {self.reason}",
            f"{tiles.members} members a thread, {tiles.images} images a run, "
            f"{tiles.threads} threads, {str(self.dtype).removeprefix('torch.')}",
            f"about {self.needed / _MIB:,.0f} MiB of {self.budget / _MIB:,.0f} MiB",
        ]
        if self.expected is not None:
            lines.append(f"about {1e3 * self.expected:,.2g} ms of one thread, expected from sizes")
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True)
class Chosen:
    """An engine that is ready for a job."""

    name: str
    reason: str
    """Why it is this one."""
    built: int = 0
    """Bytes that it builds for every member of a tile, beside what it has of them anyway."""
    notes: tuple[str, ...] = ()
    """For the plan."""
    cost: Callable[[Load], float] | None = None
    """What it expects to take of one thread, in seconds."""


def make_plan(
    job: Job,
    batch: Batch,
    engine: Chosen,
    budget: int | None,
    keeps_outputs: bool,
    may_keep: bool = False,
) -> Plan:
    """Return the plan for a job: tiles that fit the caches and the budget.

    Args:
        job: what is to be evaluated.
        batch: on what.
        engine: which does it.
        budget: bytes; None for half of what is free.
        keeps_outputs: whether all members' outputs are held in the end.
        may_keep: whether what is made of members may stay for the next call.

    Raises:
        ArgumentError: (a ``ValueError``) not even the smallest tile fits the budget.
    """
    budget = memory.default_budget() if budget is None else budget
    members, examples = batch.members, batch.examples
    name = engine.name
    sizes = _Sizes(job, batch, engine, keeps_outputs)
    whole = name == "vmapped" or job.program is None or job.random
    whole = whole or (job.program is not None and job.program.captured.coupled)
    images = sizes.images_in_cache()
    images = max(images, examples) if whole else min(images, members * examples)
    each = 1 if name == "sequential" else max(1, images // examples)
    if name == "factored":
        each = _power_of_two(max(each, sizes.members_a_draw()))
    alone = name == "vmapped" or job.random or job.program is None
    alone = alone or (name in _AT_ONCE and sizes.work() < _LITTLE_WORK)
    threads = 1 if alone else torch.get_num_threads()
    each = min(each, _portion(members, threads, max(1, images // examples)))
    tiles = Tiles(each, images, min(threads, -(-members // each)))
    while sizes.needed(tiles) > budget:
        smaller = _smaller(tiles, examples if whole else 1)
        if smaller is None:
            raise ArgumentError(
                "memory",
                f"at least {sizes.needed(tiles):,} bytes, for "
                f"{'a batch' if whole else 'one example'} of one member",
                f"{budget:,}",
                "Give it more, or evaluate in smaller batches." if whole else "",
            )
        tiles = smaller
    needed, kept = sizes.needed(tiles), sizes.kept()
    keeps = may_keep and needed + kept <= budget
    needed += kept if keeps else 0
    branch = job.branch if batch.is_shared and members > 1 and name != "vmapped" else None
    held = examples * sum(map(memory.size_of, branch.batched)) if branch else 0
    shares = branch is not None and needed + held <= budget
    needed += held if shares else 0
    notes = (*engine.notes, *_notes(job))
    expected = None
    if engine.cost is not None and job.program is not None:
        expected = engine.cost(load_of(job, batch))
    return Plan(
        name, engine.reason, tiles, job.dtype, needed, budget, keeps, shares, notes, expected
    )


@runtime_checkable
class Run(Protocol):
    """What an engine prepares."""

    built: int
    """Bytes that it builds for every member of a tile, beside what it has of them anyway."""
    notes: tuple[str, ...]
    """For the plan."""

    def __call__(self, batch: Batch, plan: Plan) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield some members at a time, and the tensors of what they return.

        These are ``[members, batch, ...]`` each, of floating-point dtypes in float32.
        """


def _portion(members: int, threads: int, run: int) -> int:
    """Return how many members a thread should take at a time, at most.

    Args:
        members: of the population.
        threads: that share them.
        run: members of a full run.
    """
    each = -(-members // threads)
    if threads == 1 or each <= run:
        return each  # one for every thread, as far as there are members
    runs = -(-each // (_PORTIONS_A_THREAD * run))
    return min(each, runs * run)


def images_in_cache(largest: int, weights: int) -> int:
    """Return how many images a run should have, a power of two.

    Args:
        largest: bytes of an image's largest activation.
        weights: bytes of all weights.

    Example:
        >>> images_in_cache(largest=50_000, weights=10_000)
        32
    """
    room = max(_CACHE, weights // _SHARE_OF_WEIGHTS)
    return _power_of_two(max(1, min(_MOST_IMAGES, room // largest)))


def _power_of_two(most: int) -> int:
    """Return the largest power of two that is not above a number."""
    return 1 << (most.bit_length() - 1)


class _Sizes:
    """Bytes of what an evaluation holds."""

    def __init__(self, job: Job, batch: Batch, engine: Chosen, keeps_outputs: bool) -> None:
        self._engine, self._built = engine.name, engine.built
        self._dtype = job.dtype
        self._parameters = sum(value.numel() for value in job.own.values())
        # float32, and a copy that is folded, cast and packed, of a stack also turned
        copies = 3 if engine.name == "batched" else 2
        self._weights = self._parameters * (4 + copies * job.dtype.itemsize)
        members, examples = batch.members, batch.examples
        self._work = 0
        if job.program is None:
            # Nothing is known of its values: as many as weights, or some times the input.
            pairs = zip(batch.tensors, batch.signature.axes, strict=True)
            count = sum(v.numel() // (members if axes.members else 1) for v, axes in pairs)
            image = 4 * count // examples
            self._image = max(64 * image, self._weights // 8)
            self._largest, self._output = max(1, 16 * image // 4), image
        else:
            one = job.network.footprint
            self._image, self._largest, self._output = one.peak, one.largest, one.output
            self._work = members * examples * one.work
        self._members = members
        self._outputs = members * examples * self._output if keeps_outputs else members * 4
        self._noise = _noise_bytes(job.population)

    def work(self) -> int:
        """Return the multiplications of a call."""
        return self._work

    def kept(self) -> int:
        """Return the bytes of what an engine can keep of all members."""
        # Noise twice: a layer may turn it into the form that it reads.
        each = 2 * self._noise if self._engine == "factored" else self._weights
        return self._members * (each + self._built)

    def images_in_cache(self) -> int:
        """Return how many images a tile should have."""
        size = self._dtype.itemsize
        fitting = images_in_cache(self._largest * size, self._parameters * size)
        return max(_FEWEST_IMAGES, fitting)

    def members_a_draw(self) -> int:
        """Return how many members' noise should be drawn at once."""
        return max(1, _NOISE // max(1, self._noise))

    def needed(self, tiles: Tiles) -> int:
        """Return the bytes that the evaluation takes, at most."""
        at_a_time = tiles.threads * tiles.images * self._image
        at_a_time += tiles.threads * tiles.members * self._built
        if self._engine == "factored":
            # Twice: a layer may turn it into the form that it reads.
            noise = 2 * tiles.threads * tiles.members * self._noise
            return self._outputs + self._weights + at_a_time + noise
        copies = tiles.members * tiles.threads
        return self._outputs + copies * self._weights + at_a_time


def _noise_bytes(population: Population) -> int:
    """Return the bytes of a member's noise as it is drawn; a pair shares it."""
    if not isinstance(population, PerturbedPopulation):
        return 0
    two = population[:2]
    factors = two.draw().noise.values()
    drawn = [value for noise in factors for value in vars(noise).values()]
    return sum(int(value.nbytes) for value in drawn) // len(two)


def _smaller(tiles: Tiles, fewest: int) -> Tiles | None:
    """Return the next smaller tiles, with `fewest` images at least; None: there are none."""
    if tiles.members > 1:
        return Tiles(tiles.members // 2, tiles.images, tiles.threads)
    if tiles.images > fewest:
        return Tiles(1, max(fewest, tiles.images // 2), tiles.threads)
    if tiles.threads > 1:
        return Tiles(1, tiles.images, tiles.threads // 2)
    return None


def _notes(job: Job) -> tuple[str, ...]:
    notes = []
    if job.program is None:
        notes.append(f"The module runs unfused: {job.not_captured}.")
    if job.random:
        notes.append("Active dropout: members are evaluated one by one, on one thread.")
    return tuple(notes)
