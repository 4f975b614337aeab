"""Evolution of what layers put out: noise on results in place of noise on weights.

A layer often has far more weights than results: the last stage of a `SimpleResNet` of width 8 has
57,000 weights and makes 2,000 numbers of an image. An estimate of how fitness changes with few
numbers takes few members. See `tinkering.engines.activations` for the estimate and its sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tinkering.errors import ArgumentError
from tinkering.noise import Stream
from tinkering.population.perturbed_outputs import PerturbedOutputs
from tinkering.required import require_decimals
from tinkering.strategies.schedules import LARGEST_FLOAT, Schedule, require_positive, value_at
from tinkering.strategies.stepping import fresh_optimiser, stepped
from tinkering.strategies.told import Told, all_finite


@runtime_checkable
class Scores(Protocol):
    """What `OutputEvolution` is told: see `tinkering.engines.activations.OutputScores`."""

    @property
    def fitness(self) -> Tensor:
        """Of each member."""

    @property
    def ascent(self) -> Mapping[str, Tensor]:
        """For each parameter, an estimate of the gradient of the mean fitness."""


@dataclass(frozen=True)
class OutputState:
    """Where a run stands; `OutputEvolution.tell` returns a new one and changes none."""

    generation: int
    """Generations told so far."""
    params: Mapping[str, Tensor]
    """The centre that the next members are perturbed around."""
    average: Mapping[str, Tensor]
    """The running average of the centre: the network to use."""
    optimiser: Mapping[str, Any] = field(repr=False)
    """``state_dict`` of the optimiser."""
    told: Told = "nothing yet"
    """What the latest generation came to."""


@dataclass(frozen=True)
class OutputEvolution:
    """Ask for members whose layers' results are perturbed, tell what they were worth.

    A member's utility is its fitness minus the mean of those that perturb the same layer and
    see the same image (times n / (n - 1), since that mean contains it): the one-sided form of
    an evolution strategy, which gets a direction from every evaluation where antithetic pairs
    get one from two. Adam follows the estimate. No backpropagation anywhere: a layer's weights
    are moved by its own result's noise, its own input and a number a member.

    Args:
        members: perturbations of each image at each layer, at least 2.
        sigma: size of a perturbation by that of the layer's result: see `PerturbedOutputs`.
        learning_rate: Adam's step, a number or a schedule over generations.
        betas: Adam's decay of its running means.
        shaping: ``"raw"``: utilities as they are; or ``"relative"``: divided by the mean
            fitness of the image's members, for a fitness of at least 0. The way up is then
            that of its logarithm: images that are seldom right count for more.
        blur: noise under which members' logits are read: see `PerturbedOutputs`.
        readings: of a member's logits.
        averaging: weight of the past in the running average of the centre, 0 (the latest) to
            1 (excluded); early on it is less, so that the random start is forgotten.
        seed: of the noise, 0 to 2^64 - 1.

    Raises:
        ArgumentError: (a ``ValueError``) one of these is out of range.

    Example:
        >>> from tinkering.engines.activations import evaluate_outputs
        >>> _ = torch.manual_seed(0)
        >>> nn = torch.nn
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(32, 8)
        >>> y = (x[:, 0] > 0).long()
        >>> strategy = OutputEvolution(learning_rate=0.02)
        >>> state = strategy.init(dict(model.named_parameters()))
        >>> for _ in range(100):
        ...     scores = evaluate_outputs(model.eval(), strategy.ask(state), x, y)
        ...     state = strategy.tell(state, scores)
        >>> logits = torch.func.functional_call(model, dict(strategy.centre(state)), (x,))
        >>> bool((logits.argmax(1) == y).float().mean() > 0.9)
        True
    """

    members: int = 8
    sigma: float = 0.1
    learning_rate: float | Schedule = 0.004
    betas: tuple[float, float] = (0.9, 0.99)
    averaging: float = 0.98
    seed: int = 0
    shaping: str = "raw"
    blur: float = 0.0
    readings: int = 1

    def __post_init__(self) -> None:
        if self.members < 2:
            raise ArgumentError("members", "an integer of at least 2", self.members)
        require_positive("sigma", self.sigma, LARGEST_FLOAT)
        if not callable(self.learning_rate):
            require_positive("learning_rate", self.learning_rate)
        if not 0 <= self.averaging < 1:
            raise ArgumentError("averaging", "a number from 0 to below 1", self.averaging)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ArgumentError("betas", "two numbers from 0 to below 1", self.betas)
        if not 0 <= self.seed < 2**64:
            raise ArgumentError("seed", "an integer from 0 to 2^64 - 1", self.seed)
        if self.shaping not in SHAPINGS:
            raise ArgumentError("shaping", f"one of {', '.join(SHAPINGS)}", self.shaping)
        if not 0 <= self.blur < float("inf"):
            raise ArgumentError("blur", "a finite number of at least 0", self.blur)
        if self.blur:
            require_positive("blur", self.blur, LARGEST_FLOAT)
        if self.readings < 1:
            raise ArgumentError("readings", "an integer of at least 1", self.readings)

    def init(self, params: Mapping[str, Tensor]) -> OutputState:
        """Return the state before the first generation, with a copy of `params` as centre."""
        require_decimals("params", params)
        centre = {name: p.detach().clone() for name, p in params.items()}
        average = {name: p.clone() for name, p in centre.items()}
        rate = value_at("learning_rate", self.learning_rate, 0)
        optimiser = fresh_optimiser(self._adam, centre, rate, dict.fromkeys(centre, 1.0))
        return OutputState(0, centre, average, optimiser.state_dict())

    def ask(self, state: OutputState) -> PerturbedOutputs:
        """Return how the state's generation perturbs the centre."""
        stream = Stream(self.seed, state.generation)
        return PerturbedOutputs(
            state.params,
            self.members,
            self.sigma,
            stream,
            SHAPINGS[self.shaping],
            self.blur,
            self.readings,
        )

    def tell(self, state: OutputState, scores: Scores) -> OutputState:
        """Return the state after a generation.

        Args:
            state: the state that `ask` was given.
            scores: what `tinkering.engines.activations.evaluate_outputs` returned.
        """
        lost = (state.generation + 1, state.params, state.average, state.optimiser)
        if not bool(torch.isfinite(scores.fitness).any()):
            return OutputState(*lost, "no finite fitness")
        if not all_finite(scores.ascent.values()):
            return OutputState(*lost, "update not finite")
        rate = value_at("learning_rate", self.learning_rate, state.generation)
        factors = dict.fromkeys(state.params, 1.0)
        after = stepped(self._adam, state.params, scores.ascent, rate, factors, state.optimiser)
        if after is None:
            return OutputState(*lost, "update not finite")
        params, optimiser = after
        past = min(self.averaging, (state.generation + 1) / (state.generation + 10))
        average = {name: p.lerp(state.average[name], past) for name, p in params.items()}
        return OutputState(state.generation + 1, params, average, optimiser, "moved")

    def centre(self, state: OutputState) -> Mapping[str, Tensor]:
        """Return the parameters of the network to use: the running average."""
        return state.average

    def _adam(self, params: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=rate, betas=self.betas)


def utilities(fitness: Tensor) -> Tensor:
    """Return each member's fitness by the mean of the others that see its image.

    What is not finite counts as the worst that sees the image; where nothing is finite, nothing
    is worth anything.

    Args:
        fitness: ``[images, members]``.

    Example:
        >>> utilities(torch.tensor([[1.0, 2.0, 6.0]]))
        tensor([[-3.0000, -1.5000,  4.5000]])
    """
    finite = torch.isfinite(fitness)
    worst = fitness.where(finite, torch.inf).amin(1, keepdim=True)
    known = fitness.where(finite, worst.where(torch.isfinite(worst), 0.0))
    known = known - known[:, :1]  # equal ones are then worth nothing, not what rounding leaves
    count = fitness.shape[1]
    return (known - known.mean(1, keepdim=True)) * (count / (count - 1))


def relative_utilities(fitness: Tensor) -> Tensor:
    """Return utilities divided by the mean fitness of those that see the image.

    Where that mean is not above 0, nothing is worth anything.

    Args:
        fitness: ``[images, members]``, at least 0.

    Raises:
        ArgumentError: (a ``ValueError``) a finite number is below 0.

    Example:
        >>> relative_utilities(torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]]))
        tensor([[-1.0000, -0.5000,  1.5000],
                [ 0.0000,  0.0000,  0.0000]])
    """
    known = fitness.where(torch.isfinite(fitness), 0.0)
    if bool((known < 0).any()):
        needed = 'numbers of at least 0, for shaping "relative"'
        raise ArgumentError("fitness", needed, known.min().item())
    mean = known.mean(1, keepdim=True)
    return torch.where(mean > 0, utilities(fitness) / mean, 0.0)


SHAPINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "raw": utilities,
    "relative": relative_utilities,
}
"""What members are worth, by the name that a configuration uses."""
