"""The update of weights: what it draws, and what its bits depend on."""

from unittest.mock import patch

import pytest
import torch
from problems import evolution
from torch import nn

from tinkering.evaluation.entry import evaluate
from tinkering.noise import LowRank, Stream
from tinkering.strategies import weights as room


def make_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)).requires_grad_(False)


def strategy_of(antithetic):
    return evolution(48, 0.1, noise=LowRank(1), antithetic=antithetic, group=2)


@pytest.fixture
def drawn():
    """How many pairs were drawn."""
    counts = []
    write = Stream.write

    def counted(stream, rows, pairs):
        counts.append(len(pairs))
        write(stream, rows, pairs)

    with patch.object(Stream, "write", counted):
        yield counts


@pytest.mark.parametrize("antithetic", [True, False])
def test_noise_is_drawn_once_for_the_evaluation_and_the_update(drawn, antithetic):
    model, strategy = make_model(), strategy_of(antithetic)
    state = strategy.init(dict(model.named_parameters()))
    x, y = torch.randn(5, 6), torch.randint(3, (5,))
    population = strategy.ask(state)
    evaluation = evaluate(model, population, x, y)
    before = sum(drawn)
    assert before >= len(population) // (2 if antithetic else 1)
    strategy.tell(state, evaluation)
    assert sum(drawn) == before
    del population
    strategy.tell(state, evaluation)  # the members are gone, and their noise with them
    assert sum(drawn) > before


@pytest.mark.parametrize("antithetic", [True, False])
def test_a_step_has_the_same_bits_on_any_threads_and_whatever_was_kept(antithetic):
    model, strategy = make_model(), strategy_of(antithetic)
    state = strategy.init(dict(model.named_parameters()))
    fitness, before, results = torch.randn(48), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for kept in (0, 1 << 24):
                with patch.object(room, "_KEPT", kept):
                    population = strategy.ask(state)
                    population[:20].draw()
                    results.append(strategy.tell(state, fitness).params)
                    assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for params in results[1:]:
        assert all(torch.equal(params[name], p) for name, p in results[0].items())
