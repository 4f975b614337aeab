"""What an evolution strategy needs of a kind of perturbation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from tinkering.engines.evaluation import Evaluation
from tinkering.noise import Stream
from tinkering.population import Population
from tinkering.strategies.shaping import Compared


@dataclass(frozen=True)
class Generation:
    """What a generation is made of."""

    centre: Mapping[str, Tensor]
    """The parameters that evolve, by name."""
    factors: Mapping[str, float]
    """On the size of each one's perturbation, above 0."""
    stream: Stream
    """Of its noise."""
    shaping: str
    """One of those for what is compared: see `tinkering.strategies.shaping`."""
    learned: Mapping[str, Tensor] = field(default_factory=dict)
    """What the perturbation learned from earlier generations."""


@runtime_checkable
class Perturbation(Protocol):
    """What is perturbed, how, and what that tells about the centre.

    A kind is a frozen dataclass in a file of its own, such as `Weights` and `Activations`.
    """

    @property
    def compared(self) -> Compared:
        """With whom members are compared: it says which shapings there are."""

    @property
    def usual_shaping(self) -> str:
        """The shaping where none is asked for."""

    @property
    def usual_learning_rate(self) -> float:
        """The learning rate where none is asked for, with Adam."""

    def around(self, generation: Generation) -> Population:
        """Return the population of a generation.

        Raises:
            ArgumentError: (a ``ValueError``) a schedule returned a number that cannot be used,
                or this kind knows no such factors.
        """

    def gradient(
        self, generation: Generation, evaluation: Evaluation
    ) -> Mapping[str, Tensor] | None:
        """Return the gradient estimate for each parameter; None where no fitness is finite.

        Raises:
            ArgumentError: (a ``ValueError``) it is no evaluation of this generation's population.
        """

    def learn(self, generation: Generation, evaluation: Evaluation) -> Mapping[str, Tensor]:
        """Return what is known after a generation, for `Generation.learned` of the next.

        Raises:
            ArgumentError: (a ``ValueError``) it is no evaluation of this generation's population.
        """
