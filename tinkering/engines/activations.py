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
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from tinkering.engines.activation_plan import OutputPlan, make_output_plan
from tinkering.engines.activation_scores import OutputScores, merged
from tinkering.engines.activation_targets import Target, find_targets
from tinkering.engines.look import look
from tinkering.engines.rating import Fitness, rated
from tinkering.engines.thread_pool import map_in_order
from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.evaluation.fit import require_kinds, require_state_fits
from tinkering.evaluation.fitness import negative_cross_entropy
from tinkering.graph.program import Fused, Program, name_of
from tinkering.layers.centre import Values
from tinkering.layers.still import StillLayers
from tinkering.population.perturbed_outputs import PerturbedOutputs
from tinkering.required import require_tensor

_IMAGES_A_SUM = 16
"""Few, so that there are parts for several workers; enough for a product of matrices."""


@torch.no_grad()
def evaluate_outputs(
    model: nn.Module,
    population: PerturbedOutputs,
    x: Tensor,
    y: Tensor,
    fitness: Fitness = negative_cross_entropy,
    buffers: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    memory: int | None = None,
    planned: OutputPlan | None = None,
) -> OutputScores:
    """Return the fitness of perturbed outputs, and the way up that it tells for the weights.

    Args:
        model: the architecture, in eval mode; parameters that do not evolve are its own.
        population: the centre, and how it is perturbed.
        x: ``[images, ...]``.
        y: labels, ``[images]``.
        fitness: ``(logits [members, readings, classes], labels [members, readings]) ->
            [members]``: a member sees a single image.
        buffers: BatchNorm statistics; the model's own by default.
        dtype: of the computation: float32 or bfloat16.
        memory: bytes that it may take; half of what is free by default.
        planned: the plan for more images, of which these are a part, so that theirs has the same
            bits; `memory` does not count then. Decided here by default.

    Raises:
        ArgumentError: (a ``ValueError``) no image, labels that do not fit `x`, a centre that
            does not fit the module, a fitness that is not one number a member, or memory that
            does not suffice for one image.
        UnsupportedLayerError: the module cannot be captured, mixes the images of a batch, is
            random, or an evolving parameter is something else than the weight or bias of
            convolutions and linear layers, or the shift of norms.

    Example:
        >>> from tinkering.noise import Stream
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
        >>> centre = {name: p.detach() for name, p in model.named_parameters()}
        >>> members = PerturbedOutputs(centre, 6, 0.1, Stream(0, 0), lambda f: f - f.mean(1, True))
        >>> x, y = torch.randn(5, 8), torch.zeros(5, dtype=torch.long)
        >>> scores = evaluate_outputs(model, members, x, y)
        >>> scores.fitness.shape, scores.ascent["0.weight"].shape
        (torch.Size([60]), torch.Size([4, 8]))
    """
    require_kinds(model, population, PerturbedOutputs)
    require_tensor("x", x)
    require_tensor("y", y)
    if x.numel() == 0:
        raise ArgumentError("x", "at least one image", list(x.shape))
    if y.shape != x.shape[:1]:
        raise ArgumentError("y", f"a label for every image of x, [{len(x)}]", list(y.shape))
    if dtype not in (torch.float32, torch.bfloat16):
        raise ArgumentError("dtype", "torch.float32 or torch.bfloat16", dtype)
    require_state_fits(model, population.params, buffers or {})
    steps = _program(model, x)
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    state = {name: value.detach() for name, value in state.items()}
    values = steps.captured.values(state | dict(population.params) | dict(buffers or {}))
    targets = find_targets(steps, population.params, values)
    run = _Run(steps, values, targets, population, fitness, dtype)
    if planned is None:
        planned = make_output_plan(steps, values, targets, len(x), population, dtype, memory)
    tiles = [
        [
            slice(at, min(at + planned.images, part.stop))
            for at in range(part.start, part.stop, planned.images)
        ]
        for part in image_parts(len(x))
    ]
    threads = planned.threads
    flat = chain.from_iterable(tiles)
    done = iter(list(map_in_order(lambda tile: run(tile, x[tile], y[tile]), flat, threads)))
    portions = [list(islice(done, len(part))) for part in tiles]
    return merged(list(map_in_order(partial(_scores, targets, population), portions, threads)))


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


def _scores(
    targets: list[Target], population: PerturbedOutputs, portions: list[list[_Portion]]
) -> OutputScores:
    """Return the scores of some images from their portions, each a list over the targets."""
    ascent = {name: torch.zeros_like(value) for name, value in population.params.items()}
    images = sum(len(portion[0].fitness) for portion in portions)
    for at, target in enumerate(targets):
        change = torch.cat([portion[at].change for portion in portions]) / images
        given = {
            name: torch.cat([portion[at].given[name] for portion in portions])
            for name in portions[0][at].given
        }
        for name, value in target.to_parameters(given, change).items():
            ascent[name] += value.to(ascent[name])
    count = range(len(targets))
    by_layer = [torch.cat([portion[at].fitness for portion in portions]) for at in count]
    forwards = images * (1 + population.members * sum(target.cost for target in targets))
    return OutputScores(torch.stack(by_layer), ascent, forwards)


def plan_outputs(
    model: nn.Module,
    population: PerturbedOutputs,
    x: Tensor,
    dtype: torch.dtype = torch.float32,
    memory: int | None = None,
) -> OutputPlan:
    """Return how `evaluate_outputs` would evaluate this.

    The arguments and the errors are those of `evaluate_outputs`.
    """
    steps = _program(model, x)
    values = steps.captured.values(dict(model.named_parameters()) | dict(model.named_buffers()))
    targets = find_targets(steps, population.params, values)
    return make_output_plan(steps, values, targets, len(x), population, dtype, memory)


def count_layers(model: nn.Module, population: PerturbedOutputs, x: Tensor) -> int:
    """Return how many layers' results are perturbed.

    Args:
        model: the architecture, in eval mode.
        population: has the parameters that evolve.
        x: ``[images, ...]``, what the module takes.

    Raises:
        UnsupportedLayerError: as in `evaluate_outputs`.
    """
    steps, state = _program(model, x), dict(model.named_parameters()) | dict(model.named_buffers())
    return len(find_targets(steps, population.params, steps.captured.values(state)))


def _program(model: nn.Module, x: Tensor) -> Program:
    """Return the module's steps, or say why outputs cannot be perturbed one image at a time."""
    name, seen = type(model).__name__, look(model, x)
    # First: what is random differs between images as well.
    if seen.random:
        raise UnsupportedLayerError(name, "active dropout")
    steps = seen.steps(model)
    if seen.coupled:
        raise UnsupportedLayerError(name, "its forward (the images of a batch are not independent)")
    return steps


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
        population: PerturbedOutputs,
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
        members, stream = self._population.members, self._population.stream
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
                known[node.name] = _repeated(value, self._population.members)
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
