"""Engine: members that share a centre, folded into the batch.

The module's captured graph is rewritten once for a draw of noise: every operation on a
parameter becomes its member-wise form, and a convolution takes in the norm and the
rectifier behind it. The graph then runs over any images of those members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from tinkering.errors import UnsupportedLayerError
from tinkering.evaluation.capture import Captured
from tinkering.evaluation.memberwise import (
    MemberBatchNorm,
    MemberConv2d,
    MemberLinear,
    Tile,
    Weight,
)
from tinkering.evaluation.onednn import Geometry
from tinkering.population import Draw

_aten = torch.ops.aten
# These neither mix pixels nor lose digits, so they stay in the dtype they are handed.
_POINTWISE = {_aten.relu.default, _aten.relu_.default, _aten.add.Tensor, _aten.add_.Tensor}


class FactoredForward:
    """A module's forward for the members of one draw.

    Args:
        graph: what `Rewriter` made of the module for this draw.
        draw: the members' noise.
    """

    def __init__(self, graph: fx.GraphModule, draw: Draw) -> None:
        self._graph = graph
        self._draw = draw

    def __call__(self, x: Tensor, members: slice) -> Float[Tensor, "members batch ..."]:
        """Return what some members of the draw make of their batches.

        Args:
            x: ``[members, batch, ...]``.
            members: which they are.
        """
        batch = x.shape[1]
        tile = Tile(
            self._draw.rows[members].repeat_interleave(batch),
            self._draw.signs[members].repeat_interleave(batch),
        )
        folded: Tensor = self._graph(x.flatten(0, 1), tile)
        return folded.float().view(-1, batch, *folded.shape[1:])


class Rewriter:
    """Builds the member-wise graph, node by node.

    Args:
        captured: the module's operations.
        state: the centre's parameters and buffers by name.
        draw: the members' noise; parameters that it does not name do not evolve.
        sigma: standard deviation of the perturbations.
        dtype: of the convolutions; everything else is float32.
    """

    def __init__(
        self,
        captured: Captured,
        state: Mapping[str, Tensor],
        draw: Draw,
        sigma: float,
        dtype: torch.dtype,
    ) -> None:
        self._captured = captured
        self._names = captured.parameters | captured.buffers
        self._given = {*self._names, *captured.constants}
        self._state = state
        self._sigma = torch.tensor(sigma)
        self._draw = draw
        self._dtype = dtype
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._new: dict[fx.Node, Any] = {}

    def rewrite(self) -> fx.GraphModule:
        """Return a module that is called with images and a `Tile`.

        Raises:
            UnsupportedLayerError: an evolving parameter is used in an operation that has no
                member-wise form.
        """
        nodes = list(self._captured.graph.nodes)
        (images,) = [n for n in nodes if n.op == "placeholder" and n.name not in self._given]
        self._new[images] = self._graph.placeholder("images")
        tile = self._graph.placeholder("tile")
        for node in nodes:
            self._refuse_batch_statistics(node)
        for node in nodes:
            if node in self._new or node.op == "placeholder":
                continue  # some nodes are part of the convolution before them
            if node.op == "output":
                self._graph.output(self._new[node.args[0][0]])
            elif node.target in _MEMBER_WISE and any(map(self._evolves, node.all_input_nodes)):
                self._refuse_moved_images(node, images)
                module, covered = _MEMBER_WISE[node.target](self, node)
                self._root.add_module(node.name, module)
                source = self._new[node.args[0]]
                if node.target is not _aten.conv2d.default:
                    source = self._graph.call_method("float", (source,))
                called = self._graph.call_module(node.name, (source, tile))
                self._new.update(dict.fromkeys(covered, called))
            else:
                self._refuse(node)
                self._new[node] = self._graph.node_copy(node, partial(self._plain, node))
        return fx.GraphModule(self._root, self._graph)

    def conv2d(self, node: fx.Node) -> tuple[nn.Module, list[fx.Node]]:
        """Return a convolution with the norm and the rectifier behind it, and their nodes."""
        given = _arguments(node)
        if given["groups"] != 1:
            self._refuse(node, f"conv2d with groups={given['groups']}")
        weight = self._weight(given["weight"])
        scale, shift = torch.ones(len(weight.centre)), torch.zeros(len(weight.centre))
        noise = shift.expand(self._pairs(), -1)
        if given["bias"] is not None:
            bias = self._weight(given["bias"])
            shift = bias.centre
            noise = noise if bias.noise is None else bias.noise.dense()
        covered = [node]
        norm = _only_user(node, _aten.batch_norm.default)
        if norm is not None and not self._evolves(_arguments(norm)["weight"]):
            covered.append(norm)
            scale, offset, offset_noise = self._norm(norm)
            shift = shift * scale + offset
            noise = noise * scale + offset_noise
        rectifier = _only_user(covered[-1], _aten.relu.default)
        if rectifier is not None:
            covered.append(rectifier)
        geometry = Geometry(
            tuple(given["stride"]), tuple(given["padding"]), tuple(given["dilation"])
        )
        module = MemberConv2d(
            weight, scale, shift, noise, geometry, rectifier is not None, self._dtype
        )
        return module, covered

    def linear(self, node: fx.Node) -> tuple[nn.Module, list[fx.Node]]:
        """Return a linear layer."""
        given = _arguments(node)
        bias = None if given["bias"] is None else self._weight(given["bias"])
        return MemberLinear(self._weight(given["weight"]), bias), [node]

    def batch_norm(self, node: fx.Node) -> tuple[nn.Module, list[fx.Node]]:
        """Return a norm of its own, where it could not join a convolution."""
        given = _arguments(node)
        mean, variance = (self._tensor(given[key]) for key in ("running_mean", "running_var"))
        weight, bias = self._weight(given["weight"]), self._weight(given["bias"])
        return MemberBatchNorm(mean, variance, weight, bias, given["eps"]), [node]

    def _norm(self, node: fx.Node) -> tuple[Tensor, Tensor, Tensor]:
        """Return scale and shift that a norm comes down to, and the noise of its shift."""
        given = _arguments(node)
        mean, variance = (self._tensor(given[key]) for key in ("running_mean", "running_var"))
        scale = torch.rsqrt(variance + given["eps"])
        if given["weight"] is not None:
            scale = scale * self._tensor(given["weight"])
        if given["bias"] is None:
            return scale, -mean * scale, torch.zeros(())
        bias = self._weight(given["bias"])
        noise = torch.zeros(()) if bias.noise is None else bias.noise.dense()
        return scale, bias.centre - mean * scale, noise

    def _weight(self, node: fx.Node) -> Weight:
        noise = self._draw.noise.get(self._names.get(node.name, ""))
        scaled = None if noise is None else noise.scaled(self._sigma.expand(self._pairs()))
        return Weight(self._tensor(node), scaled)

    def _tensor(self, node: fx.Node) -> Tensor:
        if node.name not in self._given:
            raise UnsupportedLayerError(node.name, "a weight that is computed in the forward")
        constant = self._captured.constants.get(node.name)
        return self._state[self._names[node.name]] if constant is None else constant

    def _pairs(self) -> int:
        return int(self._draw.rows[-1]) + 1

    def _evolves(self, node: fx.Node | None) -> bool:
        return node is not None and self._names.get(node.name) in self._draw.noise

    def _plain(self, node: fx.Node, argument: fx.Node) -> Any:
        """Return an argument of an operation that is the same for all members."""
        if argument not in self._new:  # a parameter that does not evolve, or a buffer
            self._root.register_buffer(argument.name, self._tensor(argument))
            self._new[argument] = self._graph.get_attr(argument.name)
        value = argument.meta.get("val")  # numbers such as a shape stay as they are
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        if is_float and node.target not in _POINTWISE:
            return self._graph.call_method("float", (self._new[argument],))
        return self._new[argument]

    def _refuse_batch_statistics(self, node: fx.Node) -> None:
        """Refuse a norm whose statistics would be those of all members together."""
        if node.target is _aten.batch_norm.default:
            given = _arguments(node)
            if given["training"] or given["running_mean"] is None:
                raise UnsupportedLayerError(
                    node.name, "batch_norm with the statistics of its batch, which mix the members"
                )

    def _refuse_moved_images(self, node: fx.Node, images: fx.Node) -> None:
        """Refuse an operation whose input does not have the images along its first axis."""
        # Their number is a symbol in the graph, so equal text is the same number for all x.
        along = [str(n.meta["val"].shape[0]) for n in (node.all_input_nodes[0], images)]
        if along[0] != along[1]:
            self._refuse(node, f"{node.target} on an input without the images along its first axis")

    def _refuse(self, node: fx.Node, operation: str = "") -> None:
        """Refuse what would be wrong for a population."""
        evolving = [self._names[n.name] for n in node.all_input_nodes if self._evolves(n)]
        if evolving:
            raise UnsupportedLayerError(", ".join(evolving), operation or str(node.target))


_MEMBER_WISE: dict[Any, Callable[[Rewriter, fx.Node], tuple[nn.Module, list[fx.Node]]]] = {
    _aten.conv2d.default: Rewriter.conv2d,
    _aten.linear.default: Rewriter.linear,
    _aten.batch_norm.default: Rewriter.batch_norm,
}


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Return an operation's arguments by name, with the defaults of its schema."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {a.name: value for a, value in zip(schema, node.args, strict=False)}
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
    return {**defaults, **given, **node.kwargs}


def _only_user(node: fx.Node, target: object) -> fx.Node | None:
    """Return the operation that a result goes to, if it is the only one and of this kind."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target is target else None
