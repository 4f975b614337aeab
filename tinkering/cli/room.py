"""Whether there is room for a run, found by arithmetic: nothing is built for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tinkering.cli import network
from tinkering.engines.memory import default_budget
from tinkering.errors import ArgumentError

_FLOAT = torch.float32.itemsize
_COPIES = 10
"""Of the parameters, that a generation holds at a time at least: in the module, as centre, as
average, in Adam's two means, as estimate, as its negative, as moved, and in copies of the means."""
_BLOCK = 20_000
"""Bytes that a residual block takes besides its numbers: about 27,000 were measured."""


def free_memory() -> int:
    """Return the bytes that this process can still have: an evaluation's budget is half of it."""
    return 2 * default_budget()


def shortage(error: MemoryError | RuntimeError) -> ArgumentError | None:
    """Return what a lack of memory or threads comes to, or None where it is another fault.

    How much a run takes is known beforehand only from below; the rest is found out here.
    """
    first = (str(error).strip().splitlines() or ["no reason given"])[0]
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in first:
        advice = "Try a smaller network, or fewer members or images."
        return ArgumentError("memory", "room for what was asked for", f"less ({first})", advice)
    if "can't start new thread" in first:
        return ArgumentError("threads", "as many as the system starts", f"fewer ({first})")
    return None


def require_room_for_network(blocks: Sequence[int], width: int, classes: int) -> None:
    """Refuse a network of which there is no room for as many copies as a run holds.

    Raises:
        ArgumentError: (a ``ValueError``) it names ``blocks`` or ``width``.
    """
    free = free_memory()

    def fits(width: int, blocks: Sequence[int]) -> bool:
        count = network.count_parameters(blocks, width, classes)
        return _COPIES * _FLOAT * count + _BLOCK * sum(blocks) <= free

    if fits(width, blocks):
        return
    count = network.count_parameters(blocks, width, classes)
    found = f"a network of {count:,} parameters"
    where = f"{_gib(free)} of free memory hold {_COPIES} times"
    if fits(width, (1, 1, 1, 1)) or width == 1:
        came = f"{' '.join(map(str, blocks))}, {found}"
        raise ArgumentError("blocks", f"fewer, of a network that {where}", came)
    # The widest that fits lies between: it is found by halving.
    low, high = 0, width
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle, blocks) else (low, middle)
    needed = f"an integer from 1 to {low:,}, of a network that {where}"
    if low == 0:
        needed = f"a network that {where}"
    raise ArgumentError("width", needed, f"{width:,}, {found}")


def require_room_for_images(flags: Mapping[str, Any], height: int, width: int) -> None:
    """Refuse a generation whose images do not fit the memory.

    Each is there as bytes and as float32, and once more with its margin where it is moved. Where
    members are networks of their own, the images are laid beside every member, but for a group of
    all members, and each member has a fitness as float64.

    Raises:
        ArgumentError: (a ``ValueError``) it names ``images`` or ``population``.
    """
    free, population, most = free_memory(), flags["population"], flags["shift"]
    group = population if flags["group"] is None else flags["group"]
    networks = flags["images"] is not None
    margin = _FLOAT * (height + 2 * most) * (width + 2 * most) if most else 0
    each, image = height * width * (1 + _FLOAT) + margin, height * width * _FLOAT
    batch = flags["images"] if networks else 1

    def needed(population: int, batch: int) -> int:
        laid_out = population * batch * image if networks and group < population else 0
        fitness = 8 * population if networks else 0
        return int(population // group * batch * each + laid_out + fitness)

    if needed(population, batch) <= free:
        return
    room = f"for whose images {_gib(free)} of free memory suffice"
    if networks and needed(population, 1) <= free:
        most = free * batch // needed(population, batch)
        raise ArgumentError("images", f"an integer from 1 to about {most:,}, {room}", batch)
    most = free * population // needed(population, batch) // group * group
    advice = "" if most else "Try fewer images, or a smaller shift."
    raise ArgumentError("population", f"about {most:,} members at most, {room}", population, advice)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
