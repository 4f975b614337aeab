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

from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, NoReturn

import torch
from torch import Tensor, fx

from tinkering.engines.activation_plan import REASON, make_activation_plan
from tinkering.engines.activation_targets import Target, find_targets
from tinkering.engines.evaluation import Evaluation, merged
from tinkering.engines.job import Job, widened
from tinkering.engines.planning import Plan
from tinkering.engines.rating import Rater, rated
from tinkering.engines.thread_pool import map_in_order
from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.graph.activation import rectifier_of
from tinkering.graph.branch import for_each_example, pixels_first
from tinkering.graph.program import Fused, Program, name_of
from tinkering.graph.runner import Runner
from tinkering.graph.signature import Batch
from tinkering.layers.centre import Values
from tinkering.layers.unperturbed import UnperturbedLayers
from tinkering.population import PerturbedActivations

_IMAGES_A_SUM = 16
"""Few, so that there are parts for several workers; enough for a product of matrices."""


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
        steps = Program(job.network.steps(name).captured, rectifier_of)
        if job.network.coupled:
            operation = "its forward (the examples of a batch are not independent)"
            raise UnsupportedLayerError(name, operation)
        if population.blur and len(steps.outputs) != 1:
            advice = "Noise is put on logits, and the module returns more than a tensor."
            raise ArgumentError("blur", "0", population.blur, advice)
        if not job.batch.is_shared:
            advice = "Every member is the centre on a single example."
            raise ArgumentError("in_dims", "(0, None) for perturbed activations", "others", advice)
        self.job, self._population, self._steps = job, population, steps
        state = job.own | dict(population.params) | dict(population.buffers)
        self._values = steps.captured.values(state)
        self._targets = find_targets(steps, population.params, self._values)
        self._layers = UnperturbedLayers(steps, self._values, job.dtype)

    def plan(self, batch: Batch, budget: int | None, keeps_outputs: bool, may_keep: bool) -> Plan:
        """Return how a batch would be evaluated; nothing is kept of it."""
        del keeps_outputs, may_keep
        many = batch.examples
        return make_activation_plan(self.job, self._population, self._targets, many, budget)

    def outputs(self, batch: Batch, plan: Plan) -> NoReturn:
        """Refuse: what members return is rated at once.

        Raises:
            ArgumentError: (a ``ValueError``) always.
        """
        del batch, plan
        raise ArgumentError(
            "population",
            "members that see the whole batch",
            type(self._population).__name__,
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
        run = _Run(self._steps, self._values, self._targets, self._population, rater, self._layers)
        tiles = [
            [
                slice(at, min(at + plan.tiles.images, part.stop))
                for at in range(part.start, part.stop, plan.tiles.images)
            ]
            for part in image_parts(batch.examples)
        ]
        threads = plan.tiles.threads
        one = partial(_tile, run, batch)
        done = iter(list(map_in_order(one, chain.from_iterable(tiles), threads)))
        portions = [list(islice(done, len(part))) for part in tiles]
        evaluated = partial(_evaluation, self._targets, self._population)
        return merged(list(map_in_order(evaluated, portions, threads)))


def _tile(run: _Run, batch: Batch, part: slice) -> list[_Portion]:
    return run(part, batch.narrowed(part))


def image_parts(images: int) -> list[slice]:
    """Return the images whose estimates are summed at a time, before those of all are.

    They depend on nothing but the number of images, so a sum has the same bits however many
    threads and processes take part.

    Example:
        >>> image_parts(20)
        [slice(0, 16, None), slice(16, 20, None)]
    """
    starts = range(0, images, _IMAGES_A_SUM)
    return [slice(at, min(at + _IMAGES_A_SUM, images)) for at in starts]


def _evaluation(
    targets: list[Target], population: PerturbedActivations, portions: list[list[_Portion]]
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
        for name, value in target.to_parameters(given, change).items():
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


@dataclass(frozen=True)
class _Passed:
    """What the centre has on its way past a layer."""

    target: Target
    result: Tensor
    """Of the layer, ``[images, ...]``."""
    given: dict[str, Tensor]
    """As in `_Portion`."""
    needed: dict[fx.Node, Any]
    """What later steps read."""


class _Run:
    """Evaluates some images' members at every layer."""

    def __init__(
        self,
        steps: Program,
        values: Values,
        targets: list[Target],
        population: PerturbedActivations,
        rater: Rater,
        layers: UnperturbedLayers,
    ) -> None:
        self._steps, self._targets = steps, targets
        self._population, self._rater = population, rater
        self._centre = Runner(steps, values, layers.keeping)
        self._members = Runner(steps, values, layers.calls)

    def __call__(self, part: slice, batch: Batch) -> list[_Portion]:
        runner, places = self._centre, self._centre.places
        known = runner.begin(batch.of_member(0))
        sources = {one.step.last: one.step.source for t in self._targets for one in t.sharing}
        targets = {target.step: target for target in self._targets}
        given: dict[str, Tensor] = {}
        passed = []

        for step in runner.go_on(known, -1):
            if isinstance(step, Fused) and step.last in sources:
                given[name_of(step)] = known[places[step.source.name]]
            if isinstance(step, Fused) and step in targets:
                target = targets[step]
                inputs = {name_of(one.step): given[name_of(one.step)] for one in target.sharing}
                needed = target.branch.values(runner, known)
                passed.append(_Passed(target, known[places[name_of(step)]], inputs, needed))
        first = self._population.first + part.start
        blur = self._blur(runner.results(known)[0], first)
        return [self._at(centre, part, blur) for centre in passed]

    def _blur(self, logits: Tensor, first: int) -> Tensor:
        """Return the noise under which members' logits are read, ``[images, readings, ...]``."""
        population, shape = self._population, logits.shape[1:]
        if not population.blur:  # all readings would be the same
            return torch.zeros(()).expand(len(logits), 1, *shape)
        rows, count = range(first, first + len(logits)), population.readings * shape.numel()
        noise = population.blur * population.stream.normals("logits:readings", rows, count)
        return noise.view(len(logits), population.readings, *shape)

    def _at(self, centre: _Passed, part: slice, blur: Tensor) -> _Portion:
        """Perturb one layer's result, and let every member go on from there."""
        members, stream = self._population.samples, self._population.stream
        target, result = centre.target, centre.result
        rectified = target.step.activation is not None
        flat = pixels_first(result).flatten(1)
        amount = self._population.sigma * _size(flat.float(), rectified)
        mask = (flat > 0) if rectified else torch.ones_like(flat, dtype=torch.bool)
        first, count = self._population.first + part.start, part.stop - part.start
        rows = range(first * members, (first + count) * members)
        signs = stream.signs(target.name, rows, flat.shape[1]).to(flat.dtype)
        signs = signs.view(count, members, -1)
        sized = (mask * amount).to(flat.dtype)
        moved = torch.addcmul(flat.unsqueeze(1), sized.unsqueeze(1), signs)
        results = self._rest(centre, _pixels_last(moved.flatten(0, 1), result))
        worth = self._rated(results, part, blur).view(count, members)
        weights = self._population.utilities(worth).to(signs.dtype)
        change = torch.bmm(weights.unsqueeze(1), signs).squeeze(1).float()
        change = torch.where(mask, change / (members * amount), 0.0)
        return _Portion(worth, _pixels_last(change, result), centre.given)

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

    def _rest(self, centre: _Passed, moved: Tensor) -> list[Tensor]:
        """Return what the module makes of members whose layer's result is `moved`."""
        target, runner = centre.target, self._members
        repeated = partial(for_each_example, times=self._population.samples)
        known = target.branch.entered(runner, centre.needed, repeated, len(moved))
        known[runner.places[name_of(target.step)]] = moved
        return runner.finish(known, target.branch.position)


def _size(flat: Tensor, rectified: bool) -> Tensor:
    """Return how large each image's result is, ``[images, 1]``: noise is a part of it.

    The root mean square. What all numbers of a result have in common does not count where no
    rectifier follows, as it says nothing in logits: it may drift far from zero, and noise of that
    size would drown what they differ in. A result of zeros has size 1.
    """
    spread = flat if rectified or flat.shape[1] == 1 else flat - flat.mean(1, keepdim=True)
    size = spread.square().mean(1, keepdim=True).sqrt()
    return torch.where(size > 0, size, 1.0)


def _pixels_last(flat: Tensor, like: Tensor) -> Tensor:
    """Return numbers in the order of `pixels_first` in the shape of a value."""
    value = flat.reshape(-1, *pixels_first(like).shape[1:])
    return value if pixels_first(like) is like else value.permute(0, 3, 1, 2)
