"""A classification task: training images for the members, held-out images for the centre."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tinkering.data import BatchOrder, Dataset, Shifts, Split
from tinkering.engines.planning import Plan
from tinkering.engines.rating import Fitness
from tinkering.errors import ArgumentError
from tinkering.evaluation.batchnorm import reference_statistics
from tinkering.evaluation.entry import evaluate, plan_evaluation
from tinkering.evaluation.fitness import negative_cross_entropy
from tinkering.population import PerturbedPopulation

_REFERENCE_IMAGES = 128
"""Training images for a generation's BatchNorm statistics, others every generation."""
_CALIBRATION_IMAGES = 2048
"""Training images for statistics that last: of the start, or of a centre that is saved."""
_IMAGES_PER_TILE = 256


class Classification:
    """Every group of members gets training images of its own, the same for its members.

    Directions are what is scarce: a gradient estimate from N random directions among D
    parameters is worth about N / D of a step, so as many members as possible with one
    image each beat few members with many. Inside a group the images are the same, so their
    difficulty cancels out of the differences.

    What BatchNorm layers compute with is decided by `statistics`:

    - ``"fixed"``: the mean and variance that the given model has on training images, for
      good: a layer is then a scale and a shift that do not move, and what a member is rated
      for is what the centre gets.
    - ``"renewed"``: the centre's on training images drawn for the generation. Whatever a step
      does to a layer's mean and scale is undone by the next generation's statistics, though
      members are rated for it: such a step mostly does what is undone (``docs/recipes.md``).

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
        batch: images that a member sees in a generation.
        memory: bytes that an evaluation may take; half of what is free by default.
        shift: pixels by which training images are moved at most, another way each time.

    Raises:
        ArgumentError: (a ``ValueError``) one of these cannot be used.

    Example:
        >>> from tinkering.data import load
        >>> from tinkering.models import BasicBlock, SimpleResNet
        >>> model = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=2)
        >>> task = Classification(model, load("mnist5k").subset(train=200, test=100))
        >>> task.fitness(PerturbedPopulation(model, size=6, sigma=0.1), generation=0).shape
        torch.Size([6])
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
        for name, value in (("group", group), ("batch", batch)):
            if value is not None and value < 1:
                raise ArgumentError(name, "an integer of at least 1", value)
        self._model = model
        self._dataset = dataset
        self._seed = seed
        self._fitness = fitness
        self._dtype = dtype
        self._group = group
        self._batch = batch
        self._memory = memory
        self._shifts = Shifts(shift, seed)
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._fixed: dict[str, Tensor] | None = None
        if statistics == "fixed":
            self._fixed = self._calibrated({n: p.detach() for n, p in model.named_parameters()})

    def fitness(self, population: PerturbedPopulation, generation: int) -> Tensor:
        """Return the fitness of each member on the generation's images, ``[members]``.

        Raises:
            ArgumentError: (a ``ValueError``) the population has no whole groups.
        """
        return self._evaluated(population, generation, None)

    @torch.no_grad()
    def _evaluated(
        self, population: PerturbedPopulation, generation: int, planned: Plan | None
    ) -> Tensor:
        x, y = self._images(population, generation)
        return evaluate(
            self._model.eval(),
            population.with_buffers(self._statistics(population, generation)),
            x,
            y,
            self._fitness,
            in_dims=(0, None) if self._group is None else (0, 0),
            dtype=self._dtype,
            memory=self._memory,
            planned=planned,
        ).fitness

    def parts(self, population: PerturbedPopulation, count: int) -> list[slice]:
        """Return about `count` portions of a population, alike in size.

        They end where the tiles of the whole population do (see `plan`), as a member's fitness
        may depend in its last bits on how many are evaluated beside it.
        """
        tiles = self._plan_of(population).tiles
        unit = math.lcm(tiles.members * tiles.threads, self._group or 1)
        each = max(1, -(-len(population) // (unit * count))) * unit
        starts = range(0, len(population), each)
        return [slice(at, min(at + each, len(population))) for at in starts]

    def part(self, population: PerturbedPopulation, generation: int, part: slice) -> Tensor:
        """Return the fitness of some members: a member's does not depend on the others'."""
        return self._evaluated(population[part], generation, self._plan_of(population))

    def merged(self, population: PerturbedPopulation, results: Sequence[Tensor]) -> Tensor:
        """Return what `fitness` would have, from that of its parts in their order."""
        del population
        return torch.cat(list(results))

    def _plan_of(self, population: PerturbedPopulation) -> Plan:
        """Return the plan of a whole population, which is that of any generation."""
        kind, names = population.noise, tuple(population.params)
        key = (len(population), population.antithetic, kind, names, torch.get_num_threads())
        if key not in self._plans:
            self._plans[key] = self.plan(population)
        return self._plans[key]

    def plan(self, population: PerturbedPopulation) -> Plan:
        """Return how a population would be evaluated.

        Raises:
            ArgumentError: (a ``ValueError``) the memory does not suffice for any plan.
        """
        return plan_evaluation(
            self._model.eval(),
            population.with_buffers(self._statistics(population, 0)),
            self._images(population, 0)[0],
            in_dims=(0, None) if self._group is None else (0, 0),
            dtype=self._dtype,
            memory=self._memory,
        )

    def _images(self, population: PerturbedPopulation, generation: int) -> tuple[Tensor, Tensor]:
        """Return the generation's images and labels, as `evaluate` takes them."""
        train, members, group = self._dataset.train, population.members, self._group
        if group is None:
            chosen = BatchOrder(len(train), self._batch, self._seed).order(generation)
            images = self._moved(train.images(chosen), generation, slice(None), self._batch)
            return images, train.labels[chosen]
        if members.start % group or members.stop % group or population.size % group:
            raise ArgumentError(
                "population",
                f"groups of {group} members, which see the same images",
                f"members {members.start} to {members.stop - 1} of {population.size}",
            )
        # A part of a population sees the images that it would see in the whole.
        count = population.size // group * self._batch
        whole = BatchOrder(len(train), count, self._seed).order(generation)
        first, last = (at // group * self._batch for at in (members.start, members.stop))
        chosen = whole[first:last].view(-1, self._batch).repeat_interleave(group, 0)
        # Bytes are looked up once an image, and become decimals once.
        part = slice(first, last)
        images = self._moved(train.images(whole[part]), generation, part, count)
        x = images.view(-1, self._batch, *images.shape[1:]).repeat_interleave(group, 0)
        return x, train.labels[chosen]

    def _moved(self, images: Tensor, generation: int, part: slice, count: int) -> Tensor:
        """Return images of a generation, which has `count`, moved by their shifts."""
        offsets = self._shifts.offsets(generation, count)[part]
        return self._shifts.moved(images, offsets, self._dataset.train.background)

    def _statistics(self, population: PerturbedPopulation, generation: int) -> dict[str, Tensor]:
        if self._fixed is not None:
            return self._fixed
        train = self._dataset.train
        # Their number does not depend on the population's: a few images tell little.
        reference = BatchOrder(len(train), _REFERENCE_IMAGES, self._seed).order(generation)
        return reference_statistics(self._model, population.params, train.images(reference))

    def images(self, population: PerturbedPopulation) -> int:
        """Return the model-images of one evaluation: members x images of each."""
        return len(population) * self._batch

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
    model.eval()
    right, loss = 0, 0.0
    for part in torch.split(torch.arange(len(split)), _IMAGES_PER_TILE):
        logits = functional_call(model, (dict(params), dict(buffers)), (split.images(part),))
        labels = split.labels[part]
        right += int((logits.argmax(1) == labels).sum())
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
    return right / len(split), loss / len(split)
