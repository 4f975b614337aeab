"""Recurrent layers, as modules and as cells, for many members at once: one pass over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinkering.layers.tile import MemberTile

Linear = Callable[[MemberTile, Tensor], Tensor]
"""What members' own linear layer makes of ``[images, ..., features]``."""
State = tuple[Tensor, ...]
"""Of a cell: ``(h,)``, or ``(h, c)`` of an LSTM, ``[images, hidden]`` each."""
Step = Callable[[Tensor, Tensor, State], State]
"""``(gates of the input, gates of the state, state) -> next state``."""


def _rnn(activation: Callable[[Tensor], Tensor], x: Tensor, h: Tensor, state: State) -> State:
    del state
    return (activation(x + h),)


def rnn_tanh(x: Tensor, h: Tensor, state: State) -> State:
    """Return the next state of an Elman network."""
    return _rnn(torch.tanh_, x, h, state)


def rnn_relu(x: Tensor, h: Tensor, state: State) -> State:
    """Return the next state of an Elman network with rectifiers."""
    return _rnn(torch.relu_, x, h, state)


def gru(x: Tensor, h: Tensor, state: State) -> State:
    """Return the next state of a gated recurrent unit: Cho et al. 2014 (arXiv 1406.1078)."""
    two = x.shape[1] // 3 * 2
    reset, update = (x[:, :two] + h[:, :two]).sigmoid_().chunk(2, 1)
    new = torch.addcmul(x[:, two:], reset, h[:, two:]).tanh_()
    return (torch.lerp(new, state[0], update),)


def lstm(x: Tensor, h: Tensor, state: State) -> State:
    """Return the next state of a long short-term memory: Hochreiter and Schmidhuber 1997."""
    gates = x + h
    size = gates.shape[1] // 4
    taken, forgotten, shown = (
        gates[:, :size].sigmoid(),
        gates[:, size : 2 * size].sigmoid(),
        gates[:, 3 * size :].sigmoid(),
    )
    c = torch.addcmul(forgotten * state[1], taken, gates[:, 2 * size : 3 * size].tanh())
    return shown * c.tanh(), c


@dataclass(frozen=True)
class Direction:
    """One layer in one direction: what it computes, and with which members' own weights."""

    step: Step
    of_input: Linear
    of_state: Linear
    of_output: Linear | None
    """What the state is projected with, as in an LSTM with ``proj_size``."""

    def __call__(
        self, tile: MemberTile, x: Tensor, state: State, backwards: bool
    ) -> tuple[Tensor, State]:
        """Return the layer's results ``[images, time, features]`` and its last state.

        Args:
            tile: the members.
            x: ``[images, time, features]``.
            state: before the first step.
            backwards: whether time is walked from its end.
        """
        gates, state = self.of_input(tile, x).float(), tuple(each.float() for each in state)
        times = range(x.shape[1])
        made: list[Tensor] = []
        for time in reversed(times) if backwards else times:
            state = self.next(tile, gates[:, time], state)
            made.append(state[0])
        return torch.stack(made[::-1] if backwards else made, 1), state

    def next(self, tile: MemberTile, gates: Tensor, state: State) -> State:
        """Return the state behind a step, from what `of_input` made of its input."""
        # In float32, whatever layers compute with: what is rounded here adds up over time.
        h, *rest = self.step(gates.float(), self.of_state(tile, state[0]).float(), state)
        return (h if self.of_output is None else self.of_output(tile, h).float(), *rest)


def sequence(
    tile: MemberTile,
    directions: Sequence[Sequence[Direction]],
    x: Tensor,
    states: Sequence[Tensor],
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Return what a recurrent module makes of sequences: its results, and its last states.

    Args:
        tile: the members.
        directions: of each layer.
        x: ``[images, time, features]``, or ``[time, images, features]``.
        states: ``[layers * directions, images, hidden]`` each: one, or two of an LSTM.
        batch_first: whether the images come first.
    """
    x = x if batch_first else x.transpose(0, 1)
    last: list[State] = []
    for layer in directions:
        results = []
        for backwards, direction in enumerate(layer):
            before = tuple(state[len(last)] for state in states)
            out, after = direction(tile, x, before, bool(backwards))
            results.append(out)
            last.append(after)
        x = results[0] if len(results) == 1 else torch.cat(results, 2)
    after = tuple(torch.stack(each) for each in zip(*last, strict=True))
    return (x if batch_first else x.transpose(0, 1)), *after
