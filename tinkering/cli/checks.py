"""What the flags of a run may be, found by arithmetic: nothing is built for it, or waited for.

The same holds for flags and for what stands in the place of flags in a run folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tinkering.cli import growing, ranges, room, workers
from tinkering.cli.flag import facts
from tinkering.cli.flags import Flags
from tinkering.cli.recipes import RECIPES
from tinkering.data import Dataset, Shifts
from tinkering.errors import ArgumentError
from tinkering.runs.evolve import Limits
from tinkering.strategies.stepping import require_step


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
    room.require_room_for_network(flags["blocks"], flags["width"], len(dataset.classes))
    room.require_room_for_images(flags, height, width)


def require_in_range(flags: Mapping[str, Any]) -> None:
    """Refuse flags that no run can have.

    Args:
        flags: with no default left open.

    Raises:
        ArgumentError: (a ``ValueError``) it names the flag, and what would be accepted.
    """
    for name, value in flags.items():
        require_of_its_strategy(name, value, flags["strategy"])
    if flags["seconds"] is not None or flags["generations"] is not None:
        Limits(flags["seconds"], flags["generations"], flags["measure_every"])
    for name, known in facts(Flags).items():
        if known.check is not None and flags[name] is not None:
            known.check(name, flags[name])
    if flags["ray_address"] is None:  # a cluster may be of any size
        for name in ("workers", "threads_per_worker"):
            ranges.require_threads(name, flags[name])
    workers.are_asked_for(flags)
    growing.require(flags)
    RECIPES[flags["strategy"]].strategy(flags)  # its own ranges; nothing is drawn yet
    if flags["learning_rate"] is not None:
        require_step("learning_rate", flags["learning_rate"], torch.float32)
    Shifts(flags["shift"], flags["seed"])


def require_of_its_strategy(name: str, value: Any, strategy: str) -> None:
    """Refuse a flag that was given for another strategy.

    Args:
        name: of the flag.
        value: what it says; None or False if it was not given.
        strategy: of the run.

    Raises:
        ArgumentError: (a ``ValueError``) it names the flag, and whose it is.
    """
    known = facts(Flags)[name]
    if not known.is_for(strategy) and value is not None and value is not False:
        needed = f"--strategy {' or '.join(known.defaults)}, which it belongs to"
        raise ArgumentError(name, needed, f"{value} with --strategy {strategy}")
