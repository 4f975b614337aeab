"""Tiles side by side: in order, each on one thread, and with the same bits as one by one."""

import os
import signal
import threading
import time

import pytest
import torch

import tinkering
from tinkering.engines import planning
from tinkering.engines import thread_pool as threads_module
from tinkering.engines.thread_pool import map_in_order
from tinkering.errors import ArgumentError
from tinkering.evaluation.entry import evaluate
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.noise import Stream
from tinkering.population import PerturbedActivations, PerturbedPopulation, StackedPopulation


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

        names = set(map_in_order(meet, range(2 * threads), threads))
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

    @pytest.mark.parametrize("before", [1, 2, 5])
    def test_one_thread_inside_operations_for_a_while(self, set_threads, before):
        set_threads(before)
        seen = []
        with pytest.raises(KeyError), threads_module.one_thread_inside():
            {}[seen.append(torch.get_num_threads())]
        assert seen == [1]
        assert torch.get_num_threads() == before

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


def in_time(function):
    """What a function returns or raises, where one that hangs fails the test."""
    came = []

    def run():
        try:
            came.append((function(), None))
        except BaseException as error:
            came.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert came, "it hangs"
    result, error = came[0]
    if error is not None:
        raise error
    return result


@pytest.fixture
def _own_pools():
    """A test that hangs leaves its pool's threads busy: no other test may be given them."""
    threads_module._pool.cache_clear()
    yield
    threads_module._pool.cache_clear()


@pytest.mark.usefixtures("_own_pools")
@pytest.mark.parametrize("threads", [1, 2])
class TestNested:
    def test_at_any_depth_in_order_and_in_the_thread_that_asks(self, threads):
        def look(depth, item):
            here = threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()
            if depth == 0:
                return item, {here}
            with torch.enable_grad():
                below = list(map_in_order(lambda i: look(depth - 1, i), range(3), threads))
            assert [number for number, _ in below] == [0, 1, 2] if depth == 1 else True
            return item, set.union({here}, *(seen for _, seen in below))

        results = in_time(
            lambda: list(map_in_order(lambda i: look(3, i), range(2 * threads + 3), threads))
        )
        assert [item for item, _ in results] == list(range(2 * threads + 3))
        for _, seen in results:
            (one,) = seen
            assert one[1:] == (1, False)

    def test_an_error_comes_through_and_the_pool_lives_on(self, threads):
        def fail(item):
            raise KeyError(item)

        def nested(item):
            return list(map_in_order(fail, [item], threads))

        with pytest.raises(KeyError, match="7"):
            in_time(lambda: list(map_in_order(nested, [7, 8, 9], threads)))
        assert in_time(lambda: list(map_in_order(str, [1, 2], threads))) == ["1", "2"]

    def test_one_that_is_closed_early_takes_no_further_items(self, threads):
        taken = []

        def nested(_):
            return next(map_in_order(lambda i: i, (taken.append(i) or i for i in range(9)), 1))

        assert in_time(lambda: list(map_in_order(nested, [0, 1], threads))) == [0, 0]
        assert taken == [0, 0]

    def test_a_fitness_may_evaluate_another_population(self, set_threads, threads):
        set_threads(threads)
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
        others = PerturbedPopulation(model.eval(), size=8, sigma=0.1)
        x, y = torch.randn(5, 6), torch.zeros(5, dtype=torch.long)
        set_threads(1)  # as it is in the threads of a pool, where the plan is made
        alone = tinkering.evaluate(model, others, x, y).fitness
        set_threads(threads)
        same = []

        def fitness(logits, labels):
            same.append(torch.equal(tinkering.evaluate(model, others, x, y).fitness, alone))
            return (
                -torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), labels.flatten(), reduction="none"
                )
                .view(labels.shape)
                .mean(1)
            )

        centre = {name: value.detach() for name, value in model.named_parameters()}
        members = PerturbedActivations(centre, 6, 0.1, Stream(0, 0), lambda f: f - f.mean(1, True))

        def evaluated():
            plain = evaluate(model, members, x, y)
            return plain.fitness, evaluate(model, members, x, y, fitness).fitness

        plain, nested = in_time(evaluated)
        assert torch.equal(plain, nested)
        assert same
        assert all(same)


@pytest.mark.usefixtures("_own_pools")
class TestThreadsThatCannotStart:
    @pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
    def test_is_refused_and_those_that_did_start_end(self, monkeypatch, set_threads, error):
        """What has started would wait for the others for ever, also when Python ends."""
        set_threads(2)
        begun, start = [], threading.Thread.start

        def few(thread):
            if not thread.name.startswith("tinkering"):
                return start(thread)
            if len(begun) == 3:
                raise error
            begun.append(thread)
            return start(thread)

        monkeypatch.setattr(threading.Thread, "start", few)
        with pytest.raises(ArgumentError, match="threads: needed as many threads as"):
            in_time(lambda: list(map_in_order(str, range(3), threads=1000)))
        for thread in begun:
            thread.join(10)
            assert not thread.is_alive()
        monkeypatch.undo()
        assert torch.get_num_threads() == 2
        assert in_time(lambda: list(map_in_order(str, range(3), threads=2))) == ["0", "1", "2"]

    def test_ctrl_c_meanwhile_is_passed_on_and_leaves_no_thread(self, monkeypatch):
        begun, start = [], threading.Thread.start

        def interrupted(thread):
            if not thread.name.startswith("tinkering"):
                return start(thread)
            if begun:
                raise KeyboardInterrupt
            begun.append(thread)
            return start(thread)

        monkeypatch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            in_time(lambda: list(map_in_order(str, range(3), threads=2)))
        begun[0].join(10)
        assert not begun[0].is_alive()


@pytest.mark.usefixtures("_own_pools")
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no such signals on this system")
def test_ctrl_c_while_waiting_leaves_the_items_that_have_not_begun():
    begun, go_on = [], threading.Event()

    def work(item):
        begun.append(item)
        go_on.wait(20)

    def interrupted():
        results = map_in_order(work, range(20), threads=2)
        here = threading.get_ident()
        threading.Timer(0.3, signal.pthread_kill, [here, signal.SIGINT]).start()
        next(results)

    # A shell's background job begins with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
    go_on.set()
    assert list(map_in_order(str, range(3), threads=2)) == ["0", "1", "2"]
    assert sorted(begun) == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("engine", ["factored", "sequential"])
def test_logits_have_the_same_bits_for_any_number_of_threads(
    monkeypatch, set_threads, dtype, engine
):
    monkeypatch.setattr(planning, "_LITTLE_WORK", 0)
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
    assert status_of_a_fork() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_so_does_one_that_is_forked_while_threads_start():
    """It inherits a lock that is held, and nobody who would release it."""
    with threads_module._starting:
        status = status_of_a_fork()
    assert status == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_so_does_one_that_is_forked_by_a_thread_of_a_pool():
    """It is that thread's copy, and of no pool any more."""
    (status,) = map_in_order(lambda _: status_of_a_fork(), [0], threads=1)
    assert status == 0


def status_of_a_fork():
    """How a forked process ends that has two threads do something."""
    child = os.fork()
    if child == 0:
        names = list(map_in_order(lambda _: threading.current_thread().name, range(3), threads=2))
        os._exit(0 if all(name.startswith("tinkering") for name in names) else 1)
    for _ in range(100):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return pytest.fail("the forked process hangs")
