"""A classification task for members whose layers' results are perturbed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, get_num_threads, nn

from tinkering.data import BatchOrder, Dataset, Shifts
from tinkering.engines.activation_plan import OutputPlan
from tinkering.engines.activation_scores import OutputScores, merged
from tinkering.engines.activations import (
    count_layers,
    evaluate_outputs,
    image_parts,
    plan_outputs,
)
from tinkering.engines.rating import Fitness
from tinkering.errors import ArgumentError
from tinkering.evaluation.fitness import negative_cross_entropy
from tinkering.population.perturbed_outputs import PerturbedOutputs
from tinkering.tasks.classification import Classification


class OutputClassification:
    """Training images for a `PerturbedOutputs`, held-out images for the centre.

    BatchNorm layers have the mean and variance that the given model has on training images, for
    good, as `Classification` has them with ``statistics="fixed"``.

    Args:
        model: the architecture, put into eval mode; parameters that do not evolve are its own.
        dataset: images and labels.
        images: training images a generation; each is perturbed at every layer.
        seed: decides which images a generation sees.
        fitness: of a member, which sees a single image.
        dtype: of the members' convolutions; held-out figures are always float32.
        memory: bytes that an evaluation may take; half of what is free by default.
        shift: pixels by which training images are moved at most, another way each time.

    Raises:
        ArgumentError: (a ``ValueError``) `images` is below 1.

    Example:
        >>> from tinkering.data import load
        >>> from tinkering.models import BasicBlock, SimpleResNet
        >>> from tinkering.strategies.output_evolution import OutputEvolution
        >>> model = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=2)
        >>> task = OutputClassification(model, load("mnist5k"), images=4)
        >>> strategy = OutputEvolution(members=2)
        >>> names = {"linear.weight", "linear.bias"}
        >>> params = {n: p for n, p in model.named_parameters() if n in names}
        >>> population = strategy.ask(strategy.init(params))
        >>> task.fitness(population, generation=0).fitness.shape, task.images(population)
        (torch.Size([8]), 12)
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        images: int = 64,
        seed: int = 0,
        fitness: Fitness = negative_cross_entropy,
        dtype: torch.dtype = torch.float32,
        memory: int | None = None,
        shift: int = 0,
    ) -> None:
        if images < 1:
            raise ArgumentError("images", "an integer of at least 1", images)
        self._model, self._train, self._fitness, self._dtype = model, dataset.train, fitness, dtype
        self._memory, self._shifts = memory, Shifts(shift, seed)
        self._order = BatchOrder(len(dataset.train), images, seed)
        self._held_out = Classification(model, dataset, seed)
        self._plans: dict[tuple[object, ...], OutputPlan] = {}

    def fitness(self, population: PerturbedOutputs, generation: int) -> OutputScores:
        """Return what the population was worth on the generation's images."""
        return self._evaluated(population, generation, slice(0, self._order.batch), None)

    def parts(self, population: PerturbedOutputs, count: int) -> list[slice]:
        """Return the images to evaluate at a time, however many portions were asked for."""
        del population, count
        return image_parts(self._order.batch)

    def part(self, population: PerturbedOutputs, generation: int, part: slice) -> OutputScores:
        """Return what the population was worth on some of the generation's images."""
        key = (population.members, population.readings, population.blur > 0, get_num_threads())
        if key not in self._plans:  # tiles are those of the whole, and with them the last bits
            self._plans[key] = self.plan(population)
        return self._evaluated(population, generation, part, self._plans[key])

    def _evaluated(
        self,
        population: PerturbedOutputs,
        generation: int,
        part: slice,
        planned: OutputPlan | None,
    ) -> OutputScores:
        order = self._order.order(generation)
        chosen, offsets = order[part], self._shifts.offsets(generation, len(order))[part]
        return evaluate_outputs(
            self._model.eval(),
            replace(population, first=part.start),
            self._shifts.moved(self._train.images(chosen), offsets, self._train.background),
            self._train.labels[chosen],
            self._fitness,
            self._held_out.buffers(population.params),
            self._dtype,
            self._memory,
            planned,
        )

    def merged(self, population: PerturbedOutputs, results: Sequence[OutputScores]) -> OutputScores:
        """Return what `fitness` would have, from that of its parts in their order."""
        del population
        return merged(results)

    def plan(self, population: PerturbedOutputs) -> OutputPlan:
        """Return how a population would be evaluated.

        Raises:
            ArgumentError: (a ``ValueError``) the memory does not suffice for any plan.
        """
        x = self._train.images(self._order.order(0))
        return plan_outputs(self._model.eval(), population, x, self._dtype, self._memory)

    def images(self, population: PerturbedOutputs) -> int:
        """Return the model-images of one evaluation: the centre's, and one for each member.

        A member counts in full, though it runs through a part of the layers.
        """
        images = self._train.images(self._order.order(0)[:1])
        layers = count_layers(self._model.eval(), population, images)
        return self._order.batch * (1 + layers * population.members)

    def measure(self, params: Mapping[str, Tensor]) -> dict[str, float]:
        """Return ``test_accuracy`` (0 to 1) and ``test_loss`` (cross-entropy, nats)."""
        return self._held_out.measure(params)

    def buffers(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the module's buffers for these parameters: what they are to be saved with."""
        return self._held_out.buffers(params)
