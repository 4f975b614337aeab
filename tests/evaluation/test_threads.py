"""Tiles side by side: in order, each on one thread, and with the same bits as one by one."""

import os
import signal
import time

import pytest
import torch

import tinkering
from tinkering.evaluation.threads import map_in_order
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.population import PerturbedPopulation


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_come_in_order_from_threads_of_one(set_threads, threads):
    set_threads(threads)
    seen = list(
        map_in_order(lambda i: (i, torch.get_num_threads(), torch.is_grad_enabled()), range(20))
    )
    assert seen == [(i, 1, False) for i in range(20)]
    assert torch.get_num_threads() == threads


def test_few_items_are_taken_ahead_of_their_results(set_threads):
    """Else the logits of a whole population could wait at once."""
    set_threads(2)
    taken = []
    results = map_in_order(lambda i: i, (taken.append(i) or i for i in range(100)))
    assert next(results) == 0
    assert len(taken) <= 6


def test_an_error_reaches_the_caller(set_threads):
    set_threads(2)

    def fail(item):
        if item == 3:
            raise ValueError("of item 3")
        return item

    with pytest.raises(ValueError, match="of item 3"):
        list(map_in_order(fail, range(50)))
    assert list(map_in_order(lambda i: i, range(3))) == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_have_the_same_bits_for_any_number_of_threads(set_threads, monkeypatch, dtype):
    monkeypatch.setattr("tinkering.evaluation.forward._IMAGES_PER_TILE", 8)
    model = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=4).eval()
    population = PerturbedPopulation(model, size=50, sigma=0.1)
    x = torch.randn(50, 1, 1, 28, 28)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(tinkering.forward(model, population, x, (0, 0), dtype))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own(set_threads):
    """It inherits the memory of the pool and none of its threads: it would wait for ever."""
    set_threads(2)
    assert list(map_in_order(str, range(3))) == ["0", "1", "2"]
    child = os.fork()
    if child == 0:
        os._exit(0 if list(map_in_order(str, range(3))) == ["0", "1", "2"] else 1)
    for _ in range(100):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the forked process hangs")
    assert status == 0
