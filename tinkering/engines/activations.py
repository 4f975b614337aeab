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

from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, fx

from tinkering.engines.activation_plan import ActivationPlan
from tinkering.engines.activation_targets import Target
from tinkering.engines.evaluation import Evaluation, merged
from tinkering.engines.rating import Fitness, rated
from tinkering.engines.thread_pool import map_in_order
from tinkering.graph.program import Fused, Program, name_of
from tinkering.layers.centre import Values
from tinkering.layers.still import StillLayers
from tinkering.population import PerturbedActivations

_IMAGES_A_SUM = 16
"""Few, so that there are parts for several workers; enough for a product of matrices."""


def run(
    steps: Program,
    values: Values,
    targets: list[Target],
    population: PerturbedActivations,
    x: Tensor,
    y: Tensor,
    fitness: Fitness,
    planned: ActivationPlan,
) -> Evaluation:
    """Return what perturbed activations were worth, and a gradient estimate for the weights.

    The members are those of the first example first; those of an example layer after layer.

    Args:
        steps: of the module.
        values: its parameters and buffers, with the population's.
        targets: the layers that are perturbed.
        population: how they are.
        x: ``[examples, ...]``.
        y: labels, ``[examples]``.
        fitness: of a member, which sees a single example.
        planned: how many examples at a time.
    """
    one = _Run(steps, values, targets, population, fitness, planned.dtype)
    tiles = [
        [
            slice(at, min(at + planned.images, part.stop))
            for at in range(part.start, part.stop, planned.images)
        ]
        for part in image_parts(len(x))
    ]
    threads = planned.threads
    flat = chain.from_iterable(tiles)
    done = iter(list(map_in_order(lambda tile: one(tile, x[tile], y[tile]), flat, threads)))
    portions = [list(islice(done, len(part))) for part in tiles]
    return merged(list(map_in_order(partial(_evaluation, targets, population), portions, threads)))


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
        fitness: Fitness,
        dtype: torch.dtype,
    ) -> None:
        self._steps, self._values, self._targets = steps, values, targets
        self._population, self._fitness = population, fitness
        self._layers = StillLayers(steps, values, dtype)

    def __call__(self, part: slice, x: Tensor, y: Tensor) -> list[_Portion]:
        steps = self._steps
        known = steps.begin(x, self._values)
        sources = {one.step.last: one.step.source for t in self._targets for one in t.sharing}
        targets = {target.step: target for target in self._targets}
        given: dict[str, Tensor] = {}
        passed = []

        for step in steps.go_on(known, -1, self._layers.keep):
            if isinstance(step, Fused) and step.last in sources:
                given[name_of(step)] = known[step.source.name]
            if isinstance(step, Fused) and step in targets:
                target = targets[step]
                inputs = {name_of(one.step): given[name_of(one.step)] for one in target.sharing}
                needed = {node: known[node.name] for node in target.needed}
                passed.append(_Passed(target, known[name_of(step)], inputs, needed))
        first = self._population.first + part.start
        blur = self._blur(known[steps.output.name], first)
        return [self._at(centre, first, y, blur) for centre in passed]

    def _blur(self, logits: Tensor, first: int) -> Tensor:
        """Return the noise under which members' logits are read, ``[images, readings, ...]``."""
        population, shape = self._population, logits.shape[1:]
        if not population.blur:  # all readings would be the same
            return torch.zeros(()).expand(len(logits), 1, *shape)
        rows, count = range(first, first + len(logits)), population.readings * shape.numel()
        noise = population.blur * population.stream.normals("logits:readings", rows, count)
        return noise.view(len(logits), population.readings, *shape)

    def _at(self, centre: _Passed, first: int, y: Tensor, blur: Tensor) -> _Portion:
        """Perturb one layer's result, and let every member go on from there."""
        members, stream = self._population.samples, self._population.stream
        target, result = centre.target, centre.result
        flat = _pixels_first(result).flatten(1)
        amount = self._population.sigma * _size(flat.float(), target.step.relu)
        mask = (flat > 0) if target.step.relu else torch.ones_like(flat, dtype=torch.bool)
        rows = range(first * members, (first + len(y)) * members)
        signs = stream.signs(target.name, rows, flat.shape[1]).to(flat.dtype)
        signs = signs.view(len(y), members, -1)
        sized = (mask * amount).to(flat.dtype)
        moved = torch.addcmul(flat.unsqueeze(1), sized.unsqueeze(1), signs)
        logits = self._rest(centre, _pixels_last(moved.flatten(0, 1), result))
        labels = y.repeat_interleave(members).unsqueeze(1).expand(-1, blur.shape[1])
        read = logits.float().view(len(y), members, 1, *logits.shape[1:]) + blur.unsqueeze(1)
        all_read = [(slice(0, len(labels)), read.flatten(0, 1))]
        worth = rated(self._fitness, all_read, labels).view(len(y), members)
        weights = self._population.utilities(worth).to(signs.dtype)
        change = torch.bmm(weights.unsqueeze(1), signs).squeeze(1).float()
        change = torch.where(mask, change / (members * amount), 0.0)
        return _Portion(worth, _pixels_last(change, result), centre.given)

    def _rest(self, centre: _Passed, moved: Tensor) -> Tensor:
        """Return the logits of members whose layer's result is `moved`."""
        target = centre.target
        known: dict[str, Any] = dict(self._values)
        for node, value in centre.needed.items():
            known[node.name] = value
            if node in target.along_images:
                known[node.name] = _repeated(value, self._population.samples)
            elif node in target.counts:
                known[node.name] = target.counts[node](len(moved))
        known[name_of(target.step)] = moved
        for _ in self._steps.go_on(known, target.position, self._layers):
            pass
        logits: Tensor = known[self._steps.output.name]
        return logits


def _size(flat: Tensor, rectified: bool) -> Tensor:
    """Return how large each image's result is, ``[images, 1]``: noise is a part of it.

    The root mean square. What all numbers of a result have in common does not count where no
    rectifier follows, as it says nothing in logits: it may drift far from zero, and noise of that
    size would drown what they differ in. A result of zeros has size 1.
    """
    spread = flat if rectified or flat.shape[1] == 1 else flat - flat.mean(1, keepdim=True)
    size = spread.square().mean(1, keepdim=True).sqrt()
    return torch.where(size > 0, size, 1.0)


def _pixels_first(value: Tensor) -> Tensor:
    """Return a value with channels last, where its memory has them so; else as it is."""
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        return value.permute(0, 2, 3, 1)
    return value


def _pixels_last(flat: Tensor, like: Tensor) -> Tensor:
    """Return numbers in the order of `_pixels_first` in the shape of a value."""
    value = flat.reshape(-1, *_pixels_first(like).shape[1:])
    return value if _pixels_first(like) is like else value.permute(0, 3, 1, 2)


def _repeated(value: Tensor, times: int) -> Tensor:
    """Return every image's value for each of its members."""
    first = _pixels_first(value)
    many = first.repeat_interleave(times, 0)
    return many if first is value else many.permute(0, 3, 1, 2)
