"""The centre's pass by the layers that are perturbed, and how members go on from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tinkering.engines.activation_targets import Target
from tinkering.graph.program import Fused, name_of
from tinkering.graph.runner import Runner


@dataclass(frozen=True)
class Passed:
    """What the centre has on its way past a layer."""

    target: Target
    result: Tensor
    """Of the layer, ``[images, ...]``."""
    given: dict[str, Tensor]
    """The inputs of the layer and of what shares its result, by the name of what they make."""
    needed: dict[fx.Node, Any]
    """What later steps read."""


def centre_pass(
    runner: Runner, targets: list[Target], inputs: list[Tensor], tile: Any = None
) -> tuple[list[Passed], list[Tensor]]:
    """Return what the centre has at each target, and the tensors that it returns.

    Args:
        runner: of the centre, whose steps keep their values.
        targets: the layers that are perturbed.
        inputs: of some images.
        tile: handed to the functions that compute the steps.
    """
    known, places = runner.begin(inputs), runner.places
    sources = {one.step.last: one.step.source for t in targets for one in t.sharing}
    by_step = {target.step: target for target in targets}
    given: dict[str, Tensor] = {}
    passed = []
    for step in runner.go_on(known, -1, tile):
        if isinstance(step, Fused) and step.last in sources:
            given[name_of(step)] = known[places[step.source.name]]
        if isinstance(step, Fused) and step in by_step:
            target = by_step[step]
            inputs_of = {name_of(one.step): given[name_of(one.step)] for one in target.sharing}
            needed = target.branch.values(runner, known)
            passed.append(Passed(target, known[places[name_of(step)]], inputs_of, needed))
    return passed, runner.results(known)


def members_pass(
    runner: Runner, centre: Passed, moved: Tensor, spread: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Return what the module makes of members whose layer's result is `moved`.

    Args:
        runner: of members, whose places are those of the centre's.
        centre: where they part from it.
        moved: ``[members, ...]``.
        spread: makes a value for all of them of the images' own.
    """
    target = centre.target
    known = target.branch.entered(runner, centre.needed, spread, len(moved))
    known[runner.places[name_of(target.step)]] = moved
    return runner.finish(known, target.branch.position)


def size_of_result(flat: Tensor, rectified: bool) -> Tensor:
    """Return how large each image's result is, ``[images, 1]``: noise is a part of it.

    The root mean square. What all numbers of a result have in common does not count where no
    rectifier follows, as it says nothing in logits: it may drift far from zero, and noise of that
    size would drown what they differ in. A result of zeros has size 1.

    Args:
        flat: ``[images, numbers]``.
        rectified: whether a rectifier made it.
    """
    spread = flat if rectified or flat.shape[1] == 1 else flat - flat.mean(1, keepdim=True)
    size = spread.square().mean(1, keepdim=True).sqrt()
    return torch.where(size > 0, size, 1.0)


def told_alone(
    told: Tensor, change: Tensor, given: Mapping[str, Tensor]
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return values with zeros for examples that tell nothing: 0 times what is no number is none.

    Args:
        told: ``[examples]``, whether fitness is a number.
        change: how fitness changes with a layer's result, ``[examples, ...]``.
        given: the layers' inputs, by name.
    """
    if told.all():
        return change, given

    def kept(value: Tensor) -> Tensor:
        return torch.where(told.view(-1, *[1] * (value.dim() - 1)), value, 0.0)

    return kept(change), {name: kept(value) for name, value in given.items()}


def flattened(result: Tensor, channel: int) -> Tensor:
    """Return the numbers of each image's result, ``[images, numbers]``, channels last.

    Args:
        result: ``[images, ...]``.
        channel: the axis of its channels.
    """
    return result.movedim(channel, -1).flatten(1)


def in_shape_of(result: Tensor, channel: int, flat: Tensor) -> Tensor:
    """Return numbers in the order of `flattened`, in the shape of a layer's result."""
    shape = result.movedim(channel, -1).shape[1:]
    return flat.reshape(-1, *shape).movedim(-1, channel)
