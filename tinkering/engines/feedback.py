"""Engine: how noise on layers moves the outputs is learned, and carries the fitness back.

What a layer's noise does to the outputs of an image is their Jacobian, seen through noise.
Its average over images, where rectifiers are open, changes slowly, so it is known from the
members of many generations. How fitness changes with the outputs is found by noise on those,
which costs no forward pass. The product of both estimates how fitness changes with the layer's
result, and with the layer's input how it changes with the weights. No derivative is taken of the
module or of the fitness.

Feedback weights that are learned by node perturbation: Lansdell, Prakash and Kording 2020,
"Learning to solve the credit assignment problem" (arXiv 1906.00889).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from tinkering.engines.activation_targets import Target
from tinkering.engines.activations import Activations
from tinkering.engines.branches import Branches, Passed, size_of_result
from tinkering.engines.cells import Cells, cells_of
from tinkering.engines.evaluation import Evaluation, merged
from tinkering.engines.job import Job, widened
from tinkering.engines.planning import Plan
from tinkering.engines.rating import Rater, rated
from tinkering.engines.thread_pool import map_in_order
from tinkering.errors import ArgumentError
from tinkering.graph.signature import Batch
from tinkering.population import FedBackActivations

_LEAST = 0.3
"""Of the largest mean square of a cell's noise, that any counts as having: what a cell that is
seldom open does to the outputs is known badly, and is taken to be less."""


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
        self._fed_back = population
        if len(self._steps.outputs) != 1:
            needed = "a module that returns one tensor, [batch, ...]"
            raise ArgumentError("model", needed, f"one that returns {len(self._steps.outputs)}")

    def evaluate(self, batch: Batch, rater: Rater, plan: Plan) -> Evaluation:
        """Return what the examples were worth, a gradient estimate, and what noise did.

        Args:
            batch: the examples.
            rater: of a member, which sees a single example.
            plan: how many examples at a time.
        """
        run = _Run(self._branches, self._fed_back, rater)
        portions = self._portions(
            lambda part: run(part, batch.narrowed(part)), batch.examples, plan
        )
        evaluated = partial(_evaluation, self._targets, self._fed_back)
        return merged(list(map_in_order(evaluated, portions, plan.tiles.threads)))


@dataclass(frozen=True)
class _AtLayer:
    """What some images came to at one layer."""

    change: Tensor
    """``[images, *result]``: how each image's fitness changes with the layer's result."""
    given: dict[str, Tensor]
    """The inputs of the layer and of what shares its result, by the name of what they make."""
    effect: Tensor
    """``[outputs + 1, cells]``, a sum over members."""


@dataclass(frozen=True)
class _Portion:
    """What some images came to."""

    fitness: Tensor
    """``[images]``"""
    layers: list[_AtLayer]


def _evaluation(
    targets: list[Target], population: FedBackActivations, portions: list[_Portion]
) -> Evaluation:
    """Return what a part's examples came to."""
    fitness = torch.cat([portion.fitness for portion in portions])
    examples = len(fitness)
    gradient = {name: torch.zeros_like(value) for name, value in population.params.items()}
    effects, members = {}, examples * population.samples / population.every
    for at, target in enumerate(targets):
        layers = [portion.layers[at] for portion in portions]
        change = torch.cat([layer.change for layer in layers]) / examples
        given = {name: torch.cat([one.given[name] for one in layers]) for name in layers[0].given}
        for name, value in target.to_parameters(given, change, population.renewed).items():
            gradient[name] += value.to(gradient[name])
        effects[target.name] = torch.stack([layer.effect for layer in layers]).sum(0) / members
    forwards = examples + members * sum(target.cost for target in targets)
    evaluations = examples + round(members * len(targets))
    return Evaluation(fitness, gradient, forwards, evaluations, effects)


class _Run:
    """Evaluates some images, and their members at every layer."""

    def __init__(self, branches: Branches, population: FedBackActivations, rater: Rater) -> None:
        self._branches, self._population, self._rater = branches, population, rater

    def __call__(self, part: slice, batch: Batch) -> _Portion:
        passed, (result,) = self._branches.centre(batch.of_member(0))
        outputs = widened(result)
        fitness, slope = self._slope(outputs, part)
        layers = [
            self._at(centre, at, outputs.flatten(1), slope, part)
            for at, centre in enumerate(passed)
        ]
        return _Portion(fitness, layers)

    def _slope(self, outputs: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Return what images are worth, and how that changes with their outputs, from noise."""
        population = self._population
        flat, readings = outputs.flatten(1), population.readings
        first, numbers = population.first + part.start, flat.shape[1]
        rows = range(first, first + len(flat))
        if population.blur:
            amount = torch.full((len(flat), 1, 1), population.blur)
            noise = population.stream.normals("outputs", rows, readings * numbers)
        else:
            amount = population.sigma * size_of_result(flat, rectified=False).unsqueeze(2)
            noise = population.stream.signs("outputs", rows, readings * numbers).float()
        noise = noise.view(len(flat), readings, numbers)
        read = (flat.unsqueeze(1) + amount * noise).view(-1, 1, *outputs.shape[1:])
        targets = self._rater.targets.of_examples(part, readings, 1)
        rater = replace(self._rater, targets=targets)
        worth = rated(rater, [(slice(0, len(read)), [read])]).view(len(flat), readings)
        weights = population.utilities(worth).unsqueeze(1).to(noise)
        slope = torch.bmm(weights, noise).squeeze(1) / (readings * amount.squeeze(2))
        return _mean_of_finite(worth), slope

    def _at(self, centre: Passed, at: int, outputs: Tensor, slope: Tensor, part: slice) -> _AtLayer:
        """Carry the slope back to a layer, and let members try noise on it."""
        result, target = centre.result, centre.target
        images = result.dim() == 4
        last = result.permute(0, 2, 3, 1) if images else result
        flat = last.flatten(1)
        rectified = target.step.activation is not None
        mask = flat > 0 if rectified else torch.ones_like(flat, dtype=torch.bool)
        amount = self._population.sigma * size_of_result(flat.float(), rectified)
        cells = cells_of(result, self._population.cells)
        known = self._known(target.name, outputs.shape[1], cells)
        change = torch.where(mask, cells.spread(slope @ known), 0.0).view(last.shape)
        effect = self._effect(centre, at, cells, (flat, mask, amount), outputs, part)
        return _AtLayer(change.permute(0, 3, 1, 2) if images else change, centre.given, effect)

    def _known(self, name: str, outputs: int, cells: Cells) -> Tensor:
        """Return the average Jacobian ``[outputs, cells]``; zeros where nothing was learned."""
        learned = self._population.learned.get(name)
        if learned is None:
            return torch.zeros(outputs, cells.count)
        needed = (outputs + 1, cells.count)
        if learned.shape != needed:
            found = f"{list(learned.shape)} for {name!r}"
            raise ArgumentError("learned", f"what was learned of this network, {needed}", found)
        squares = learned[-1]
        return learned[:-1] / (squares + _LEAST * squares.max()).clamp(min=1e-30)

    def _effect(
        self,
        centre: Passed,
        at: int,
        cells: Cells,
        state: tuple[Tensor, Tensor, Tensor],
        outputs: Tensor,
        part: slice,
    ) -> Tensor:
        """Return what noise on a layer did to the outputs, a sum over members."""
        population, target = self._population, centre.target
        samples, every = population.samples, population.every
        first = population.first + part.start
        begin = -(first + at) % every  # another image at each layer
        chosen = torch.arange(begin, part.stop - part.start, every)
        if not len(chosen):
            return torch.zeros(outputs.shape[1] + 1, cells.count)
        row = (first + begin) // every * samples
        rows = range(row, row + len(chosen) * samples)
        of_members = partial(_of_members, chosen, samples)
        flat, mask, amount = map(of_members, state)
        signs = population.stream.signs(target.name, rows, cells.count).float()
        sized = (mask * amount).to(flat.dtype)
        moved = torch.addcmul(flat, sized, cells.spread(signs.to(flat.dtype)))
        if centre.result.dim() == 4:
            channels, height, width = centre.result.shape[1:]
            moved = moved.view(-1, height, width, channels).permute(0, 3, 1, 2)
        else:
            moved = moved.view(-1, *centre.result.shape[1:])
        (result,) = self._branches.members(centre, moved, of_members)
        response = (widened(result).flatten(1) - of_members(outputs)) / amount
        finite = response.isfinite().all(1, keepdim=True)
        response = torch.where(finite, response, 0.0)
        noise = signs * cells.summed(mask.float())
        return torch.cat([response.T @ noise, noise.square().sum(0, keepdim=True)])


def _of_members(chosen: Tensor, samples: int, value: Tensor) -> Tensor:
    """Return the values of some images' members, from those of all images."""
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        return _of_members(chosen, samples, value.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return value.index_select(0, chosen.repeat_interleave(samples))


def _mean_of_finite(worth: Tensor) -> Tensor:
    """Return the mean over readings, ``[images]``; NaN where none is finite."""
    return torch.where(worth.isfinite(), worth, torch.nan).nanmean(1)
