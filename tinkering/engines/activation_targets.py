"""Which layers' results are perturbed, and what that tells about their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx

from tinkering.engines.memory import work_of
from tinkering.errors import UnsupportedLayerError
from tinkering.graph.batch_axis import place_images
from tinkering.graph.branch import Branch, branch_at
from tinkering.graph.program import (
    CONVOLUTIONS,
    LINEAR,
    NORM,
    Fused,
    Program,
    arguments,
    name_of,
)
from tinkering.layers.centre import Values, fold
from tinkering.layers.renewed import FixedNorm, RenewedNorm

Norm = FixedNorm | RenewedNorm
_aten = torch.ops.aten
_VIEWS = {
    _aten.reshape.default,
    _aten.view.default,
    _aten.flatten.using_ints,
    _aten.unflatten.int,
    _aten.permute.default,
    _aten.transpose.int,
    _aten.t.default,
    _aten.unsqueeze.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.contiguous.default,
    _aten.clone.default,
    _aten.alias.default,
}
"""Operations that leave every number as it is, and only say where it is."""


@dataclass(frozen=True)
class EvolvingStep:
    """A fused step's parameters that evolve, by name; None for one that does not."""

    step: Fused
    weight: str | None
    bias: str | None
    shift: str | None
    """The norm's bias."""

    def changes(self, given: Tensor, change: Tensor, norm: Norm) -> dict[str, Tensor]:
        """Return how fitness changes with each parameter.

        Args:
            given: the layer's input, ``[images, ...]``.
            change: how fitness changes with the step's result, before its rectifier.
            norm: what stands between the layer and its result.
        """
        channel = channel_of(self.step, change.dim())
        others = [axis for axis in range(change.dim()) if axis != channel]
        found = {}
        if self.shift is not None:
            found[self.shift] = change.sum(others)
        if self.weight is None and self.bias is None:
            return found
        change = norm.before(change, channel)
        if self.bias is not None:
            found[self.bias] = change.sum(others)
        if self.weight is not None:
            found[self.weight] = _weight_change(self.step, given, change)
        return found


def channel_of(step: Fused, dims: int) -> int:
    """Return the axis of a step's result that has a place for each of its outputs."""
    return dims - 1 if step.layer.target is LINEAR else 1


def _weight_change(step: Fused, given: Tensor, change: Tensor) -> Tensor:
    """Return the sum over images and pixels of change x input, in the weight's shape."""
    given = given.to(change.dtype)
    if step.layer.target is LINEAR:
        return change.flatten(0, -2).T @ given.flatten(0, -2)
    weight = step.layer.args[1]
    shape = weight.meta["val"].shape  # type: ignore[union-attr]
    walk = step.given
    # Several times faster in this layout, but for a single channel.
    images = change.dim() == 4 and given.shape[1] > 1
    layout = torch.channels_last if images else torch.contiguous_format
    result: Tensor = torch.ops.aten.convolution_backward(
        change.contiguous(memory_format=layout),
        given.contiguous(memory_format=layout),
        torch.empty(tuple(shape), dtype=change.dtype),
        None,
        walk["stride"],
        walk["padding"],
        walk["dilation"],
        False,
        [0],
        walk["groups"],
        [False, True, False],
    )[1]
    return result


@dataclass(frozen=True)
class Target:
    """A step whose result is perturbed."""

    step: Fused
    name: str
    """What its noise is called."""
    sharing: tuple[EvolvingStep, ...]
    """Its parameters, and those of steps whose results are added to it and to nothing else."""
    branch: Branch
    """Where its members part from the centre."""
    cost: float
    """Of the steps behind it, by the whole forward."""
    curve: Callable[[Tensor], Tensor] | None
    """What is applied to each number of the result, where nothing else reads it."""

    @property
    def channel(self) -> int:
        """The axis of the result that has a place for each of the layer's outputs."""
        return channel_of(self.step, self.step.last.meta["val"].dim())

    def to_parameters(
        self, given: Mapping[str, Tensor], change: Tensor, norms: Mapping[str, Norm]
    ) -> dict[str, Tensor]:
        """Return how fitness changes with each parameter.

        Args:
            given: the inputs of the steps, by the name of what they make.
            change: how fitness changes with the step's result, ``[images, ...]``.
            norms: of the steps, by the same names.
        """
        found: dict[str, Tensor] = {}
        for weights in self.sharing:
            step = name_of(weights.step)
            for name, value in weights.changes(given[step], change, norms[step]).items():
                found[name] = found[name] + value if name in found else value
        return found


def fixed_norms(steps: Program, values: Values) -> dict[str, Norm]:
    """Return what each fused step's norm multiplies by, by the name of what the step makes."""
    return {
        name_of(step): FixedNorm(
            torch.ones(()) if step.layer.target is NORM else fold(step, values).scale
        )
        for step in steps.fused
    }


def find_targets(steps: Program, evolving: Iterable[str]) -> list[Target]:
    """Return the steps that hold evolving parameters.

    Raises:
        UnsupportedLayerError: an evolving parameter is in none that can be perturbed; or where
            the images are in a value cannot be told.
    """
    held = {name_of(step): _evolving(steps, step, set(evolving)) for step in steps.fused}
    evolve = {name: weights for name, weights in held.items() if weights is not None}
    for name in evolving:
        _require_perturbed(steps, name, evolve.values())
    summands = {
        step.residual.name
        for step in steps.fused
        if step.residual is not None and name_of(step) in evolve and _is_summand(steps, step)
    } & evolve.keys()
    targets: list[Target] = []
    for position, step in enumerate(steps.steps):
        if not isinstance(step, Fused) or name_of(step) not in evolve or name_of(step) in summands:
            continue
        shares, other = [evolve[name_of(step)]], step.residual
        while other is not None and other.name in summands:
            shares.append(evolve[other.name])
            other = shares[-1].step.residual
        own = next(name for name in (shares[0].weight, shares[0].bias, shares[0].shift) if name)
        named = sum(target.name.startswith(f"{own}:result") for target in targets)
        name = f"{own}:result {named + 1}" if named else f"{own}:result"  # of a layer used again
        targets.append(_target(steps, step, position, name, tuple(shares)))
    return targets


def _require_perturbed(steps: Program, name: str, evolve: Iterable[EvolvingStep]) -> None:
    """Refuse a parameter that is anything but a weight, a bias or a shift of fused steps."""
    own = {n for n in steps.captured.graph.nodes if steps.captured.parameters.get(n.name) == name}
    held = {w.step.layer for w in evolve if name in (w.weight, w.bias)}
    held |= {w.step.norm or w.step.layer for w in evolve if name == w.shift}
    readers = {reader for node in own for reader in node.users}
    as_input = any(arguments(reader).get("input") in own for reader in readers & held)
    if not held or not readers <= held or as_input:
        advice = (
            "Weights and biases of convolutions and linear layers, and shifts of norms, evolve with"
            f" perturbed activations; leave {name!r} out, or give it Group(sigma=0.0)."
        )
        raise UnsupportedLayerError(name, "an operation whose result is not perturbed", advice)


def _is_summand(steps: Program, step: Fused) -> bool:
    """Return whether a step's residual is another step's result that nothing else reads."""
    made = {s.last: s for s in steps.fused}
    other = made.get(step.residual) if step.residual is not None else None
    return other is not None and other.activation is None and len(other.last.users) == 1


def _target(
    steps: Program, step: Fused, position: int, name: str, shares: tuple[EvolvingStep, ...]
) -> Target:
    branch = branch_at(steps, position)
    placement = place_images(step.last, steps.captured.examples)
    if branch is None or placement is None or not placement.is_first:
        operation = f"{step.layer.target} on examples that are not along axis 0"
        raise UnsupportedLayerError(name.split(":")[0], operation)
    work = [work_of(each) if isinstance(each, Fused) else 0 for each in steps.steps]
    cost = sum(work[position + 1 :]) / max(1, sum(work))
    return Target(step, name, shares, branch, cost, _curve_behind(step))


def _curve_behind(step: Fused) -> Callable[[Tensor], Tensor] | None:
    """Return what the functions of single numbers behind a step come to, as far as they follow."""
    functions, node = [], step.last
    while len(node.users) == 1:
        (reader,) = node.users
        if reader.all_input_nodes != [node]:
            break
        if torch.Tag.pointwise in getattr(reader.target, "tags", ()):
            functions.append(reader)
        elif reader.target not in _VIEWS:
            break
        node = reader
    return partial(_applied, functions) if functions else None


def _applied(functions: list[fx.Node], value: Tensor) -> Tensor:
    """Return what nodes, each of which reads a single tensor, make of a value in turn."""
    made = value
    for node in functions:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), partial(_first, made))
        made = node.target(*args, **kwargs)  # type: ignore[operator]
    return made.to(value)  # comparisons make bools


def _first(value: Tensor, node: fx.Node) -> Tensor:
    del node
    return value


def _evolving(steps: Program, step: Fused, names: set[str]) -> EvolvingStep | None:
    parameters = steps.captured.parameters

    def name(node: object) -> str | None:
        found = parameters.get(node.name) if isinstance(node, fx.Node) else None
        return found if found in names else None

    weight = bias = shift = None
    norm: fx.Node | None = step.layer
    if step.layer.target in (*CONVOLUTIONS, LINEAR):
        weight, bias = name(step.given["weight"]), name(step.given["bias"])
        norm = step.norm
    if norm is not None:
        shift = name(arguments(norm)["bias"])
    if weight is None and bias is None and shift is None:
        return None
    return EvolvingStep(step, weight, bias, shift)
