"""Networks that are widened while they evolve: what ``--grow-from`` makes of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tinkering.cli import network
from tinkering.cli.flag import facts
from tinkering.cli.flags import Flags
from tinkering.cli.recipes import RECIPES
from tinkering.data import Dataset
from tinkering.errors import ArgumentError
from tinkering.noise import Stream
from tinkering.strategies.growing import Growing
from tinkering.strategies.widening import widened
from tinkering.tasks.widths import OfWidths

Settings = Mapping[str, Any]


def require(flags: Settings) -> None:
    """Refuse a run that cannot grow as its flags say.

    Raises:
        ArgumentError: (a ``ValueError``) it names the flag, and what would be accepted.
    """
    if flags["grow_from"] is None:
        if flags["grow_every"] is not None:
            needed = "--grow-from, which it belongs to"
            raise ArgumentError("grow_every", needed, f"{flags['grow_every']} without it")
        return
    if flags["strategy"] == "genetic":
        needed = "--strategy feedback or activations or weights, which have a centre to widen"
        came = f"{flags['grow_from']} with --strategy genetic"
        raise ArgumentError("grow_from", needed, came)
    network.widths(flags)


def width(flags: Settings, generation: int) -> int:
    """Return how wide the network is after so many generations."""
    found = network.widths(flags)
    stage = generation // flags["grow_every"] if len(found) > 1 else 0
    return found[min(stage, len(found) - 1)]


def until_widest(flags: Settings) -> int:
    """Return the generations after which the network grows no more."""
    return (len(network.widths(flags)) - 1) * (flags["grow_every"] or 0)


def model(flags: Settings, shape: Settings, width: int) -> nn.Module:
    """Return the network with its first weights, widened until it is so wide.

    Args:
        flags: of the run, with no default left open.
        shape: of its last network.
        width: of the one to return.
    """
    first, *later = network.widths(flags)
    built = network.initialise({**shape, "width": first}, flags["seed"])
    for stage, wider in enumerate(later, 1):
        if wider <= width:
            with torch.device("meta"):
                wide = network.build({**shape, "width": wider})
            shapes = {name: value.shape for name, value in wide.state_dict().items()}
            stream = Stream(flags["seed"], stage)  # as in Growing
            wide.load_state_dict(widened(built.state_dict(), shapes, stream), assign=True)
            built = wide
    return built


def strategy(flags: Settings, shape: Settings) -> Any:
    """Return the run's strategy: one for each width, where there are several."""
    make, found = RECIPES[flags["strategy"]].strategy, network.widths(flags)
    if len(found) == 1:
        return make(flags)
    stages = [make(_at_width(flags, width)) for width in found]
    with torch.device("meta"):
        wide = [network.build({**shape, "width": width}) for width in found[1:]]
    shapes = [{name: value.shape for name, value in one.named_parameters()} for one in wide]
    return Growing(stages, shapes, flags["grow_every"])


def task(flags: Settings, shape: Settings, dataset: Dataset) -> Any:
    """Return the run's task: one for each width, where there are several."""
    make, found = RECIPES[flags["strategy"]].task, network.widths(flags)

    def of_width(width: int) -> Any:
        return make(flags, model(flags, shape, width), dataset)

    return of_width(found[0]) if len(found) == 1 else OfWidths(of_width, network.FIRST)


def advanced(strategy: Any, start: Any, generation: int) -> Any:
    """Return the state before the first generation, as wide as it is in a later one."""
    return strategy.advanced(start, generation) if isinstance(strategy, Growing) else start


def _at_width(flags: Settings, width: int) -> dict[str, Any]:
    """Return the flags with the learning rate and the cells of a width; they say the last's.

    With cells in proportion to channels, pixels share them alike in networks of all widths, and
    what was learned of one network's can be told of the next one's.
    """
    known = facts(Flags)["learning_rate"]
    now, last = (
        known.default(flags["strategy"], flags["fitness"], one) for one in (width, flags["width"])
    )
    own = {"learning_rate": flags["learning_rate"] * (now / last)}
    if flags["cells"] is not None:
        first = flags["grow_from"] or flags["width"]
        own["cells"] = max(1, flags["cells"] * first // flags["width"]) * (width // first)
    return {**flags, **own}
