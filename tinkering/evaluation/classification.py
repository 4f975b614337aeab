"""A classification task: training images for the members, held-out images for the centre."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tinkering.data import BatchOrder, Dataset, Split
from tinkering.errors import ArgumentError
from tinkering.evaluation.batchnorm import reference_statistics
from tinkering.evaluation.fitness import Fitness, negative_cross_entropy
from tinkering.evaluation.forward import evaluate
from tinkering.population import PerturbedPopulation

_REFERENCE_IMAGES = 128
"""Training images for a generation's BatchNorm statistics, others every generation."""
_CALIBRATION_IMAGES = 2048
"""Training images for the statistics of a centre that is measured or saved, at most."""
_IMAGES_PER_TILE = 256


class Classification:
    """Every antithetic pair gets one training image of its own, the same for both members.

    Directions are what is scarce: a gradient estimate from N random directions among D
    parameters is worth about N / D of a step, so as many members as possible with one
    image each beat few members with many. Inside a pair the image is the same, so its
    difficulty cancels out of the difference.

    The BatchNorm policy is that of `tinkering.evaluation.batchnorm`: a generation's
    members use the centre's statistics on training images drawn for it; the held-out
    figures, and a saved centre, use those of a fixed part of the training images.

    Args:
        model: the architecture, put into eval mode; parameters that a population does not
            have are its own, the same for all members.
        dataset: images and labels.
        seed: decides which images a generation sees.
        fitness: of a member.
        dtype: of the members' convolutions; held-out figures are always float32.

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
    ) -> None:
        self._model = model
        self._dataset = dataset
        self._seed = seed
        self._fitness = fitness
        self._dtype = dtype

    @torch.no_grad()
    def fitness(self, population: PerturbedPopulation, generation: int) -> Tensor:
        """Return the fitness of each member on the generation's images, ``[members]``.

        Raises:
            ArgumentError: (a ``ValueError``) the population has no antithetic pairs.
        """
        members = population.members
        if not population.antithetic or members.start % 2 or members.stop % 2:
            raise ArgumentError(
                "population",
                "antithetic pairs",
                f"members {members.start} to {members.stop - 1}, "
                f"antithetic={population.antithetic}",
            )
        train = self._dataset.train
        # A part of a population sees the images that it would see in the whole.
        whole = BatchOrder(len(train), population.size // 2, self._seed).order(generation)
        chosen = whole[members.start // 2 : members.stop // 2]
        images, labels = train.images(chosen), train.labels[chosen]
        # Their number does not depend on the population's: a few images tell little.
        reference = BatchOrder(len(train), _REFERENCE_IMAGES, self._seed).order(generation)
        buffers = reference_statistics(self._model, population.params, train.images(reference))
        return evaluate(
            self._model.eval(),
            population.with_buffers(buffers),
            images.repeat_interleave(2, 0).unsqueeze(1),
            labels.repeat_interleave(2, 0).unsqueeze(1),
            self._fitness,
            in_dims=(0, 0),
            dtype=self._dtype,
        )

    def images(self, population: PerturbedPopulation) -> int:
        """Return the model-images of one evaluation: one a member."""
        return len(population)

    def measure(self, params: Mapping[str, Tensor]) -> dict[str, float]:
        """Return ``test_accuracy`` (0 to 1) and ``test_loss`` (cross-entropy, nats)."""
        accuracy, loss = measure_split(
            self._model, params, self.buffers(params), self._dataset.test
        )
        return {"test_accuracy": accuracy, "test_loss": loss}

    def buffers(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the module's buffers for these parameters, calibrated on training images."""
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
