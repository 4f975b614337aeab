"""Runs a program: a list of calls that read and write numbered places, made once.

A call of a small network is a dozen operations of some microseconds each, so nothing is looked up
or decided between them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils import _pytree

from tinkering.graph.capture import as_float32
from tinkering.graph.program import (
    ADDITION,
    CONVOLUTIONS,
    RELU,
    Fused,
    Program,
    Step,
    name_of,
)

_aten = torch.ops.aten
_PLAIN_CONVOLUTIONS = {
    *CONVOLUTIONS,
    _aten.conv_transpose1d.default,
    _aten.conv_transpose2d.input,
    _aten.conv_transpose3d.input,
}
# These neither mix numbers nor lose digits, so they keep the dtype they are handed.
_ANY_DTYPE = {ADDITION, RELU, _aten.max_pool2d.default, _aten.dropout.default}
# What these make of memory depends on the dtype that the module has it in.
_READS_BITS = {_aten.view.dtype, _aten.view_as_complex.default}

FusedCall = Callable[[Any, Tensor, Tensor | None], Tensor]
"""``(tile, input, residual) -> result`` of a fused step."""
NodeCall = Callable[..., Any]
"""``(tile, *args, **kwargs) -> result`` of another step, in the graph's stead."""


class _Call(NamedTuple):
    """A step: what is called, and the places it reads and writes."""

    function: Callable[..., Any]
    takes_tile: bool
    reads: tuple[int, ...]
    writes: int
    frees: tuple[int, ...]
    """Places whose values are needed no more."""


class Runner:
    """A program with the tensors behind its placeholders.

    Args:
        program: the steps.
        values: the tensors of the placeholders that are no inputs, by the placeholder's name.
        fused: computes each fused step, by its name; called with the tile that `run` is given.
        nodes: computes plain steps in the graph's stead, by the node's name; likewise.
    """

    def __init__(
        self,
        program: Program,
        values: Mapping[str, Tensor],
        fused: Mapping[str, FusedCall],
        nodes: Mapping[str, NodeCall] | None = None,
    ) -> None:
        self.program = program
        names = [node.name for node in program.captured.graph.nodes if node.op != "output"]
        self.places = {name: at for at, name in enumerate(names)}
        """Of each value, by its name."""
        self._base: list[Any] = [values.get(name) for name in names]
        self.held = storages(self._base)
        """Where the memory of these values begins."""
        self._inputs = [self.places[name] for name in program.captured.inputs]
        self._outputs = [self.places[node.name] for node in program.outputs]
        captured = program.captured
        held = {n.meta["val"].dtype for n in captured.graph.nodes if n.name in captured.parameters}
        # In a module of float64 that is the dtype of constants, too, and engines have float32.
        self._others = _NARROW | (_DOUBLE & held)
        own = nodes or {}
        self._calls = [
            self._call(step, freed, fused, own.get(name_of(step))) for step, freed in program.walk()
        ]

    def _call(
        self,
        step: Step,
        freed: Sequence[str],
        fused: Mapping[str, FusedCall],
        instead: NodeCall | None,
    ) -> _Call:
        places = self.places
        frees = tuple(places[name] for name in freed)
        writes = places[name_of(step)]
        if isinstance(step, Fused):
            call = fused[name_of(step)]
            if step.residual is None:
                return _Call(
                    partial(_alone, call), True, (places[step.source.name],), writes, frees
                )
            two = places[step.source.name], places[step.residual.name]
            return _Call(call, True, two, writes, frees)
        function, nodes = _spread(step, instead)
        if _widens(step):
            function = partial(_wide, function, self._others)
        reads = tuple(places[node.name] for node in nodes)
        return _Call(function, instead is not None, reads, writes, frees)

    def begin(self, inputs: Sequence[Tensor]) -> list[Any]:
        """Return the values, by their places, before the first step.

        Args:
            inputs: the tensors that the module is called with; none where it is not to begin with
                the first step.
        """
        held = self._base.copy()
        for at, value in zip(self._inputs, inputs, strict=bool(inputs)):
            held[at] = as_float32(value)
        return held

    def run(self, inputs: Sequence[Tensor], tile: Any = None) -> list[Tensor]:
        """Return the tensors of the module's result.

        Args:
            inputs: the tensors that it is called with.
            tile: handed to the functions that compute the steps.
        """
        return self.finish(self.begin(inputs), -1, tile)

    def finish(self, held: list[Any], after: int, tile: Any = None) -> list[Tensor]:
        """Return the tensors of the module's result, from the values behind a step.

        Args:
            held: the values by their places; those that are read no more are let go.
            after: the position of the step; -1 for the beginning.
            tile: as in `run`.
        """
        for function, takes_tile, reads, writes, frees in self._calls[after + 1 :]:
            given = [held[at] for at in reads]
            held[writes] = function(tile, *given) if takes_tile else function(*given)
            for at in frees:
                held[at] = None
        return [held[at] for at in self._outputs]

    def go_on(self, held: list[Any], after: int, tile: Any = None) -> Iterator[Step]:
        """Compute the steps behind one, and yield each when its value is known.

        Args:
            held: the values by their places; it is given those of the steps, and loses none.
            after: the position of the step; -1 for the beginning.
            tile: as in `run`.
        """
        for at in range(after + 1, len(self._calls)):
            function, takes_tile, reads, writes, _ = self._calls[at]
            given = [held[place] for place in reads]
            held[writes] = function(tile, *given) if takes_tile else function(*given)
            yield self.program.steps[at]

    def results(self, held: Sequence[Any]) -> list[Tensor]:
        """Return the tensors of the module's result, when all steps are done."""
        return [held[at] for at in self._outputs]


def storages(values: Iterable[Any]) -> frozenset[int]:
    """Return where the memory of some values begins, of those that are tensors."""
    tensors = (value for value in values if isinstance(value, Tensor))
    return frozenset(
        value.untyped_storage().data_ptr() for value in tensors if value.layout == torch.strided
    )


def own(result: Tensor, others: frozenset[int]) -> Tensor:
    """Return a result in memory of its own: a forward may hand on what is not.

    Args:
        result: of a run.
        others: what `storages` returned of what is somebody else's.
    """
    return result.clone() if result.untyped_storage().data_ptr() in others else result


def _alone(call: FusedCall, tile: Any, x: Tensor) -> Tensor:
    return call(tile, x, None)


def _spread(node: fx.Node, instead: NodeCall | None) -> tuple[Callable[..., Any], list[fx.Node]]:
    """Return what computes a node, called with the values of the nodes that it reads."""
    target: Callable[..., Any] = instead or node.target  # type: ignore[assignment]
    if node.target in _PLAIN_CONVOLUTIONS:
        target = partial(_in_plain_layout, target)
    leaves, spec = _pytree.tree_flatten((tuple(node.args), dict(node.kwargs)))
    at = [place for place, leaf in enumerate(leaves) if isinstance(leaf, fx.Node)]
    nodes = [leaves[place] for place in at]
    if not node.kwargs and all(arg is one for arg, one in zip(node.args, nodes, strict=False)):
        rest = node.args[len(nodes) :]
        return (partial(_with_rest, target, rest) if rest else target), nodes
    blank = [None if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
    return partial(_with_tree, target, blank, at, spec, instead is not None), nodes


def _with_rest(target: Callable[..., Any], rest: tuple[Any, ...], *values: Any) -> Any:
    return target(*values, *rest)


def _with_tree(
    target: Callable[..., Any],
    blank: list[Any],
    at: list[int],
    spec: _pytree.TreeSpec,
    takes_tile: bool,
    *values: Any,
) -> Any:
    tile, given = (values[:1], values[1:]) if takes_tile else ((), values)
    leaves = blank.copy()
    for place, value in zip(at, given, strict=True):
        leaves[place] = value
    args, kwargs = _pytree.tree_unflatten(leaves, spec)
    return target(*tile, *args, **kwargs)


def _in_plain_layout(target: Callable[..., Any], *args: Any) -> Any:
    return target(*(in_plain_layout(a) if isinstance(a, Tensor) else a for a in args))


def _widens(node: fx.Node) -> bool:
    """Return whether a node's arguments are made float32 before it sees them."""
    return node.target not in _ANY_DTYPE and (not _is_view(node) or node.target in _READS_BITS)


_NARROW = frozenset({torch.bfloat16, torch.float16})
_DOUBLE = frozenset({torch.float64})


def _wide(function: Callable[..., Any], others: frozenset[torch.dtype], *values: Any) -> Any:
    return function(
        *(
            value.float() if isinstance(value, Tensor) and value.dtype in others else value
            for value in values
        )
    )


def _is_view(node: fx.Node) -> bool:
    """Return whether a value may be in the memory of what it is made from."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.target is operator.getitem
    return any(value.alias_info for value in schema.returns)


def in_plain_layout(value: Tensor) -> Tensor:
    """Return a tensor whose numbers lie in the order of its axes, and no other way.

    oneDNN's kernels for channels-last layout go wrong for some geometries, and of one channel
    or one pixel a tensor can be in both layouts' strides; hence flat in between.
    """
    return value.contiguous().flatten().view(value.shape)
