"""Tiles side by side: in order, each on one thread, and with the same bits as one by one."""

import os
import signal
import threading
import time

import pytest
import torch

import tinkering
from tinkering.evaluation import threads as threads_module
from tinkering.evaluation.threads import map_in_order
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.population import PerturbedPopulation, StackedPopulation


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class TestMapInOrder:
    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_results_come_in_order_from_threads_of_one(self, threads):
        def look(item):
            time.sleep(0.002 * (item % 3))  # the later ones are done first
            return item, torch.get_num_threads(), torch.is_grad_enabled()

        with torch.enable_grad():
            assert list(map_in_order(look, range(20), threads)) == [
                (i, 1, False) for i in range(20)
            ]

    @pytest.mark.parametrize("threads", [1, 2, 4])
    def test_as_many_work_at_a_time_as_are_asked_for(self, threads):
        """A barrier of that many opens only if they all wait at it."""
        barrier = threading.Barrier(threads)

        def meet(_):
            barrier.wait(10)
            return threading.get_ident()

        names = set(map_in_order(meet, range(threads), threads))
        assert len(names) == threads
        assert threading.get_ident() not in names

    def test_no_more_work_than_are_asked_for(self):
        working, most = [], []

        def work(item):
            working.append(item)
            most.append(len(working))
            time.sleep(0.003)
            working.remove(item)

        list(map_in_order(work, range(20), threads=2))
        assert max(most) <= 2

    @pytest.mark.parametrize("before", [1, 2, 5])
    def test_the_callers_number_of_threads_stays(self, set_threads, before):
        """Another number of portions than threads must not slow down what comes later."""
        set_threads(before)
        threads_module._pool.cache_clear()
        assert list(map_in_order(str, range(3), threads=3)) == ["0", "1", "2"]
        assert torch.get_num_threads() == before
        assert list(map_in_order(lambda _: torch.get_num_threads(), range(3), 3)) == [1, 1, 1]

    def test_threads_are_kept(self):
        seen = [
            set(map_in_order(lambda _: threading.get_ident(), range(8), threads=2))
            for _ in range(3)
        ]
        assert len(set.union(*seen)) <= 2

    def test_few_items_are_taken_ahead_of_their_results(self):
        """Else the logits of a whole population could wait at once."""
        taken = []
        results = map_in_order(lambda i: i, (taken.append(i) or i for i in range(100)), threads=2)
        assert next(results) == 0
        assert len(taken) <= 6

    def test_an_error_reaches_the_caller_and_the_threads_live_on(self):
        done = []

        def fail(item):
            if item == 3:
                raise ValueError("of item 3")
            done.append(item)
            return item

        seen = []
        with pytest.raises(ValueError, match="of item 3"):
            seen.extend(iter_into(seen, map_in_order(fail, range(50), threads=2)))
        assert seen == [0, 1, 2]
        assert max(done) < 12
        assert list(map_in_order(lambda i: i, range(3), threads=2)) == [0, 1, 2]

    def test_an_error_of_the_items_reaches_the_caller(self):
        def items():
            yield 1
            raise KeyError("no more")

        with pytest.raises(KeyError, match="no more"):
            list(map_in_order(lambda i: i, items(), threads=2))

    def test_nothing_is_nothing(self):
        assert list(map_in_order(str, [], threads=2)) == []


def iter_into(seen, results):
    for result in results:
        seen.append(result)
    return []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("engine", ["factored", "sequential"])
def test_logits_have_the_same_bits_for_any_number_of_threads(set_threads, dtype, engine):
    torch.manual_seed(0)
    model = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=4).eval()
    population = PerturbedPopulation(model, size=6, sigma=0.1)
    if engine == "sequential":
        members = [population.materialise(i, model) for i in range(6)]
        population = StackedPopulation.from_modules(members)
    x = torch.randn(6, 3, 1, 12, 12)
    results, used = [], []
    for threads in (1, 2, 3):
        set_threads(threads)
        options = {"in_dims": (0, 0), "dtype": dtype, "engine": engine}
        used.append(tinkering.plan(model, population, x, **options).tiles.threads)
        results.append(tinkering.forward(model, population, x, **options))
        assert torch.get_num_threads() == threads
    assert used == [1, 2, 3]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own():
    """It inherits the memory of the pool and none of its threads: it would wait for ever."""
    assert list(map_in_order(str, range(3), threads=2)) == ["0", "1", "2"]
    child = os.fork()
    if child == 0:
        os._exit(0 if list(map_in_order(str, range(3), threads=2)) == ["0", "1", "2"] else 1)
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
