"""Activations are perturbed: noise on what layers return, in place of noise on weights.

A layer often has far more weights than activations: the last stage of a `SimpleResNet` of width 8
has 57,000 weights and returns 2,000 numbers for an image. An estimate of how fitness changes with
few numbers takes few members. See `tinkering.engines.activations` for the estimate and its sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tinkering.engines.evaluation import Evaluation
from tinkering.errors import ArgumentError
from tinkering.population import PerturbedActivations
from tinkering.ranges import require_at_least, require_not_negative, require_positive
from tinkering.strategies.perturbation import Generation
from tinkering.strategies.schedules import LARGEST_FLOAT, Schedule, value_at
from tinkering.strategies.shaping import SHAPINGS, Compared
from tinkering.strategies.told import finite_fitness


@dataclass(frozen=True)
class Activations:
    """Noise on each layer's activation of each example; the evaluation makes the estimate.

    A member's utility is its fitness by that of the others that perturb the same layer and see
    the same example: the one-sided form of an evolution strategy, which gets a direction from
    every evaluation where antithetic pairs get one from two. A layer's weights are moved by its
    own activation's noise, its own input and one scalar per member.

    Args:
        sigma: size of a perturbation by that of the layer's activation, or a schedule of it: see
            `PerturbedActivations`.
        samples: perturbations of each example at each layer, at least 2.
        blur: standard deviation of the noise under which members' logits are read.
        readings: of a member's logits, at least 1.

    Raises:
        ArgumentError: (a ``ValueError``) one of these is out of range.

    Example:
        >>> import torch
        >>> from tinkering.evaluation.entry import evaluate
        >>> from tinkering.strategies.evolution_strategy import EvolutionStrategy
        >>> _ = torch.manual_seed(0)
        >>> nn = torch.nn
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        >>> x = torch.randn(32, 8)
        >>> y = (x[:, 0] > 0).long()
        >>> strategy = EvolutionStrategy(Activations(), learning_rate=0.02)
        >>> state = strategy.init(dict(model.named_parameters()))
        >>> for _ in range(100):
        ...     evaluation = evaluate(model, strategy.ask(state), x, y)
        ...     state = strategy.tell(state, evaluation)
        >>> logits = torch.func.functional_call(model, dict(strategy.centre(state)), (x,))
        >>> bool((logits.argmax(1) == y).float().mean() > 0.9)
        True
    """

    sigma: float | Schedule = 0.1
    samples: int = 8
    blur: float = 0.0
    readings: int = 1

    usual_shaping: ClassVar[str] = "raw"
    usual_learning_rate: ClassVar[float] = 0.004

    def __post_init__(self) -> None:
        if not callable(self.sigma):
            require_positive("sigma", self.sigma, LARGEST_FLOAT)
        require_at_least(2, samples=self.samples)
        require_at_least(1, readings=self.readings)
        require_not_negative(blur=self.blur)
        if self.blur:
            require_positive("blur", self.blur, LARGEST_FLOAT)

    @property
    def compared(self) -> Compared:
        """With whom members are compared."""
        return "examples"

    def around(self, generation: Generation) -> PerturbedActivations:
        """Return the population of a generation.

        Raises:
            ArgumentError: (a ``ValueError``) the schedule of sigma returned a number that is
                not above 0, or a parameter has a factor of its own.
        """
        require_same_sigma(generation)
        stream = generation.stream
        return PerturbedActivations(
            generation.centre,
            self.samples,
            value_at("sigma", self.sigma, stream.generation, most=LARGEST_FLOAT),
            stream,
            SHAPINGS[self.compared][generation.shaping],
            self.blur,
            self.readings,
        )

    def gradient(
        self, generation: Generation, evaluation: Evaluation
    ) -> Mapping[str, Tensor] | None:
        """Return the gradient estimate that the evaluation made.

        Raises:
            ArgumentError: (a ``ValueError``) there is none for these parameters.
        """
        return estimate_of(generation, evaluation)

    def learn(self, generation: Generation, evaluation: Evaluation) -> Mapping[str, Tensor]:
        """Return nothing: each generation stands for itself."""
        del evaluation
        return generation.learned


def require_same_sigma(generation: Generation) -> None:
    """Refuse factors on sigma, which activations do not have.

    Raises:
        ArgumentError: (a ``ValueError``) a parameter has a factor of its own.
    """
    for name, factor in generation.factors.items():
        if factor != 1:
            needed = "a sigma of 0 or 1 where activations are perturbed"
            raise ArgumentError("groups", needed, f"{factor} for {name!r}")


def estimate_of(generation: Generation, evaluation: Evaluation) -> Mapping[str, Tensor] | None:
    """Return the gradient estimate that an evaluation made; None where no fitness is finite.

    Raises:
        ArgumentError: (a ``ValueError``) there is none for these parameters.
    """
    if finite_fitness(evaluation) is None:
        return None
    gradient = evaluation.gradient
    if gradient is None or gradient.keys() != generation.centre.keys():
        needed = "an Evaluation with a gradient estimate for each parameter that evolves"
        came = "none" if gradient is None else f"one for {', '.join(gradient) or 'none'}"
        raise ArgumentError("evaluation", needed, came, "evaluate returns one.")
    return gradient
