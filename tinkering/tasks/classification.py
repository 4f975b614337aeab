"""A classification task: training images for the members, held-out images for the centre."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor, nn
from torch.func import functional_call

from tinkering.data import BatchOrder, Dataset, Split
from tinkering.engines.evaluation import Evaluation
from tinkering.engines.planning import Plan
from tinkering.engines.rating import Fitness
from tinkering.engines.thread_pool import one_thread_inside
from tinkering.errors import ArgumentError
from tinkering.evaluation.batchnorm import reference_statistics
from tinkering.evaluation.entry import evaluate, plan_evaluation
from tinkering.evaluation.fitness import negative_cross_entropy
from tinkering.graph.signature import InDims
from tinkering.population import (
    CountedPopulation,
    FedBackActivations,
    PerturbedActivations,
    Population,
)
from tinkering.tasks.batches import Batches

_REFERENCE_IMAGES = 128
"""Training images for a generation's BatchNorm statistics, others every generation."""
_CALIBRATION_IMAGES = 2048
"""Training images for statistics that last: of the start, or of a centre that is saved."""
_IMAGES_PER_TILE = 256


class Classification:
    """Training images for members, held-out images for the centre.

    Where weights are perturbed, every group of members gets images of its own, the same for its
    members. Directions are what is scarce: a gradient estimate from N random directions among D
    parameters is worth about N / D of a step, so as many members as possible with one
    image each beat few members with many. Inside a group the images are the same, so their
    difficulty cancels out of the differences.

    Where activations are perturbed, all members have the centre's weights, and each image has
    members of its own: `batch` is how many images the centre sees, and there are no groups.

    What BatchNorm layers compute with is decided by `statistics`:

    - ``"fixed"``: the mean and variance that the given model has on training images, for
      good: a layer is then a scale and a shift that do not move, and what a member is rated
      for is what the centre gets.
    - ``"renewed"``: for `FedBackActivations`, those of the images that are evaluated together,
      up to 64 of them; the estimate leaves out what they undo. For others the centre's on
      training images drawn for the generation. Whatever a step does to a layer's mean and scale
      is undone by the next generation's statistics then, though members are rated for it: such
      a step mostly does what is undone (``docs/batchnorm.md``).

    Args:
        model: the architecture, put into eval mode; parameters that a population does not
            have are its own, the same for all members.
        dataset: images and labels.
        seed: decides which images a generation sees.
        fitness: of a member.
        dtype: of the members' convolutions; held-out figures are always float32.
        statistics: of BatchNorm layers: ``"fixed"`` or ``"renewed"``.
        group: members that see the same images, side by side in the population; None for
            all of them.
        batch: images that a member sees in a generation; where activations are perturbed, that
            the centre sees.
        memory: bytes that an evaluation may take; half of what is free by default.
        shift: pixels by which training images are moved at most, another way each time.

    Raises:
        ArgumentError: (a ``ValueError``) one of these cannot be used.

    Example:
        >>> from tinkering import EvolutionStrategy
        >>> from tinkering.data import load
        >>> from tinkering.models import BasicBlock, SimpleResNet
        >>> from tinkering.strategies.activations import Activations
        >>> from tinkering.strategies.weights import Weights
        >>> model = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=2)
        >>> task = Classification(model, load("mnist5k").subset(train=200, test=100), batch=4)
        >>> head = {n: p for n, p in model.named_parameters() if n.startswith("linear")}
        >>> for perturb in (Weights(population=6), Activations(samples=3)):
        ...     strategy = EvolutionStrategy(perturb)
        ...     task.evaluate(strategy.ask(strategy.init(head)), generation=0).fitness.shape
        torch.Size([6])
        torch.Size([12])
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        seed: int = 0,
        fitness: Fitness = negative_cross_entropy,
        dtype: torch.dtype = torch.float32,
        statistics: str = "fixed",
        group: int | None = 2,
        batch: int = 1,
        memory: int | None = None,
        shift: int = 0,
    ) -> None:
        if statistics not in ("fixed", "renewed"):
            raise ArgumentError("statistics", '"fixed" or "renewed"', repr(statistics))
        self._batches = Batches(dataset.train, seed, group, batch, shift)
        self._model = model
        self._dataset = dataset
        self._seed = seed
        self._fitness = fitness
        self._dtype = dtype
        self._memory = memory
        self._plans: dict[Hashable, Plan] = {}
        self._fixed: dict[str, Tensor] | None = None
        if statistics == "fixed":
            self._fixed = self._calibrated({n: p.detach() for n, p in model.named_parameters()})

    def evaluate(self, population: Population, generation: int) -> Evaluation:
        """Return what the population was worth on the generation's images.

        Raises:
            ArgumentError: (a ``ValueError``) the population has no whole groups, or, with
                renewed statistics, no centre.
        """
        return self._evaluated(population, generation, None)

    def parts(self, population: Population, count: int) -> list[slice]:
        """Return portions to evaluate apart: of the members, or of the images of activations.

        Portions of members are about `count` and alike in size. They end where the tiles of the
        whole population do (see `plan`), as a member's fitness may depend in its last bits on how
        many are evaluated beside it. Portions of images are those whose gradient estimates are
        summed at a time, however many were asked for.
        """
        if not isinstance(population, CountedPopulation):
            return cast(PerturbedActivations, population).parts(self._batches.batch)
        tiles = self._plan_of(population).tiles
        unit = math.lcm(tiles.members * tiles.threads, self._batches.group or 1)
        each = max(1, -(-len(population) // (unit * count))) * unit
        starts = range(0, len(population), each)
        return [slice(at, min(at + each, len(population))) for at in starts]

    def part(self, population: Population, generation: int, part: slice) -> Evaluation:
        """Return the evaluation of one of `parts`; together they have the bits of the whole."""
        return self._evaluated(population, generation, part)

    def plan(self, population: Population) -> Plan:
        """Return how a population would be evaluated.

        Raises:
            ArgumentError: (a ``ValueError``) the memory does not suffice for any plan.
        """
        held = self._with_statistics(population, 0)
        x, _, in_dims = self._images(held, 0, None)
        options: dict[str, Any] = {"dtype": self._dtype, "memory": self._memory}
        return plan_evaluation(self._model.eval(), held, x, in_dims, **options)

    @torch.no_grad()
    def _evaluated(self, population: Population, generation: int, part: slice | None) -> Evaluation:
        """Return the evaluation of a part, or of the whole."""
        planned = self._plan_of(population)
        held = self._with_statistics(population, generation)
        if part is not None and isinstance(held, CountedPopulation):
            held = held[part]
        elif part is not None:
            held = replace(cast(PerturbedActivations, held), first=part.start)
        options: dict[str, Any] = {
            "dtype": self._dtype,
            "memory": self._memory,
            "planned": planned,
        }
        with one_thread_inside():  # members are evaluated side by side, on threads of their own
            x, y, in_dims = self._images(held, generation, part)
            return evaluate(self._model.eval(), held, x, y, self._fitness, in_dims, **options)

    def _images(
        self, population: Population, generation: int, part: slice | None
    ) -> tuple[Tensor, Tensor, InDims]:
        """Return the generation's images and labels, and how members share them."""
        if not isinstance(population, CountedPopulation):
            return *self._batches.of_all(generation, part or slice(None)), (0, None)
        if self._batches.group is None:
            return *self._batches.of_all(generation), (0, None)
        return *self._batches.of_members(population, generation), (0, 0)

    def _plan_of(self, population: Population) -> Plan:
        """Return the plan of a whole population, which is that of any generation."""
        key = (population.likeness, torch.get_num_threads())
        if key not in self._plans:
            self._plans[key] = self.plan(population)
        return self._plans[key]

    def _with_statistics(self, population: Population, generation: int) -> Population:
        """Return the population with what BatchNorm layers compute with in this generation."""
        if self._fixed is not None:
            return population.with_buffers(self._fixed)
        if isinstance(population, FedBackActivations):
            return replace(population, renewed=True)
        centre = population.centre
        if centre is None:
            needed = '"fixed" for members that share no centre'
            raise ArgumentError("statistics", needed, '"renewed"')
        train = self._dataset.train
        # Their number does not depend on the population's: a few images tell little.
        reference = BatchOrder(len(train), _REFERENCE_IMAGES, self._seed).order(generation)
        images = train.images(reference)
        return population.with_buffers(reference_statistics(self._model, centre, images))

    def measure(self, params: Mapping[str, Tensor]) -> dict[str, float]:
        """Return ``test_accuracy`` (0 to 1) and ``test_loss`` (cross-entropy, nats)."""
        accuracy, loss = measure_split(
            self._model, params, self.buffers(params), self._dataset.test
        )
        return {"test_accuracy": accuracy, "test_loss": loss}

    def buffers(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the module's buffers for these parameters: what they are to be saved with."""
        return self._calibrated(params) if self._fixed is None else self._fixed

    def _calibrated(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        train = self._dataset.train
        # Drawn, since a folder's images may be sorted by class; the same ones every time.
        chosen = BatchOrder(len(train), min(len(train), _CALIBRATION_IMAGES)).order(0)
        return reference_statistics(self._model, params, train.images(chosen))


@torch.no_grad()
def measure_split(
    model: nn.Module,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    split: Split,
) -> tuple[float, float]:
    """Return accuracy (0 to 1) and mean cross-entropy (nats) of one parameter set.

    Args:
        model: the architecture; evaluated in eval mode.
        params: its parameters by name.
        buffers: its buffers by name.
        split: the images and labels.
    """
    right, loss = 0, 0.0
    for labels, logits in _logits(model, params, buffers, split):
        right += int((logits.argmax(1) == labels).sum())
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
    return right / len(split), loss / len(split)


@torch.no_grad()
def predict_split(
    model: nn.Module,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    split: Split,
) -> tuple[Int64[Tensor, " n"], Float32[Tensor, " n"]]:
    """Return the class that is said of each image, and how probable it is held to be, 0 to 1.

    Args:
        model: the architecture; evaluated in eval mode.
        params: its parameters by name.
        buffers: its buffers by name.
        split: the images.

    Example:
        >>> pixels = torch.tensor([[[0, 255]], [[255, 0]]], dtype=torch.uint8)
        >>> split = Split(pixels, torch.tensor([1, 1]), mean=0.5, std=0.1)
        >>> brighter = nn.Flatten()
        >>> predict_split(brighter, {}, {}, split)
        (tensor([1, 0]), tensor([1.0000, 1.0000]))
    """
    classes, confidences = [], []
    for _, logits in _logits(model, params, buffers, split):
        confidence, said = logits.float().softmax(1).max(1)
        classes.append(said)
        confidences.append(confidence)
    return torch.cat(classes), torch.cat(confidences)


def _logits(
    model: nn.Module, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], split: Split
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield labels and logits of some images at a time."""
    model.eval()
    for part in torch.split(torch.arange(len(split)), _IMAGES_PER_TILE):
        state = (dict(params), dict(buffers))
        yield split.labels[part], functional_call(model, state, (split.images(part),))
