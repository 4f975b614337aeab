"""What flags may be, found by arithmetic: nothing is built for it, and nothing waited for.

The same holds for flags and for what stands in the place of flags in a run folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tinkering.cli import network, workers
from tinkering.cli.recipes import RECIPES
from tinkering.data import Dataset, Shifts
from tinkering.engines.memory import default_budget
from tinkering.errors import ArgumentError
from tinkering.runs.evolve import Limits
from tinkering.strategies.stepping import require_step

try:
    import resource
except ImportError:  # a system without such limits
    resource = None  # type: ignore[assignment]

_FLOAT = torch.float32.itemsize
_COPIES = 10
"""Of the parameters, that a generation holds at a time at least: in the module, as centre, as
average, in Adam's two means, as estimate, as its negative, as moved, and in copies of the means."""
_BLOCK = 20_000
"""Bytes that a residual block takes besides its numbers: about 27,000 were measured."""
_MOST_PROCESSORS = 8192
"""That a Linux system can be built for. More threads only wait for one another; fewer are not the
limit, since a run has to go on with its number of threads on a smaller machine too."""
_MAPPINGS_OF_A_THREAD = 2
"""Areas of memory: its stack, and what guards it."""
_GENERATIONS = 2**64
"""Noise is drawn with the generation as a number of 64 bits."""


def free_memory() -> int:
    """Return the bytes that this process can still have: an evaluation's budget is half of it."""
    return 2 * default_budget()


def require(flags: Mapping[str, Any], dataset: Dataset) -> None:
    """Refuse a run that cannot work with what its flags say on this data set.

    Args:
        flags: with no default left open.
        dataset: what the run learns from.

    Raises:
        ArgumentError: (a ``ValueError``) it names the flag, and what would be accepted.
    """
    require_in_range(flags)
    height, width = dataset.train.pixels.shape[1:]
    Shifts(flags["shift"], flags["seed"]).require_visible(height, width)
    require_room_for_network(flags["blocks"], flags["width"], len(dataset.classes))
    _require_room_for_images(flags, height, width)


def require_in_range(flags: Mapping[str, Any]) -> None:
    """Refuse flags that no run can have.

    Args:
        flags: with no default left open.

    Raises:
        ArgumentError: (a ``ValueError``) it names the flag, and what would be accepted.
    """
    require_threads("threads", flags["threads"])
    if flags["ray_address"] is None:  # a cluster may be of any size
        for name in ("workers", "threads_per_worker"):
            require_threads(name, flags[name])
    workers.are_asked_for(flags)
    if flags["seconds"] is not None or flags["generations"] is not None:
        Limits(flags["seconds"], flags["generations"], flags["measure_every"])
    for name in ("checkpoint_every", "keep_checkpoints", "memory", "width"):
        _require_at_least_one(name, flags[name])
    if any(number < 1 for number in flags["blocks"]):
        blocks = " ".join(map(str, flags["blocks"]))
        raise ArgumentError("blocks", "four numbers of at least 1, one a stage", blocks)
    generations = flags["generations"]
    if generations is not None and generations >= _GENERATIONS:
        raise ArgumentError("generations", "an integer of at most 2^64 - 1", generations)
    RECIPES[flags["strategy"]].strategy(flags)  # its own ranges; nothing is drawn yet
    require_step("learning_rate", flags["learning_rate"], torch.float32)
    if flags["strategy"] != "activations":
        _require_at_least_one("images", flags["images"])
    Shifts(flags["shift"], flags["seed"])


def require_threads(name: str, threads: int | None) -> None:
    """Refuse more threads than can be started: the libraries that would start them end the process.

    Args:
        name: of the flag.
        threads: what it says; None if it was not given.

    Raises:
        ArgumentError: (a ``ValueError``) it is out of range.
    """
    most = _most_threads()
    if threads is not None and not 1 <= threads <= most:
        needed = "an integer of at least 1" if threads < 1 else f"an integer from 1 to {most:,}"
        advice = "" if threads < 1 else f"This machine has {os.cpu_count()} processors."
        raise ArgumentError(name, needed, threads, advice)


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


def _require_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ArgumentError(name, "an integer of at least 1", value)


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


def _require_room_for_images(flags: Mapping[str, Any], height: int, width: int) -> None:
    """Refuse a generation whose images do not fit the memory.

    Each is there as bytes and as float32, and once more with its margin where it is moved. With
    --strategy weights the images are laid beside every member, but for a group of all members,
    and each member has a fitness as float64.
    """
    free, population, group = free_memory(), flags["population"], flags["group"]
    weights, most = flags["strategy"] == "weights", flags["shift"]
    margin = _FLOAT * (height + 2 * most) * (width + 2 * most) if most else 0
    each, image = height * width * (1 + _FLOAT) + margin, height * width * _FLOAT
    batch = flags["images"] if weights else 1

    def needed(population: int, batch: int) -> int:
        laid_out = population * batch * image if weights and group < population else 0
        fitness = 8 * population if weights else 0
        return int(population // group * batch * each + laid_out + fitness)

    if needed(population, batch) <= free:
        return
    room = f"for whose images {_gib(free)} of free memory suffice"
    if weights and needed(population, 1) <= free:
        most = free * batch // needed(population, batch)
        raise ArgumentError("images", f"an integer from 1 to about {most:,}, {room}", batch)
    most = free * population // needed(population, batch) // group * group
    advice = "" if most else "Try fewer images, or a smaller shift."
    raise ArgumentError("population", f"about {most:,} members at most, {room}", population, advice)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def _most_threads() -> int:
    """Return how many threads can be asked for.

    Twice as many are started, some by PyTorch's libraries and some here, and a quarter of what
    the system has room for is left to others.
    """
    places = ("/proc/sys/kernel/threads-max", "/sys/fs/cgroup/pids.max")
    limits = [_number(place) for place in (*places, "/sys/fs/cgroup/pids/pids.max")]
    mappings = _number("/proc/sys/vm/max_map_count")
    limits.append(None if mappings is None else mappings // _MAPPINGS_OF_A_THREAD)
    if resource is not None and os.geteuid() != 0:  # nothing is counted for root
        own = resource.getrlimit(resource.RLIMIT_NPROC)[0]
        limits.append(None if own == resource.RLIM_INFINITY else own)
    room = min((limit for limit in limits if limit is not None), default=2 * _MOST_PROCESSORS)
    return max(os.cpu_count() or 1, min(_MOST_PROCESSORS, room * 3 // 8))


def _number(place: str) -> int | None:
    """Return the number in a file of the system, None where there is none."""
    try:
        return int(Path(place).read_text())
    except (OSError, ValueError):
        return None
