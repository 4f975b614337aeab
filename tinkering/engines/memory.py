"""How much memory there is, and how much a module's examples take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tinkering.graph.program import CONVOLUTIONS, LINEAR, Fused, Program
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
    """What one example takes on its way through a module, with all values as float32."""

    peak: int
    """Bytes of the values that are held at a time, at most."""
    largest: int
    """Numbers of the largest value: an activation."""
    output: int
    """Bytes of the result."""
    values: int
    """Numbers of all values."""
    convolved: int
    """Multiplications of its convolutions."""
    multiplied: int
    """Multiplications of its linear and recurrent layers."""

    @property
    def work(self) -> int:
        """Multiplications of its layers."""
        return self.convolved + self.multiplied


def footprint(program: Program) -> Footprint:
    """Return what one example takes."""
    made = [step.last if isinstance(step, Fused) else step for step, _ in program.walk()]
    largest = max(size_of(node) // 4 for node in [*program.inputs, *made])
    values = sum(size_of(node) // 4 for node in made)
    output = sum(size_of(node) for node in program.outputs)
    convolved = sum(work_of(step) for step in program.fused if step.layer.target in CONVOLUTIONS)
    multiplied = sum(work_of(step) for step in program.fused if step.layer.target is LINEAR)
    multiplied += sum(map(_work_of_others, program.plain))
    return Footprint(_peak(program), largest, output, values, convolved, multiplied)


def work_of(step: Fused) -> int:
    """Return the multiplications of a layer for one example; of a norm alone: none."""
    if step.layer.target not in (*CONVOLUTIONS, LINEAR):
        return 0
    weight = step.layer.args[1].meta["val"]  # type: ignore[union-attr]
    result = [size for size in step.layer.meta["val"].shape if isinstance(size, int)]
    return math.prod(result) * int(math.prod(weight.shape[1:]))


def _work_of_others(node: fx.Node) -> int:
    """Return the multiplications of a recurrent layer, a product or a transposed convolution.

    Each number of a matrix is met once for every position: a token, a step in time, a pixel.
    """
    held = [source for source in node.all_input_nodes if _is_held(source)]
    if not held or node.target not in _MULTIPLIES:
        return 0
    numbers = sum(one.meta["val"].numel() for one in held if one.meta["val"].dim() > 1)
    source = next((source for source in node.all_input_nodes if source not in held), held[0])
    features = source.meta["val"].shape[1 if node.target in _TRANSPOSED else -1]
    return int(numbers) * max(1, size_of(source) // 4 // _hint(features))


def _is_held(node: fx.Node) -> bool:
    """Return whether a value is a parameter, or another that has no examples."""
    return node.op == "placeholder" and isinstance(node.meta["val"].numel(), int)


def _hint(size: Any) -> int:
    """Return a size as the example has it; ``int`` would fix the number of examples for good."""
    return int(size.node.hint if hasattr(size, "node") else size)


_aten = torch.ops.aten
_TRANSPOSED = {
    _aten.conv_transpose1d.default,
    _aten.conv_transpose2d.input,
    _aten.conv_transpose3d.input,
}
_MULTIPLIES = _TRANSPOSED | {
    _aten.addmm.default,
    _aten.gru.input,
    _aten.gru_cell.default,
    _aten.linear.default,
    _aten.lstm.input,
    _aten.lstm_cell.default,
    _aten.matmul.default,
    _aten.mm.default,
    _aten.rnn_relu.input,
    _aten.rnn_relu_cell.default,
    _aten.rnn_tanh.input,
    _aten.rnn_tanh_cell.default,
}


def _peak(program: Program) -> int:
    """Return the most bytes that one example's values take at a time.

    A step's input may be cast, and its result is built beside what it adds, so these
    count twice.
    """
    live: dict[str, int] = {node.name: size_of(node) for node in program.inputs}
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


def size_of(node: fx.Node) -> int:
    """Return the bytes of a value for one example, as float32."""
    values = node.meta.get("val")
    total = 0
    for value in values if isinstance(values, list | tuple) else [values]:
        if isinstance(value, Tensor):
            # A number that depends on the examples is that of two.
            count = value.numel()
            total += _hint(count) * 4 // (2 if hasattr(count, "node") else 1)
    return total
