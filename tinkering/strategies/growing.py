"""An evolution strategy whose network is widened while it evolves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from torch import Tensor

from tinkering.engines.evaluation import Evaluation
from tinkering.errors import ArgumentError
from tinkering.noise import Stream
from tinkering.population import Population
from tinkering.ranges import require_at_least
from tinkering.strategies.evolution_strategy import EvolutionState, EvolutionStrategy
from tinkering.strategies.feedback import Feedback, learned_of_wide
from tinkering.strategies.widening import require_wider, widened


@dataclass(frozen=True)
class Growing:
    """An `EvolutionStrategy` for each width of a network that is widened while it evolves.

    A generation of a narrow network takes less time. After every so many generations there are
    twice as many channels, of parameters with which the network computes what it did: see
    `tinkering.strategies.widening.widened`. The running average is widened likewise. What was
    learned of a layer's activations goes to the copies in halves; the optimiser starts afresh.

    Generations alone decide when, so that a run ends in the same bits however long it took.

    Args:
        stages: the strategy of each width, the narrowest first.
        shapes: of the parameters of each width but the first, by name.
        every: generations of each width but the last.

    Raises:
        ArgumentError: (a ``ValueError``) one of these cannot be used.

    Example:
        >>> from torch import nn, randn
        >>> from torch.func import functional_call
        >>> narrow, wide = (nn.Sequential(nn.Linear(3, n), nn.Linear(n, 2)) for n in (4, 8))
        >>> shapes = {name: p.shape for name, p in wide.named_parameters()}
        >>> strategy = Growing([EvolutionStrategy(), EvolutionStrategy()], [shapes], every=2)
        >>> state = strategy.init(dict(narrow.named_parameters()))
        >>> for _ in range(2):
        ...     before, state = state, strategy.tell(state, randn(len(strategy.ask(state))))
        >>> [tuple(s.params["0.weight"].shape) for s in (before, state)]
        [(4, 3), (8, 3)]
        >>> functional_call(wide, dict(strategy.centre(state)), (randn(5, 3),)).shape
        torch.Size([5, 2])
    """

    stages: Sequence[EvolutionStrategy]
    shapes: Sequence[Mapping[str, Sequence[int]]] = field(repr=False)
    every: int

    def __post_init__(self) -> None:
        if not self.stages or len(self.stages) != len(self.shapes) + 1:
            needed = f"{len(self.shapes) + 1}, one more than there are shapes"
            raise ArgumentError("stages", needed, len(self.stages))
        require_at_least(1, every=self.every)
        cells = [s.perturb.cells for s in self.stages if isinstance(s.perturb, Feedback)]
        for before, after in pairwise(cells):
            if after != 2 * before:
                needed = f"{2 * before}, twice as many as of half the width"
                advice = "What was learned of a channel goes to its copies."
                raise ArgumentError("cells", needed, after, advice)

    def init(self, params: Mapping[str, Tensor]) -> EvolutionState:
        """Return the state before the first generation, around the narrowest network.

        Raises:
            ArgumentError: (a ``ValueError``) see `EvolutionStrategy.init`; or the parameters are
                not such as can be widened to the shapes.
        """
        held: dict[str, Sequence[int]] = {name: p.shape for name, p in params.items()}
        for shapes in self.shapes:
            require_wider(held, shapes)
            held = {name: shapes[name] for name in held}
        return self.stages[0].init(params)

    def ask(self, state: EvolutionState) -> Population:
        """Return the population of the state's generation: see `EvolutionStrategy.ask`."""
        return self._strategy(state).ask(state)

    def tell(self, state: EvolutionState, evaluation: Evaluation | Tensor) -> EvolutionState:
        """Return the state after a generation, widened if it was the last of its width.

        Raises:
            ArgumentError: (a ``ValueError``) see `EvolutionStrategy.tell`; or the parameters are
                not such as can be widened to the next shapes.
        """
        after = self._strategy(state).tell(state, evaluation)
        return self.advanced(replace(after, generation=state.generation), after.generation)

    def centre(self, state: EvolutionState) -> Mapping[str, Tensor]:
        """Return the parameters of the network to use, of the width that it has."""
        return self._strategy(state).centre(state)

    def advanced(self, state: EvolutionState, generation: int) -> EvolutionState:
        """Return a state as one of a later generation, widened as often as it is until then.

        Raises:
            ArgumentError: (a ``ValueError``) the parameters cannot be widened to these shapes.
        """
        for stage in range(self._stage(state.generation), self._stage(generation)):
            state = self._widened(state, stage + 1)
        return replace(state, generation=generation)

    def _stage(self, generation: int) -> int:
        return min(generation // self.every, len(self.stages) - 1)

    def _strategy(self, state: EvolutionState) -> EvolutionStrategy:
        return self.stages[self._stage(state.generation)]

    def _widened(self, state: EvolutionState, stage: int) -> EvolutionState:
        """Return a state that computes the same with twice the channels."""
        strategy, shapes = self.stages[stage], self.shapes[stage - 1]
        stream = Stream(strategy.seed, stage)

        def wide(narrow: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return widened(narrow, {name: shapes[name] for name in narrow}, stream)

        start = strategy.init(wide({**state.params, **state.fixed}))
        outputs = {name: len(p) for name, p in state.params.items()}
        return replace(
            state,
            params=start.params,
            average=wide(state.average),
            optimiser=start.optimiser,
            fixed=start.fixed,
            learned=learned_of_wide(state.learned, outputs, start.params),
        )
