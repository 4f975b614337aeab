"""Activations are perturbed, and what that does to the outputs is learned over generations.

An estimate from a generation's noise alone gets worse with the number of activations. What a
layer does to the outputs changes slowly, so it can be learned from the noise of many generations,
and the estimate of how fitness changes is carried back through it. See
`tinkering.engines.feedback` for the estimate and its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tinkering.engines.evaluation import Evaluation
from tinkering.errors import ArgumentError
from tinkering.population import FedBackActivations
from tinkering.ranges import require_at_least, require_not_negative, require_positive
from tinkering.strategies.activations import estimate_of, require_same_sigma
from tinkering.strategies.perturbation import Generation
from tinkering.strategies.schedules import LARGEST_FLOAT, Schedule, value_at
from tinkering.strategies.shaping import SHAPINGS, Compared


@dataclass(frozen=True)
class Feedback:
    """Noise on each layer's activation, whose effect on the outputs is learned.

    Args:
        sigma: size of a perturbation by that of the layer's activation, or a schedule of it.
        samples: perturbations, at each layer, of each example that has some.
        every: each part of the examples tries one layer in so many, another one in each part and
            generation; see `FedBackActivations`.
        cells: signs of noise that a layer has at most, unless it has more channels: pixels, or
            positions, of a channel share them where it has more numbers.
        window: length of the running mean, in multiples of a layer's number of cells.
        readings: noisy readings of each example's outputs, from which the slope of the fitness is
            estimated; at least 2.
        blur: standard deviation of the noise on outputs. 0, the default, is `sigma` times what an
            example's outputs differ by, or, of a single output, what examples differ by, and
            0.001 times `sigma` at least; a fitness that is a step needs more.

    Raises:
        ArgumentError: (a ``ValueError``) one of these is out of range.

    Example:
        >>> from tinkering.evaluation.entry import evaluate
        >>> from tinkering.strategies.evolution_strategy import EvolutionStrategy
        >>> _ = torch.manual_seed(0)
        >>> nn = torch.nn
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        >>> x = torch.randn(32, 8)
        >>> y = (x[:, 0] > 0).long()
        >>> strategy = EvolutionStrategy(Feedback(), learning_rate=0.02)
        >>> state = strategy.init(dict(model.named_parameters()))
        >>> for _ in range(100):
        ...     evaluation = evaluate(model, strategy.ask(state), x, y)
        ...     state = strategy.tell(state, evaluation)
        >>> logits = torch.func.functional_call(model, dict(strategy.centre(state)), (x,))
        >>> bool((logits.argmax(1) == y).float().mean() > 0.9)
        True
    """

    sigma: float | Schedule = 0.1
    samples: int = 1
    every: int = 1
    cells: int = 512
    window: float = 4.0
    readings: int = 64
    blur: float = 0.0

    usual_shaping: ClassVar[str] = "raw"
    usual_learning_rate: ClassVar[float] = 0.004

    def __post_init__(self) -> None:
        if not callable(self.sigma):
            require_positive("sigma", self.sigma, LARGEST_FLOAT)
        require_at_least(1, samples=self.samples, every=self.every, cells=self.cells)
        require_at_least(2, readings=self.readings)
        require_positive("window", self.window)
        require_not_negative(blur=self.blur)
        if self.blur:
            require_positive("blur", self.blur, LARGEST_FLOAT)

    @property
    def compared(self) -> Compared:
        """With whom members are compared."""
        return "examples"

    def around(self, generation: Generation) -> FedBackActivations:
        """Return the population of a generation.

        Raises:
            ArgumentError: (a ``ValueError``) the schedule of sigma returned a number that is
                not above 0, or a parameter has a factor of its own.
        """
        require_same_sigma(generation)
        stream = generation.stream
        return FedBackActivations(
            generation.centre,
            self.samples,
            value_at("sigma", self.sigma, stream.generation, most=LARGEST_FLOAT),
            stream,
            SHAPINGS[self.compared][generation.shaping],
            self.blur,
            self.readings,
            learned=generation.learned,
            cells=self.cells,
            every=self.every,
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
        """Return what is known of the layers after a generation.

        A running mean, of about as many members as `window` times the cells of a layer.

        Raises:
            ArgumentError: (a ``ValueError``) the evaluation tells nothing of it.
        """
        if evaluation.effects is None:
            needed = "an Evaluation that says what noise did to the outputs"
            raise ArgumentError("evaluation", needed, "one without", "evaluate returns one.")
        learned = dict(generation.learned)
        for name, effect in evaluation.effects.items():
            mean, cells = effect.total / effect.members, effect.total.shape[1]
            share = effect.members / (effect.members + cells) / self.window
            before = learned.get(name, torch.zeros_like(mean))
            learned[name] = before.lerp(mean, min(1.0, share))
        return learned


def learned_of_wide(
    learned: Mapping[str, Tensor], channels: Mapping[str, int], wide: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return what is known of the layers of a network whose channels are there twice.

    Either copy of a channel does half of what it did to the outputs, on average, with noise that
    has the same cells.

    Args:
        learned: by layer, as `Feedback.learn` returns it.
        channels: that a layer had, by the name of its weights.
        wide: the weights of the network's layers after widening, by name.

    Example:
        >>> learned = {"a:result": torch.tensor([[4.0], [1.0]])}
        >>> learned_of_wide(learned, {"a": 1}, {"a": torch.zeros(2, 3)})
        {'a:result': tensor([[2., 2.],
                [1., 1.]])}
    """
    found = {}
    for layer, known in learned.items():
        name = layer.split(":")[0]
        if len(wide[name]) != channels[name]:
            cells = known.view(len(known), -1, channels[name])  # channels last
            known = torch.cat([cells, cells], 2).flatten(1)
            known[:-1] /= 2
        found[layer] = known
    return found
