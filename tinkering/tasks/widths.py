"""A task for networks of several widths, each with a task of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from tinkering.engines.evaluation import Evaluation
from tinkering.engines.planning import Plan
from tinkering.errors import ArgumentError
from tinkering.population import Population
from tinkering.tasks.classification import Classification


class OfWidths:
    """`Classification` of whichever width the parameters have that it is handed.

    Args:
        make: returns the task of a width; called when the first parameters of that width come.
        first: name of the parameter that has as many outputs as the network is wide.

    Raises:
        ArgumentError: (a ``ValueError``) see `Classification`; or a population has no centre.

    Example:
        >>> from tinkering.data import load
        >>> from tinkering.models import BasicBlock, SimpleResNet
        >>> digits = load("mnist5k").subset(train=20, test=10)
        >>> def model(width):
        ...     return SimpleResNet(BasicBlock, [1, 1, 1, 1], width=width)
        >>> task = OfWidths(lambda width: Classification(model(width), digits), "conv1.weight")
        >>> [sorted(task.measure(dict(model(width).named_parameters()))) for width in (2, 4)]
        [['test_accuracy', 'test_loss'], ['test_accuracy', 'test_loss']]
    """

    def __init__(self, make: Callable[[int], Classification], first: str) -> None:
        self._make, self._first = make, first
        self._tasks: dict[int, Classification] = {}

    def evaluate(self, population: Population, generation: int) -> Evaluation:
        """Return what the population was worth on the generation's images."""
        return self._of(population).evaluate(population, generation)

    def parts(self, population: Population, count: int) -> list[slice]:
        """Return portions to evaluate apart."""
        return self._of(population).parts(population, count)

    def part(self, population: Population, generation: int, part: slice) -> Evaluation:
        """Return the evaluation of one of `parts`."""
        return self._of(population).part(population, generation, part)

    def plan(self, population: Population) -> Plan:
        """Return how a population would be evaluated."""
        return self._of(population).plan(population)

    def measure(self, params: Mapping[str, Tensor]) -> dict[str, float]:
        """Return ``test_accuracy`` (0 to 1) and ``test_loss`` (cross-entropy, nats)."""
        return self._with(params).measure(params)

    def buffers(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the module's buffers for these parameters."""
        return self._with(params).buffers(params)

    def _of(self, population: Population) -> Classification:
        centre = population.centre
        if centre is None:
            raise ArgumentError("population", "one with a centre", type(population).__name__)
        return self._with(centre)

    def _with(self, params: Mapping[str, Tensor]) -> Classification:
        width = len(params[self._first])
        if width not in self._tasks:
            self._tasks[width] = self._make(width)
        return self._tasks[width]
