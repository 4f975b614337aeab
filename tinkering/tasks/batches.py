"""Which training images a generation sees, and which members see which of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from tinkering.data import BatchOrder, Shifts, Split
from tinkering.errors import ArgumentError
from tinkering.population import CountedPopulation
from tinkering.ranges import require_at_least


@dataclass(frozen=True)
class Batches:
    """A generation's images and labels: a function of a seed and the generation.

    Args:
        train: the images.
        seed: decides which of them a generation sees.
        group: members that see the same images, side by side in the population; None for
            all of them.
        batch: images that a member sees in a generation.
        shift: pixels by which images are moved at most, another way each time.

    Raises:
        ArgumentError: (a ``ValueError``) one of these is out of range.

    Example:
        >>> from torch import nn
        >>> from tinkering.data import load
        >>> from tinkering.population import PerturbedPopulation
        >>> batches = Batches(load("mnist5k").train, group=2, batch=3)
        >>> x, y = batches.of_members(PerturbedPopulation(nn.Linear(1, 1), 8, 0.1), generation=0)
        >>> x.shape, y.shape
        (torch.Size([8, 3, 1, 28, 28]), torch.Size([8, 3]))
    """

    train: Split
    seed: int = 0
    group: int | None = 2
    batch: int = 1
    shift: int = 0
    _shifts: Shifts = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require_at_least(1, group=self.group, batch=self.batch)
        object.__setattr__(self, "_shifts", Shifts(self.shift, self.seed))

    def of_all(self, generation: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return the images of the one batch that all see, and their labels, or a part of them."""
        order = BatchOrder(len(self.train), self.batch, self.seed).order(generation)
        chosen = order[part]
        return self._moved(chosen, generation, part, self.batch), self.train.labels[chosen]

    def of_members(self, population: CountedPopulation, generation: int) -> tuple[Tensor, Tensor]:
        """Return images ``[members, batch, ...]`` and labels, the same inside a group.

        Raises:
            ArgumentError: (a ``ValueError``) the population has no whole groups.
        """
        members, group, batch = population.members, self.group or population.size, self.batch
        if members.start % group or members.stop % group or population.size % group:
            raise ArgumentError(
                "population",
                f"groups of {group} members, which see the same images",
                f"members {members.start} to {members.stop - 1} of {population.size}",
            )
        # A part of a population sees the images that it would see in the whole.
        count = population.size // group * batch
        whole = BatchOrder(len(self.train), count, self.seed).order(generation)
        part = slice(*(at // group * batch for at in (members.start, members.stop)))
        # Bytes are looked up once an image, and become floating-point numbers once.
        images = self._moved(whole[part], generation, part, count)
        x = images.view(-1, batch, *images.shape[1:]).repeat_interleave(group, 0)
        return x, self.train.labels[whole[part].view(-1, batch).repeat_interleave(group, 0)]

    def _moved(self, chosen: Tensor, generation: int, part: slice, count: int) -> Tensor:
        """Return images of a generation, which has `count`, moved by their offsets."""
        offsets = self._shifts.offsets(generation, count)[part]
        return self._shifts.moved(self.train.images(chosen), offsets, self.train.background)
