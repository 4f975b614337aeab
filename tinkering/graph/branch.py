"""Where members leave the path that they share: what the steps behind it read of those before."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tinkering.graph.batch_axis import count_of, place_images
from tinkering.graph.program import Fused, Program
from tinkering.graph.runner import Runner, storages


@dataclass(frozen=True)
class Branch:
    """What the steps behind one read: values that are the same for all who go on from there."""

    position: int
    """Of the last step of the shared path; -1 where it has none."""
    needed: tuple[fx.Node, ...]
    """The values that later steps read."""
    batched: frozenset[fx.Node]
    """Those of them that have an axis of examples, the first."""
    counts: frozenset[fx.Node]
    """Those of them that are a number, which depends on how many examples there are."""
    overwritten: frozenset[fx.Node]
    """Those of them in whose memory a later step may write its result."""

    def values(self, runner: Runner, held: Sequence[Any]) -> dict[fx.Node, Any]:
        """Return the values that are needed, from a runner's behind the last shared step."""
        return {node: held[runner.places[node.name]] for node in self.needed}

    def passed(self, runner: Runner, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
        """Return the values that are needed, after running the shared steps on some inputs."""
        held = runner.begin(inputs)
        for _ in zip(range(self.position + 1), runner.go_on(held, -1), strict=False):
            pass
        return self.values(runner, held)

    def entered(
        self,
        runner: Runner,
        values: dict[fx.Node, Any],
        spread: Callable[[Tensor], Tensor],
        examples: int,
    ) -> list[Any]:
        """Return what a runner holds behind the shared steps, for all who go on from there.

        Args:
            runner: that goes on.
            values: what `values` returned, perhaps of another runner.
            spread: makes a value for all of them, along the first axis, of the shared one.
            examples: of all of them together.
        """
        held = runner.begin([])
        for node, value in values.items():
            if node in self.counts:
                value = count_of(node, runner.program.captured.examples, examples)
            elif node in self.batched:
                shared, value = value, spread(value)
                if node in self.overwritten and storages([shared]) == storages([value]):
                    value = value.clone()
            held[runner.places[node.name]] = value
        return held


def branch_at(program: Program, position: int) -> Branch | None:
    """Return the branch behind a step; None where examples are not along a value's first axis."""
    images = program.captured.examples
    depends = {node for node in program.inputs if node.name in program.captured.batched}
    for node in program.captured.graph.nodes:
        if any(source in depends for source in node.all_input_nodes):
            depends.add(node)
    needed = tuple(program.needed_after(position))
    counts = frozenset(node for node in needed if isinstance(node.meta["val"], torch.SymInt))
    batched = depends & set(needed) - counts
    for node in batched:
        placement = place_images(node, images)
        if placement is None or not placement.is_first:
            return None
    residuals = {step.residual for step in program.fused if program.may_overwrite_residual(step)}
    overwritten = frozenset(node for node in needed if node in residuals)
    return Branch(position, needed, frozenset(batched), counts, overwritten)


def shared_branch(program: Program, differing: Collection[str]) -> Branch | None:
    """Return where members part that differ in some parameters or buffers only.

    Args:
        program: of the module.
        differing: names of the parameters and buffers that members have values of their own for.

    Returns:
        None where no layer comes before that, or members cannot go on from there.
    """
    names = program.captured.parameters | program.captured.buffers
    own = {node for node in program.captured.graph.nodes if names.get(node.name) in differing}
    for node in program.captured.graph.nodes:
        if any(source in own for source in node.all_input_nodes):
            own.add(node)
    position = -1
    for at, step in enumerate(program.steps):
        if (step.last if isinstance(step, Fused) else step) in own:
            break
        position = at
    shared = program.steps[: position + 1]
    if program.captured.coupled or not any(isinstance(step, Fused) for step in shared):
        return None
    return branch_at(program, position)


def for_each_example(value: Tensor, times: int) -> Tensor:
    """Return every example's value some times, one after the other: ``a a b b``."""
    first = pixels_first(value)
    many = first.repeat_interleave(times, 0)
    return many if first is value else many.permute(0, 3, 1, 2)


def for_each_member(value: Tensor, members: int) -> Tensor:
    """Return the values of all examples for each member: ``a b a b``."""
    first = pixels_first(value)
    many = first.expand(members, *first.shape).flatten(0, 1)
    return many if first is value else many.permute(0, 3, 1, 2)


def pixels_first(value: Tensor) -> Tensor:
    """Return a value with channels last, where its memory has them so; else as it is."""
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        return value.permute(0, 2, 3, 1)
    return value
