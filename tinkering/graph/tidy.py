"""A captured graph, rewritten so that one way of saying a thing is left of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from tinkering.graph.arguments import arguments

_aten = torch.ops.aten


def tidy(graph: fx.Graph, results: Sequence[str]) -> None:
    """Rewrite a graph in place; it computes the same.

    - It returns the tensors of the module's result, and not what a forward wrote into its inputs.
    - Batch norms are ``aten.batch_norm`` whichever way they were captured.
    - Convolutions are told their padding in numbers, what is uneven of it before them.
    - Views may be of values in any layout, as layers here make others than the module's.
    - ``squeeze`` leaves the axis of the images, also where there is one image.
    - Copies are left out, since nothing is written to, but for those that lay numbers out anew; and
      casts to what a value is already.

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


def _padded(graph: fx.Graph, node: fx.Node) -> None:
    """Say ``padding="same"`` and ``"valid"`` in numbers; "same" has more behind than before."""
    given = arguments(node)
    x, weight = given["input"], given["weight"]
    kernel = weight.meta["val"].shape[2:]
    stride, dilation = (_for_each(given[key], len(kernel)) for key in ("stride", "dilation"))
    same = given["padding"] == "same"
    whole = [
        spread * (taps - 1) if same else 0 for taps, spread in zip(kernel, dilation, strict=True)
    ]
    if any(total % 2 for total in whole):
        more = [amount for total in reversed(whole) for amount in (0, total % 2)]
        with graph.inserting_before(node):
            wider = graph.call_function(_aten.constant_pad_nd.default, (x, more, 0.0))
        wider.meta = {**x.meta, "val": _aten.constant_pad_nd.default(x.meta["val"], more, 0.0)}
        x = wider
    target = _IN_NUMBERS[node.target]
    padding = [total // 2 for total in whole]
    args = (x, weight, given["bias"], stride, padding, dilation, given["groups"])
    _instead(graph, node, target, args)


def _for_each(numbers: Sequence[int], axes: int) -> list[int]:
    """Return a number for each axis, of which one may stand for all."""
    return [*numbers] * axes if len(numbers) == 1 else [*numbers]


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


def _cast(graph: fx.Graph, node: fx.Node) -> None:
    """A cast to what a value is already."""
    del graph
    source = node.all_input_nodes[0]
    before, after = source.meta["val"], node.meta["val"]
    if (before.dtype, before.device) == (after.dtype, after.device):
        node.replace_all_uses_with(source)


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


_IN_NUMBERS: dict[Any, Callable[..., Any]] = {
    _aten.conv1d.padding: _aten.conv1d.default,
    _aten.conv2d.padding: _aten.conv2d.default,
    _aten.conv3d.padding: _aten.conv3d.default,
}

_REWRITES: dict[Any, Callable[[fx.Graph, fx.Node], None]] = {
    _aten._assert_tensor_metadata.default: _nothing,
    _aten._native_batch_norm_legit_no_training.default: _batch_norm,
    _aten._native_batch_norm_legit.no_stats: _batch_norm,
    **dict.fromkeys(_IN_NUMBERS, _padded),
    _aten._unsafe_view.default: _view,
    _aten.as_strided.default: _strided,
    _aten.clone.default: _copy,
    _aten._to_copy.default: _cast,
    _aten.to.dtype: _cast,
    _aten.to.dtype_layout: _cast,
    _aten.to.device: _cast,
    _aten.squeeze.default: _squeeze,
    _aten.squeeze.dim: _squeeze,
    _aten.squeeze.dims: _squeeze,
    _aten.view.default: _view,
    _aten.view.dtype: _strided,
    _aten.view_as_complex.default: _strided,
}
