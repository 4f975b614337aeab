"""Engine: members that are the centre, but for noise on what one layer makes of one image.

A member shares everything with the centre up to its layer, so the centre runs once and its
members go on from there: one that perturbs a late layer costs a part of a forward. What a
layer's noise was worth is an estimate of how the image's fitness changes with the layer's
result; together with the layer's input it says how fitness changes with the weights.

Node perturbation: Widrow and Lehr 1990, "30 Years of Adaptive Neural Networks"; Werfel, Xie and
Seung 2005, "Learning Curves for Stochastic Gradient Descent in Linear Feedforward Networks";
Ren et al. 2022, "Scaling Forward Gradient with Local Losses" (arXiv 2210.03310), who
call it activity perturbation. Noise where a rectifier is shut could not matter and is left out.

Noise on logits smooths a fitness that is a step, and costs no forward: Duchi, Bartlett and
Wainwright 2012, "Randomized Smoothing for Stochastic Optimization" (arXiv 1103.4296); Berthet et
al. 2020, "Learning with Differentiable Perturbed Optimizers" (arXiv 2002.08676).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tinkering.engines.activation_plan import REASON, make_activation_plan
from tinkering.engines.activation_targets import Norm, Target, find_targets, fixed_norms
from tinkering.engines.branches import (
    Passed,
    centre_pass,
    flattened,
    in_shape_of,
    members_pass,
    size_of_result,
    told_alone,
)
from tinkering.engines.evaluation import Evaluation, merged
from tinkering.engines.job import Job, widened
from tinkering.engines.planning import Plan
from tinkering.engines.rating import Rater, rated
from tinkering.engines.thread_pool import map_in_order
from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.graph.activation import rectifier_of
from tinkering.graph.branch import for_each_example
from tinkering.graph.program import Program
from tinkering.graph.runner import Runner
from tinkering.graph.signature import Batch
from tinkering.layers.unperturbed import UnperturbedLayers
from tinkering.population import PerturbedActivations

_known: WeakKeyDictionary[Program, Program] = WeakKeyDictionary()
_found: WeakKeyDictionary[Program, dict[tuple[str, ...], list[Target]]] = WeakKeyDictionary()


def _steps_of(program: Program) -> Program:
    """Return a module's steps, in which nothing but rectifiers is fused; found once."""
    if program not in _known:
        _known[program] = Program(program.captured, rectifier_of)
    return _known[program]


def _targets_of(steps: Program, evolving: tuple[str, ...]) -> list[Target]:
    """Return the layers that are perturbed; found once."""
    held = _found.setdefault(steps, {})
    if evolving not in held:
        held[evolving] = find_targets(steps, evolving)
    return held[evolving]


class Activations:
    """Perturbed activations of a module, ready to be evaluated.

    Args:
        job: what is to be evaluated.
        population: how the centre is perturbed.

    Raises:
        UnsupportedLayerError: the module cannot be captured, mixes the examples of a batch, is
            random, or an evolving parameter is something else than the weight or bias of
            convolutions and linear layers, or the shift of norms.
        ArgumentError: (a ``ValueError``) members are to see inputs of their own; or noise is to be
            put on results that are more than logits.
    """

    name, reason = "activations", REASON

    def __init__(self, job: Job, population: PerturbedActivations) -> None:
        name = type(job.source).__name__
        # First: what is random differs between examples as well.
        if job.random:
            raise UnsupportedLayerError(name, "active dropout")
        # Noise is put in front of other functions: what a result is worth is known there alone.
        steps = _steps_of(job.network.steps(name))
        if job.network.coupled:
            operation = "its forward (the examples of a batch are not independent)"
            raise UnsupportedLayerError(name, operation)
        if population.blur and len(steps.outputs) != 1:
            advice = "Noise is put on logits, and the module returns more than a tensor."
            raise ArgumentError("blur", "0", population.blur, advice)
        if not job.batch.is_shared:
            advice = "Every member is the centre on a single example."
            raise ArgumentError("in_dims", "(0, None) for perturbed activations", "others", advice)
        self.job, self.population, self.steps = job, population, steps
        state = job.own | dict(population.params) | dict(population.buffers)
        self.values = steps.captured.values(state)
        self.targets = _targets_of(steps, tuple(population.params))

    def plan(self, batch: Batch, budget: int | None, keeps_outputs: bool, may_keep: bool) -> Plan:
        """Return how a batch would be evaluated; nothing is kept of it."""
        del keeps_outputs, may_keep
        many = batch.examples
        return make_activation_plan(self.job, self.population, self.targets, many, budget)

    def outputs(self, batch: Batch, plan: Plan) -> NoReturn:
        """Refuse: what members return is rated at once.

        Raises:
            ArgumentError: (a ``ValueError``) always.
        """
        del batch, plan
        raise ArgumentError(
            "population",
            "members that see the whole batch",
            type(self.population).__name__,
            "A member of these sees a single example: evaluate rates them.",
        )

    def evaluate(self, batch: Batch, rater: Rater, plan: Plan) -> Evaluation:
        """Return what the members were worth, and a gradient estimate for the weights.

        The members are those of the first example first; those of an example layer after layer.

        Args:
            batch: the examples.
            rater: of a member, which sees a single example.
            plan: how many examples at a time.
        """
        layers = UnperturbedLayers(self.steps, self.values, self.job.dtype)
        centre = Runner(self.steps, self.values, layers.keeping)
        members = Runner(self.steps, self.values, layers.calls)
        run = _Run(centre, members, self.targets, self.population, rater)
        tiles = [
            [
                slice(at, min(at + plan.tiles.images, part.stop))
                for at in range(part.start, part.stop, plan.tiles.images)
            ]
            for part in self.population.parts(batch.examples)
        ]
        threads = plan.tiles.threads
        one = partial(_tile, run, batch)
        done = iter(list(map_in_order(one, chain.from_iterable(tiles), threads)))
        portions = [list(islice(done, len(part))) for part in tiles]
        norms = fixed_norms(self.steps, self.values)
        evaluated = partial(_evaluation, self.targets, self.population, norms)
        return merged(list(map_in_order(evaluated, portions, threads)))


def _tile(run: _Run, batch: Batch, part: slice) -> list[_Portion]:
    return run(part, batch.narrowed(part))


def _evaluation(
    targets: list[Target],
    population: PerturbedActivations,
    norms: Mapping[str, Norm],
    portions: list[list[_Portion]],
) -> Evaluation:
    """Return what some examples' members came to, from portions, each a list over the targets."""
    gradient = {name: torch.zeros_like(value) for name, value in population.params.items()}
    examples = sum(len(portion[0].fitness) for portion in portions)
    for at, target in enumerate(targets):
        change = torch.cat([portion[at].change for portion in portions]) / examples
        given = {
            name: torch.cat([portion[at].given[name] for portion in portions])
            for name in portions[0][at].given
        }
        fitness = torch.cat([portion[at].fitness for portion in portions])
        change, told = told_alone(fitness.isfinite().any(1), change, given)
        for name, value in target.to_parameters(told, change, norms).items():
            gradient[name] += value.to(gradient[name])
    by_layer = [
        torch.cat([portion[at].fitness for portion in portions]) for at in range(len(targets))
    ]
    fitness = torch.stack(by_layer, dim=1).flatten()  # [examples, layers, samples]
    forwards = examples * (1 + population.samples * sum(target.cost for target in targets))
    return Evaluation(fitness, gradient, forwards, evaluations=examples + len(fitness))


@dataclass(frozen=True)
class _Portion:
    """What some images' members at one layer came to."""

    fitness: Tensor
    """``[images, members]``"""
    change: Tensor
    """``[images, *result]``: how each image's fitness changes with the layer's result."""
    given: dict[str, Tensor]
    """The inputs of the layer and of what shares its result, by the name of what they make."""


class _Run:
    """Evaluates some images' members at every layer."""

    def __init__(
        self,
        centre: Runner,
        members: Runner,
        targets: list[Target],
        population: PerturbedActivations,
        rater: Rater,
    ) -> None:
        self._centre, self._members, self._targets = centre, members, targets
        self._population, self._rater = population, rater

    def __call__(self, part: slice, batch: Batch) -> list[_Portion]:
        passed, results = centre_pass(self._centre, self._targets, batch.of_member(0))
        blur = self._blur(results[0], self._population.first + part.start)
        return [self._at(centre, part, blur) for centre in passed]

    def _blur(self, logits: Tensor, first: int) -> Tensor:
        """Return the noise under which members' logits are read, ``[images, readings, ...]``."""
        population, shape = self._population, logits.shape[1:]
        if not population.blur:  # all readings would be the same
            return torch.zeros(()).expand(len(logits), 1, *shape)
        rows, count = range(first, first + len(logits)), population.readings * shape.numel()
        noise = population.blur * population.stream.normals("logits:readings", rows, count)
        return noise.view(len(logits), population.readings, *shape)

    def _at(self, centre: Passed, part: slice, blur: Tensor) -> _Portion:
        """Perturb one layer's result, and let every member go on from there."""
        members, stream = self._population.samples, self._population.stream
        target, result = centre.target, centre.result
        rectified = target.step.activation is not None
        flat = flattened(result, target.channel)
        amount = self._population.sigma * size_of_result(flat.float(), rectified)
        mask = (flat > 0) if rectified else torch.ones_like(flat, dtype=torch.bool)
        first, count = self._population.first + part.start, part.stop - part.start
        rows = range(first * members, (first + count) * members)
        signs = stream.signs(target.name, rows, flat.shape[1]).to(flat.dtype)
        signs = signs.view(count, members, -1)
        sized = (mask * amount).to(flat.dtype)
        moved = torch.addcmul(flat.unsqueeze(1), sized.unsqueeze(1), signs)
        results = members_pass(
            self._members,
            centre,
            in_shape_of(result, target.channel, moved.flatten(0, 1)),
            partial(for_each_example, times=members),
        )
        worth = self._rated(results, part, blur).view(count, members)
        weights = self._population.utilities(worth).to(signs.dtype)
        change = torch.bmm(weights.unsqueeze(1), signs).squeeze(1).float()
        change = torch.where(mask, change / (members * amount), 0.0)
        return _Portion(worth, in_shape_of(result, target.channel, change), centre.given)

    def _rated(self, results: list[Tensor], part: slice, blur: Tensor) -> Tensor:
        """Return what members' results are worth, which may be read several times each."""
        members, readings = self._population.samples, blur.shape[1]
        read = []
        for result in results:
            value = widened(result).view(-1, members, 1, *result.shape[1:])
            if self._population.blur:
                value = value + blur.unsqueeze(1)
            read.append(value.flatten(0, 1))
        rater = replace(
            self._rater, targets=self._rater.targets.of_examples(part, members, readings)
        )
        return rated(rater, [(slice(0, len(read[0])), read)])
