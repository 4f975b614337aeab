"""How much memory there is, and how much a module's images take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, fx

from tinkering.graph.program import Fused, Program
from tinkering.native.free_memory import free_memory

_SHARE = 0.5
"""Of the free memory, for a budget that nobody named."""


def default_budget() -> int:
    """Return half of the bytes that this process can still have.

    Example:
        >>> default_budget() > 0
        True
    """
    return int(free_memory() * _SHARE)


@dataclass(frozen=True)
class Footprint:
    """What one image takes on its way through a module, with all values as float32."""

    peak: int
    """Bytes of the values that are held at a time, at most."""
    largest: int
    """Numbers of the largest value: an activation."""
    output: int
    """Bytes of the result."""


_footprints: WeakKeyDictionary[Program, Footprint] = WeakKeyDictionary()


def footprint(program: Program) -> Footprint:
    """Return what one image takes; it is kept as long as the program."""
    if program not in _footprints:
        made = [step.last if isinstance(step, Fused) else step for step, _ in program.walk()]
        largest = max(size_of(node) // 4 for node in [_images(program), *made])
        _footprints[program] = Footprint(_peak(program), largest, size_of(program.output))
    return _footprints[program]


def _peak(program: Program) -> int:
    """Return the most bytes that one image's values take at a time.

    A step's input may be cast, and its result is built beside what it adds, so these
    count twice.
    """
    live: dict[str, int] = {program.captured.images: size_of(_images(program))}
    most = 0
    for step, released in program.walk():
        made = step.last if isinstance(step, Fused) else step
        reads = [step.source] if isinstance(step, Fused) else step.all_input_nodes
        live[made.name] = size_of(made)
        working = size_of(made) + sum(size_of(node) for node in reads if node.name in live)
        most = max(most, sum(live.values()) + working)
        for name in released:
            live.pop(name, None)
    return max(most, 1)


def _images(program: Program) -> fx.Node:
    nodes: dict[str, fx.Node] = {node.name: node for node in program.captured.graph.nodes}
    return nodes[program.captured.images]


def size_of(node: fx.Node) -> int:
    """Return the bytes of a value for one image, as float32."""
    values = node.meta.get("val")
    total = 0
    for value in values if isinstance(values, list | tuple) else [values]:
        if isinstance(value, Tensor):
            # A number that depends on the images has a hint: that of two, the example.
            count: Any = value.numel()
            total += 4 * (count.node.hint // 2 if hasattr(count, "node") else count)
    return total
