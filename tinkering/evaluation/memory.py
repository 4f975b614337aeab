"""How much memory there is, and how much a module's images take."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from tinkering.evaluation.graph import Fused, Program

_GROUP = Path("/sys/fs/cgroup")
_SHARE = 0.5
"""Of the free memory, for a budget that nobody named."""
_UNKNOWN = 2**62


def default_budget() -> int:
    """Return half of the bytes that this process can still have.

    Example:
        >>> default_budget() > 0
        True
    """
    free = min(_machine(), _group(), _address_space())
    return int(max(free, 0) * _SHARE)


def _machine() -> int:
    """Return what the system says is available."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # another system: assume that there is enough
        return _UNKNOWN
    sizes = dict(line.split(":", 1) for line in lines)
    return int(sizes["MemAvailable"].split()[0]) * 1024


def _group() -> int:
    """Return what the control group has left, as containers have it."""
    try:
        limit = (_GROUP / "memory.max").read_text().strip()
        used = (_GROUP / "memory.current").read_text().strip()
    except OSError:
        return _UNKNOWN
    return _UNKNOWN if limit == "max" else int(limit) - int(used)


def _address_space() -> int:
    """Return what ``ulimit -v`` has left."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return _UNKNOWN
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return limit
    return limit - pages * resource.getpagesize()


def bytes_per_image(program: Program) -> int:
    """Return the most that one image's values take at a time, counted as float32.

    A step's input may be cast, and its result is built beside what it adds, so these
    count twice.
    """
    live: dict[str, int] = {program.captured.images: _size(_images(program))}
    most = 0
    for step, released in program.walk():
        made = step.last if isinstance(step, Fused) else step
        reads = [step.source] if isinstance(step, Fused) else step.all_input_nodes
        live[made.name] = _size(made)
        working = _size(made) + sum(_size(node) for node in reads if node.name in live)
        most = max(most, sum(live.values()) + working)
        for name in released:
            live.pop(name, None)
    return max(most, 1)


def largest_value(program: Program) -> int:
    """Return how many numbers an image's largest value has: an activation."""
    made = [step.last if isinstance(step, Fused) else step for step, _ in program.walk()]
    return max([_size(node) // 4 for node in [_images(program), *made]])


def output_size(program: Program) -> int:
    """Return the bytes of one image's result, as float32."""
    return _size(program.output)


def _images(program: Program) -> fx.Node:
    nodes: dict[str, fx.Node] = {node.name: node for node in program.captured.graph.nodes}
    return nodes[program.captured.images]


def _size(node: fx.Node) -> int:
    """Return the bytes of a value for one image, as float32."""
    values = node.meta.get("val")
    total = 0
    for value in values if isinstance(values, list | tuple) else [values]:
        if isinstance(value, Tensor):
            # A number that depends on the images has a hint: that of two, the example.
            count: Any = value.numel()
            total += 4 * (count.node.hint // 2 if hasattr(count, "node") else count)
    return total
