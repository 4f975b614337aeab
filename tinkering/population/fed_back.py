"""A centre whose layers' activations are perturbed to learn what they do to the outputs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from tinkering.errors import ArgumentError
from tinkering.population.perturbed_activations import PerturbedActivations
from tinkering.ranges import require_at_least


@dataclass(frozen=True)
class FedBackActivations(PerturbedActivations):
    """Members that tell what a layer does to the outputs, not what it is worth.

    Examples are evaluated in parts of at most 64, alike in size. A part has members at one layer
    in `every`, another one in each part and generation. They are those of `PerturbedActivations`,
    but that noise is one sign for a cell, which is a channel's pixels in a small square, or its
    positions in a part of a sequence, and that no member is rated:
    what its noise did to the outputs is correlated with the noise, and averaged over members and
    generations. That is an average Jacobian, ``learned``. What outputs are worth is found by noise
    on the centre's own outputs, `readings` times an example, which costs no forward pass.

    Args:
        learned: by layer, ``[outputs + 1, cells]``: the mean of response times noise, and in the
            last row that of the noise squared; empty at the beginning.
        cells: signs that a layer's noise has at most, but one a channel at least.
        every: one layer in so many is tried in a part, at least 1.
        renewed: whether batch norms compute with the statistics of each part of the examples.
            Then a step leaves out what they would undo.

    Raises:
        ArgumentError: (a ``ValueError``) one of these is out of range.
    """

    learned: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    cells: int = 512
    every: int = 1
    renewed: bool = False

    images_a_part: ClassVar[int] = 64
    fewest_samples: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, cells=self.cells, every=self.every)

    def with_buffers(self, buffers: Mapping[str, Tensor]) -> PerturbedActivations:
        """Return the same members with other buffers.

        Raises:
            ArgumentError: (a ``ValueError``) statistics are renewed, so that nothing reads them.
        """
        if self.renewed:
            needed, advice = '"running", as statistics are renewed', "Or take renewed=False."
            raise ArgumentError("norm", needed, "statistics from elsewhere", advice)
        return super().with_buffers(buffers)

    @property
    def likeness(self) -> Hashable:
        """Equal for populations that are evaluated in the same way, whatever their numbers."""
        return *super().likeness, self.cells, self.every, self.renewed  # type: ignore[misc]
