"""Engine: how noise on layers moves the outputs is learned, and carries the fitness back.

What a layer's noise does to the outputs of an image is their Jacobian, seen through noise.
Its average over images, where rectifiers are open, changes slowly, so it is known from the
members of many generations. How fitness changes with the outputs is found by noise on those,
which costs no forward pass. The product of both estimates how fitness changes with the layer's
result, and with the layer's input how it changes with the weights. No derivative is taken through
the module or of the fitness. Inside a layer, what its weights, its norm and its rectifier do is
known exactly, and used.

Feedback weights that are learned by node perturbation: Lansdell, Prakash and Kording 2020,
"Learning to solve the credit assignment problem" (arXiv 1906.00889).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tinkering.engines.activation_plan import make_part_plan
from tinkering.engines.activation_targets import Norm, Target, fixed_norms
from tinkering.engines.activations import Activations
from tinkering.engines.branches import (
    Passed,
    centre_pass,
    flattened,
    in_shape_of,
    members_pass,
    size_of_result,
    told_alone,
)
from tinkering.engines.cells import Cells, cells_of
from tinkering.engines.evaluation import Effect, Evaluation, merged
from tinkering.engines.job import Job, widened
from tinkering.engines.planning import Plan
from tinkering.engines.rating import Rater, rated
from tinkering.engines.thread_pool import map_in_order
from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.graph.branch import for_each_example
from tinkering.graph.program import NORM, Program, name_of
from tinkering.graph.runner import FusedCall, Runner
from tinkering.graph.signature import Batch
from tinkering.layers.renewed import RenewedLayers, norm_of, statistics_of
from tinkering.layers.unperturbed import UnperturbedLayers
from tinkering.population import FedBackActivations

_LEAST = 0.3
"""Of the largest mean square of a cell's noise, that any counts as having: what a cell that is
seldom open does to the outputs is known badly, and is taken to be less."""

_SMALLEST = 1e-3
"""Size that outputs are taken to have at least."""


class Feedback(Activations):
    """Perturbed activations whose effect on the outputs is learned: see `Activations`.

    Raises:
        UnsupportedLayerError: as for `Activations`.
        ArgumentError: (a ``ValueError``) likewise; or the module returns more than one tensor; or
            what was learned is of another network.
    """

    name = "feedback"

    def __init__(self, job: Job, population: FedBackActivations) -> None:
        super().__init__(job, population)
        self.fed_back = population
        if len(self.steps.outputs) != 1:
            needed = "a module that returns one tensor, [batch, ...]"
            raise ArgumentError("model", needed, f"one that returns {len(self.steps.outputs)}")
        if population.renewed:
            _require_fused_norms(self.steps)
        self._require_learned_here()

    def _require_learned_here(self) -> None:
        """Refuse what was learned of another network, before anything runs."""
        targets = {target.name: target for target in self.targets}
        for name, learned in self.fed_back.learned.items():
            needed, found = "layers of this network", f"{name!r:.80}"
            if name in targets:
                shape = self.learned_shape(targets[name])
                needed = f"float32 of shape {shape} for {name!r}"
                found = f"{str(learned.dtype).removeprefix('torch.')} of {list(learned.shape)}"
                if list(learned.shape) == shape and learned.dtype == torch.float32:
                    if learned.isfinite().all():
                        continue
                    needed, found = f"finite numbers for {name!r}", "others"
            raise ArgumentError("learned", needed, found)

    def learned_shape(self, target: Target) -> list[int]:
        """Return the shape of what is known of a layer, ``[outputs + 1, cells]``."""
        outputs = math.prod(self.steps.outputs[0].meta["val"].shape[1:])
        return [outputs + 1, self.cells(target).count]

    def cells(self, target: Target) -> Cells:
        """Return the cells of a layer's result."""
        return cells_of(target.step.last.meta["val"], self.fed_back.cells, target.channel)

    def plan(self, batch: Batch, budget: int | None, keeps_outputs: bool, may_keep: bool) -> Plan:
        """Return how a batch would be evaluated; nothing is kept of it."""
        del keeps_outputs, may_keep
        parts = self.fed_back.parts(batch.examples)
        if self.fed_back.renewed and parts:
            _require_a_variance(self.steps, min(part.stop - part.start for part in parts))
        known = 4 * sum(math.prod(self.learned_shape(target)) for target in self.targets)
        return make_part_plan(self.job, self.fed_back, batch.examples, budget, known)

    def evaluate(self, batch: Batch, rater: Rater, plan: Plan) -> Evaluation:
        """Return what the examples were worth, a gradient estimate, and what noise did.

        Args:
            batch: the examples.
            rater: of a member, which sees a single example.
            plan: how many parts of them at a time.
        """
        steps, values, dtype = self.steps, self.values, self.job.dtype
        fixed = None if self.fed_back.renewed else UnperturbedLayers(steps, values, dtype)
        calls: Mapping[str, FusedCall] = (
            RenewedLayers(steps, values, dtype).calls if fixed is None else fixed.keeping
        )
        centre = Runner(steps, values, calls)
        members = None if fixed is None else Runner(steps, values, fixed.calls)
        norms = fixed_norms(steps, values)

        def one(part: slice) -> Evaluation:
            run = _Part(self, centre, members, norms, part)
            return run(batch.narrowed(part), rater)

        parts = self.fed_back.parts(batch.examples)
        return merged(list(map_in_order(one, parts, plan.tiles.threads)))

    def members(self, norms: Mapping[str, Norm], first: Passed) -> Runner:
        """Return what runs members from a layer on, with the statistics that norms had."""
        steps = self.steps
        values = {**self.values, **statistics_of(steps, norms, self.values)}
        later = [
            step for step in steps.fused if step in steps.steps[first.target.branch.position :]
        ]
        layers = UnperturbedLayers(steps, values, self.job.dtype, later)
        calls = dict.fromkeys(map(name_of, steps.fused), _never) | layers.calls
        return Runner(steps, values, calls)


def _require_fused_norms(steps: Program) -> None:
    """Refuse norms whose statistics nothing here would renew."""
    for node in steps.plain:
        if node.target is NORM:
            operation = "a batch norm whose weights are computed, under renewed statistics"
            raise UnsupportedLayerError(node.name, operation)


def _require_a_variance(steps: Program, examples: int) -> None:
    """Refuse parts of so few examples that a norm sees a single number of a channel."""
    for step in steps.fused:
        norm = norm_of(step)
        if norm is not None and examples * math.prod(norm.meta["val"].shape[2:]) < 2:
            needed = "two for each part at least, as norms with renewed statistics need a variance"
            raise ArgumentError("examples", needed, examples, "Evaluate more of them.")


def _never(tile: object, x: Tensor, residual: Tensor | None) -> Tensor:
    """Stand for a step that members do not run."""
    raise NotImplementedError


class _Part:
    """Some examples, whose estimates are summed, and whose statistics norms compute with."""

    def __init__(
        self,
        engine: Feedback,
        centre: Runner,
        members: Runner | None,
        norms: Mapping[str, Norm],
        part: slice,
    ) -> None:
        self._engine, self._centre, self._members, self._norms = engine, centre, members, norms
        self._population = engine.fed_back
        self._part = part
        self._first = self._population.first + part.start

    def __call__(self, batch: Batch, rater: Rater) -> Evaluation:
        """Return what the examples came to."""
        population, norms = self._population, dict(self._norms)
        inputs = batch.of_member(0)
        passed, (result,) = centre_pass(self._centre, self._engine.targets, inputs, norms)
        outputs = widened(result)
        fitness, slope = self._slope(outputs, rater)
        examples, outputs = len(fitness), outputs.flatten(1)
        gradient = self._gradient(passed, norms, slope / examples, fitness.isfinite())
        tried = [at for number, at in enumerate(passed) if self._tries(number)]
        effects = self._effects(tried, norms, outputs) if tried else {}
        members = examples * population.samples
        forwards = float(examples + members * sum(at.target.cost for at in tried))
        evaluations = examples + members * len(tried)
        return Evaluation(fitness, gradient, forwards, evaluations, effects)

    def _gradient(
        self, passed: list[Passed], norms: dict[str, Norm], slope: Tensor, told: Tensor
    ) -> dict[str, Tensor]:
        """Return the estimate of the examples whose fitness is a number."""
        gradient = {name: torch.zeros_like(p) for name, p in self._population.params.items()}
        if not told.any():
            return gradient
        for at in passed:
            change, given = told_alone(told, self._change(at, slope), at.given)
            for name, value in at.target.to_parameters(given, change, norms).items():
                gradient[name] += value.to(gradient[name])
        return gradient

    def _tries(self, number: int) -> bool:
        """Return whether members try the noise of a layer: another one in each part."""
        population = self._population
        part = -(-self._first // population.images_a_part)  # parts are no larger than that
        turn = number + part + int(population.stream.generation)
        return bool(turn % population.every == 0)

    def _slope(self, outputs: Tensor, rater: Rater) -> tuple[Tensor, Tensor]:
        """Return what examples are worth, and how that changes with their outputs, from noise."""
        population = self._population
        flat, readings = outputs.flatten(1), population.readings
        rows, numbers = range(self._first, self._first + len(flat)), flat.shape[1]
        if population.blur:
            amount = torch.full((len(flat), 1, 1), population.blur)
            noise = population.stream.normals("outputs", rows, readings * numbers)
        else:
            amount = population.sigma * _size_of_outputs(flat).unsqueeze(2)
            noise = population.stream.signs("outputs", rows, readings * numbers).float()
        noise = noise.view(len(flat), readings, numbers)
        read = (flat.unsqueeze(1) + amount * noise).view(-1, 1, *outputs.shape[1:])
        rater = replace(rater, targets=rater.targets.of_examples(self._part, readings, 1))
        worth = rated(rater, [(slice(0, len(read)), [read])]).view(len(flat), readings)
        weights = population.utilities(worth).unsqueeze(1).to(noise)
        slope = torch.bmm(weights, noise).squeeze(1) / (readings * amount.squeeze(2))
        return _mean_of_finite(worth), slope

    def _change(self, at: Passed, slope: Tensor) -> Tensor:
        """Return how fitness changes with a layer's result, carried back from the outputs."""
        flat = flattened(at.result, at.target.channel)
        cells = self._engine.cells(at.target)
        known = self._known(at.target.name, slope.shape[1], cells)
        change = cells.spread((slope @ known).to(flat.dtype))
        if at.target.step.activation is not None:
            change = _where_open(change, flat)
        elif at.target.curve is not None:
            amount = self._population.sigma * size_of_result(flat.float(), rectified=False)
            change = change * _steepness(at.target.curve, flat.float(), amount).to(change)
        return in_shape_of(at.result, at.target.channel, change)

    def _known(self, name: str, outputs: int, cells: Cells) -> Tensor:
        """Return the average Jacobian ``[outputs, cells]``; zeros where nothing was learned."""
        learned = self._population.learned.get(name)
        if learned is None:
            return torch.zeros(outputs, cells.count)
        squares = learned[-1]
        return learned[:-1] / (squares + _LEAST * squares.max()).clamp(min=1e-30)

    def _effects(
        self, tried: list[Passed], norms: Mapping[str, Norm], outputs: Tensor
    ) -> dict[str, Effect]:
        """Return what noise on some layers did to the outputs."""
        runner = self._members or self._engine.members(norms, tried[0])
        return {at.target.name: self._effect(at, runner, outputs) for at in tried}

    def _effect(self, at: Passed, runner: Runner, outputs: Tensor) -> Effect:
        """Return what noise on a layer did to the outputs."""
        population, samples = self._population, self._population.samples
        rectified = at.target.step.activation is not None
        spread = partial(_of_members, samples)
        flat = flattened(at.result, at.target.channel)
        amount = spread(population.sigma * size_of_result(flat.float(), rectified))
        flat = spread(flat)
        cells = self._engine.cells(at.target)
        rows = range(self._first * samples, (self._first + len(outputs)) * samples)
        signs = population.stream.signs(at.target.name, rows, cells.count).float()
        noise = cells.spread((amount * signs).to(flat.dtype))
        moved = flat + (_where_open(noise, flat) if rectified else noise)
        (result,) = members_pass(
            runner, at, in_shape_of(at.result, at.target.channel, moved), spread
        )
        response = (widened(result).flatten(1) - spread(outputs)) / amount
        finite = response.isfinite().all(1, keepdim=True)
        response = torch.where(finite, response, 0.0)
        gate = torch.ones_like(flat, dtype=torch.float32)
        if rectified:
            gate = (flat > 0).float()
        elif at.target.curve is not None:
            gate = _steepness(at.target.curve, flat.float(), amount)
        tried = torch.where(finite, signs * cells.summed(gate), 0.0)
        total = torch.cat([response.T @ tried, tried.square().sum(0, keepdim=True)])
        return Effect(total, len(rows))


def _size_of_outputs(flat: Tensor) -> Tensor:
    """Return what noise on each example's outputs is a part of, ``[examples, 1]``.

    As for a layer, but a single output is measured by how examples differ in it. Less than
    `_SMALLEST` would be lost where fitness is rounded.
    """
    if flat.shape[1] > 1:
        return size_of_result(flat, rectified=False).clamp(min=_SMALLEST)
    finite = flat[flat.isfinite()]
    spread = finite.std(correction=0) if len(finite) > 1 else flat.new_zeros(())
    size = spread if spread > 0 else flat.new_ones(())
    return size.clamp(min=_SMALLEST).expand(len(flat), 1)


def _of_members(samples: int, value: Tensor) -> Tensor:
    """Return the values of all examples' members, from those of the examples."""
    return value if samples == 1 else for_each_example(value, samples)


def _where_open(values: Tensor, result: Tensor) -> Tensor:
    """Return values where a rectifier's result is above 0, and 0 elsewhere."""
    kept: Tensor = torch.ops.aten.threshold_backward(values, result, 0)
    return kept


def _steepness(curve: Callable[[Tensor], Tensor], flat: Tensor, amount: Tensor) -> Tensor:
    """Return how far noise gets past a function of each number: a difference, not a derivative.

    What a function keeps back, as a step does that is far away, tells nothing of what is behind.
    """
    return (curve(flat + amount) - curve(flat - amount)) / (2 * amount)


def _mean_of_finite(worth: Tensor) -> Tensor:
    """Return the mean over readings, ``[examples]``; NaN where none is finite."""
    return torch.where(worth.isfinite(), worth, torch.nan).nanmean(1)
