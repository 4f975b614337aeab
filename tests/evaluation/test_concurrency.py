"""Several threads of the user's, and one module: right each time, and the module is left alone."""

import threading
from functools import partial

import pytest
import torch
from awkward import Net, rows, undecided
from small_nets import fitness_of, loop
from torch import nn

from tinkering.evaluation.entry import forward
from tinkering.models import get_parallel_forward_pass_fn
from tinkering.population import PerturbedPopulation, StackedPopulation

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def without_a_graph():
    return Net(
        lambda m, x: m.second(torch.tanh(m.first(undecided(x)))), first=rows(4), second=rows()
    )


def with_a_graph():
    return nn.Sequential(rows(4), nn.Tanh(), rows())


def at_once(calls):
    """What each of some functions returns or raises, all begun at the same moment."""
    barrier, results = threading.Barrier(len(calls)), [None] * len(calls)

    def run(at):
        barrier.wait()
        try:
            results[at] = calls[at]()
        except Exception as error:
            results[at] = error

    threads = [threading.Thread(target=run, args=(at,), daemon=True) for at in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive(), "a thread waits for ever"
    return results


@pytest.mark.filterwarnings("ignore:members share a centre, but")
@pytest.mark.parametrize("build", [with_a_graph, without_a_graph])
@pytest.mark.parametrize("engine", ["auto", "sequential", "vmapped"])
def test_one_module_in_several_threads(build, engine):
    """Two rounds: the first calls find out about the module, the second know it."""
    torch.manual_seed(0)
    model = build().eval()
    held = list(model.parameters())
    populations = [PerturbedPopulation(model, 6, 0.5, seed=seed) for seed in range(4)]
    expected = [loop(population, X) for population in populations]

    def call(population):
        return lambda: forward(model, population, X, engine=engine)

    for _ in range(2):
        results = at_once([call(population) for population in populations])
        for result, wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(result, wanted)
    assert all(one is other for one, other in zip(held, model.parameters(), strict=True))
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())
    assert torch.equal(X, X.clone())  # raises where PyTorch was left in a mode of its own


def test_the_parallel_forward_in_several_threads():
    torch.manual_seed(0)
    models = [with_a_graph().eval() for _ in range(6)]
    population = StackedPopulation.from_modules(models)
    state = population.params, population.buffers
    expected = loop(population, X)
    for train in (False, True):  # the engine of its own, and vmap
        models[0].train(train)
        call = partial(get_parallel_forward_pass_fn(models[0]), state, X)
        for result in at_once([call] * 4):
            torch.testing.assert_close(result, expected)
    assert all(type(parameter) is nn.Parameter for parameter in models[0].parameters())


@pytest.mark.filterwarnings("ignore:members share a centre, but")
def test_members_share_a_mask_while_other_threads_draw():
    """PyTorch's generator is one for all threads."""
    model = nn.Sequential(rows(64), nn.Dropout(0.5)).train()
    population = PerturbedPopulation(model, 20, 0.5)
    calm = loop(population, X)  # in eval mode

    def call():
        return forward(model, population, X, randomness="same")

    for result in at_once([call] * 4):
        kept = result != 0
        assert (kept == kept[0]).all()
        assert 0.3 < kept[0].float().mean() < 0.7
        torch.testing.assert_close(result, 2 * calm * kept)


def test_a_fitness_that_evaluates_in_several_threads():
    model = with_a_graph().eval()
    population = PerturbedPopulation(model, 6, 0.5)
    inner = forward(model, population, X)
    y = torch.zeros(3, dtype=torch.long)

    def fitness(logits, labels):
        del labels
        assert torch.equal(forward(model, population, X), inner)
        return logits.mean((1, 2))

    results = at_once([lambda: fitness_of(model, population, X, y, fitness)] * 2)
    for result in results:
        torch.testing.assert_close(result, inner.mean((1, 2)))
