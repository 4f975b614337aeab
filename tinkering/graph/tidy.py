"""A captured graph, rewritten so that one way of saying a thing is left of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten


def tidy(graph: fx.Graph, results: Sequence[str]) -> None:
    """Rewrite a graph in place; it computes the same.

    - It returns the tensors of the module's result, and not what a forward wrote into its inputs.
    - Batch norms are ``aten.batch_norm`` whichever way they were captured.
    - Views may be of values in any layout, as layers here make others than the module's.
    - ``squeeze`` leaves the axis of the images, also where there is one image.
    - Copies are left out, since nothing is written to, but for those that lay numbers out anew.

    Args:
        graph: of operations that write into none of their arguments.
        results: names of the tensors that the module returns.
    """
    (output,) = (node for node in graph.nodes if node.op == "output")
    made = {node.name: node for node in output.args[0] if isinstance(node, fx.Node)}
    output.args = (tuple(made[name] for name in results),)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        rewrite = _REWRITES.get(node.target)
        if rewrite is not None:
            rewrite(graph, node)
    graph.eliminate_dead_code()


def _batch_norm(graph: fx.Graph, norm: fx.Node) -> None:
    x, weight, bias, *rest = norm.args
    if norm.target is _aten._native_batch_norm_legit_no_training.default:
        mean, variance, momentum, eps = rest
        training: Any = False
    else:
        mean = variance = None
        training, momentum, eps = rest
    _instead(
        graph,
        _first_of(norm),
        _aten.batch_norm.default,
        (x, weight, bias, mean, variance, training, momentum, eps, False),
    )


def _first_of(node: fx.Node) -> fx.Node:
    """Return the first of an operation's results, which is the only one that is read."""
    (first,) = (user for user in node.users if user.args[1] == 0)
    return first


def _view(graph: fx.Graph, node: fx.Node) -> None:
    _instead(graph, node, _aten.reshape.default, node.args)


def _squeeze(graph: fx.Graph, node: fx.Node) -> None:
    source, *axes = node.args
    sizes = source.meta["val"].shape  # type: ignore[union-attr]
    given: Any = axes[0] if axes else list(range(len(sizes)))
    given = [given] if isinstance(given, int) else given
    ones = [axis for axis in given if isinstance(sizes[axis], int) and sizes[axis] == 1]
    _instead(graph, node, _aten.squeeze.dims, (source, ones))


def _strided(graph: fx.Graph, node: fx.Node) -> None:
    """Strides count in the memory of a value as the module would have made it."""
    source = node.all_input_nodes[0]
    if source.meta["val"].is_contiguous():
        with graph.inserting_before(node):
            dense = graph.call_function(_aten.contiguous.default, (source,))
        dense.meta = dict(source.meta)
        node.replace_input_with(source, dense)


def _nothing(graph: fx.Graph, node: fx.Node) -> None:
    graph.erase_node(node)


def _copy(graph: fx.Graph, node: fx.Node) -> None:
    source = node.all_input_nodes[0]
    if str(source.meta["val"].stride()) == str(node.meta["val"].stride()):
        node.replace_all_uses_with(source)
    elif node.meta["val"].is_contiguous():
        _instead(graph, node, _aten.contiguous.default, (source,))


def _instead(
    graph: fx.Graph, node: fx.Node, target: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    with graph.inserting_before(node):
        other = graph.call_function(target, args)
    other.meta = dict(node.meta)
    node.replace_all_uses_with(other)


_REWRITES: dict[Any, Callable[[fx.Graph, fx.Node], None]] = {
    _aten._assert_tensor_metadata.default: _nothing,
    _aten._native_batch_norm_legit_no_training.default: _batch_norm,
    _aten._native_batch_norm_legit.no_stats: _batch_norm,
    _aten._unsafe_view.default: _view,
    _aten.as_strided.default: _strided,
    _aten.clone.default: _copy,
    _aten.squeeze.default: _squeeze,
    _aten.squeeze.dim: _squeeze,
    _aten.squeeze.dims: _squeeze,
    _aten.view.default: _view,
    _aten.view.dtype: _strided,
    _aten.view_as_complex.default: _strided,
}
