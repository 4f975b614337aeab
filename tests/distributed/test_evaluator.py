"""Ray's workers in the place of a task: the same bits, whatever becomes of the workers."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time

import pytest
import tasks
import torch
from stands import same_bits
from tasks import STRATEGIES, For, Numbers, Once

from tinkering.distributed import evaluator as module
from tinkering.distributed import pool
from tinkering.distributed.evaluator import RayEvaluator
from tinkering.engines import planning as plan
from tinkering.engines.evaluation import Evaluation
from tinkering.errors import ArgumentError, ClusterError, TinkeringError

pytestmark = pytest.mark.usefixtures("one_thread")
GENERATIONS = 3


@pytest.fixture(scope="module", autouse=True)
def _tiles():
    """What `tasks.small_tiles` sets in this process too is put back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_NOISE", plan._NOISE)
        patch.setattr(plan, "images_in_cache", plan.images_in_cache)
        patch.setattr(plan, "_FEWEST_IMAGES", plan._FEWEST_IMAGES)
        yield


@pytest.fixture(scope="module")
def evaluator(cluster):
    """Of four workers, which stay for all tests of this file."""
    assert cluster.is_initialized()
    with RayEvaluator(tasks.Everything, 4) as evaluator:
        yield evaluator


@pytest.fixture
def workers(evaluator, monkeypatch):
    """Have it use so many of them, as if there were no others; all of these are there."""
    pool = evaluator._pool

    def use(count):
        while not all(seat.identity for seat in pool._seats[:count]):
            pool.events(seconds=1.0)
        free = lambda: [seat for seat in pool._seats[:count] if seat.waits_for is None]  # noqa: E731
        monkeypatch.setattr(pool, "free", free)
        monkeypatch.setattr(evaluator, "workers", count)
        return evaluator

    return use


@pytest.fixture
def one(workers):
    return workers(1)


@pytest.fixture
def two(workers):
    return workers(2)


@pytest.fixture(scope="module")
def impatient(cluster):
    """One worker, that must answer in a second, and what the user is told."""
    assert cluster.is_initialized()
    said = []
    with RayEvaluator(tasks.Everything, 1, timeout=1.0, say=said.append) as evaluator:
        assert (evaluator.exchange(), evaluator.lost) == ({}, 0)
        yield evaluator, said


def asking(do, **own):
    return For("obedient", Numbers(do, **own))


def right(generation):
    return Evaluation(tasks.double(range(16), generation))


def after(name, task):
    """The state of a strategy after some generations."""
    strategy, state = STRATEGIES[name], tasks.start_of(name)
    for generation in range(GENERATIONS):
        population = For(name, strategy.ask(state))
        state = strategy.tell(state, task.evaluate(population, generation))
    return state


class TestSameBits:
    @pytest.mark.parametrize("name", STRATEGIES)
    def test_as_in_this_process(self, workers, name):
        strategy = STRATEGIES[name]
        here = after(name, tasks.Everything())
        start = dict(strategy.centre(tasks.start_of(name)))
        assert not same_bits(dict(strategy.centre(here)), start)
        for count in (1, 2, 4):
            evaluator = workers(count)
            assert same_bits(after(name, evaluator), here), f"{count} workers"
            assert evaluator.exchange()["parts"] >= 3
            assert evaluator.exchange()["workers_lost"] == 0

    def test_of_every_member(self, workers):
        population = For("pairs", STRATEGIES["pairs"].ask(tasks.start_of("pairs")))
        evaluation = tasks.Everything().evaluate(population, 1)
        assert len(evaluation.fitness.unique()) == len(evaluation.fitness) == 64
        for count in (1, 2, 4):
            assert same_bits(workers(count).evaluate(population, 1), evaluation)

    def test_what_the_task_says_besides(self, evaluator):
        population = For("eight images", STRATEGIES["pairs"].ask(tasks.start_of("pairs")))
        assert evaluator.evaluate(population, 0).evaluations == 8 * 64
        assert evaluator.measure({"a": torch.ones(2)}) == {"test_loss": 1.0}


class TestExchange:
    def test_is_counted(self, workers):
        two = workers(4) and workers(2)
        assert two.evaluate(asking(tasks.double), 0).fitness.shape == (16,)
        counted = two.exchange()
        sizes = [len(pickle.dumps(Evaluation(torch.zeros(2)), protocol=5))] * 8
        assert 0 < counted.pop("bytes_sent") < 16384
        # PyTorch writes an address as a decimal number, which may have a digit more there.
        assert abs(counted.pop("bytes_received") - sum(sizes)) <= len(sizes)
        assert counted == {
            "workers": 4,
            "parts": 8,
            "parts_repeated": 0,
            "workers_lost": 0,
        }

    def test_what_is_sent_is_the_centre(self, two):
        """Not the members, the noise or the images."""
        state = tasks.start_of("pairs")
        centre = sum(4 * value.numel() for value in STRATEGIES["pairs"].centre(state).values())
        sent = {}
        for task in ("pairs", "groups", "one batch", "eight images"):
            two.evaluate(For(task, STRATEGIES["pairs"].ask(state)), 0)
            sent[task] = two.exchange()["bytes_sent"] - len(task)
            assert two.exchange()["bytes_received"] < 4 * 64 + 1200 * two.exchange()["parts"]
        assert len({*sent.values()}) == 1
        assert centre < sent["pairs"] < 1.5 * centre + 8192

    def test_of_a_genetic_algorithm_is_its_base_and_addresses(self, two):
        after("genetic", two)
        assert two.exchange()["bytes_sent"] < 8192


@pytest.mark.long
class TestLost:
    def test_killed_in_the_middle_of_a_part(self, one, tmp_path):
        before = one.lost
        got = one.evaluate(asking(Once(tmp_path / "m", 6, tasks.die)), 3)
        assert (tmp_path / "m").exists()
        assert same_bits(got, right(3))
        counted = one.exchange()
        assert (counted["workers_lost"], counted["parts_repeated"]) == (1, 1)
        assert one.lost == before + 1

    def test_another_takes_its_part_over(self, two, tmp_path):
        """That it is lost may be known only later."""
        before = two.lost
        assert same_bits(two.evaluate(asking(Once(tmp_path / "m", 6, tasks.die)), 3), right(3))
        assert two.exchange()["parts_repeated"] == 1
        lost = two.exchange()["workers_lost"]
        until = time.monotonic() + 30
        while two.lost == before and time.monotonic() < until:
            assert same_bits(two.evaluate(asking(tasks.double), 4), right(4))
            lost += two.exchange()["workers_lost"]
        assert (lost, two.lost) == (1, before + 1)

    @pytest.mark.parametrize("count", [1, 2])
    def test_killed_between_two_generations(self, two, count):
        """Of two workers, one or both."""
        before = two.lost
        for seat in two._pool._seats[:count]:
            os.kill(seat.identity.process, signal.SIGKILL)
        until = time.monotonic() + 30
        while two.lost < before + count and time.monotonic() < until:
            assert same_bits(two.evaluate(asking(tasks.double), 4), right(4))
        assert two.lost == before + count

    @pytest.mark.long
    @pytest.mark.parametrize("what", [tasks.hang, tasks.stop], ids=["hangs", "is stopped"])
    def test_does_not_answer(self, impatient, tmp_path, what):
        evaluator, said = impatient
        said.clear()
        (seat,) = evaluator._pool.started
        start = time.monotonic()
        got = evaluator.evaluate(asking(Once(tmp_path / "m", 6, what)), 2)
        assert 1.0 < time.monotonic() - start < 30.0
        assert same_bits(got, right(2))
        assert evaluator.exchange()["workers_lost"] == 1
        assert said == [
            f"worker {seat.number} has not answered for 1 s; another one starts in its place",
        ]

    @pytest.mark.long
    def test_a_slow_one_holds_up_nothing_but_itself(self, two, tmp_path):
        start = time.monotonic()
        got = two.evaluate(asking(tasks.OneIsSlow(tmp_path, 3.0)), 1)
        assert time.monotonic() - start < 2.0
        assert same_bits(got, right(1))
        counted = two.exchange()
        assert (counted["workers_lost"], counted["parts_repeated"]) == (0, 1)
        # What it comes to belongs to no later generation.
        while time.monotonic() - start < 3.5:
            assert same_bits(two.evaluate(asking(tasks.double), 7), right(7))

    @pytest.mark.long
    def test_over_one_part_again_and_again(self, two, monkeypatch):
        assert module._MOST_LOSSES == 5
        monkeypatch.setattr(module, "_MOST_LOSSES", 2)
        with pytest.raises(ClusterError) as caught:
            two.evaluate(asking(tasks.die_over_six), 0)
        assert str(caught.value) == (
            "Ray: needed workers that survive, got 2 lost over the same part of a generation. "
            "Do they run out of memory, or of time (timeout)? Ray's logs on their nodes say why "
            "they ended."
        )
        assert same_bits(two.evaluate(asking(tasks.double), 7), right(7))


class TestRaised:
    def test_a_users_error(self, two):
        with pytest.raises(tasks.OwnError) as caught:
            two.evaluate(asking(tasks.raise_own), 5)
        assert type(caught.value) is tasks.OwnError
        assert caught.value.args == ("mine", 2, 5)
        assert "in raise_own" in str(caught.value.__cause__)

    def test_one_of_ours(self, two):
        with pytest.raises(ArgumentError) as caught:
            two.evaluate(asking(tasks.raise_ours), 5)
        assert type(caught.value) is ArgumentError
        assert str(caught.value) == "images: needed some, got none. Load some."

    def test_one_that_cannot_travel(self, two):
        lost = two.lost
        with pytest.raises(Exception, match="AwkwardError: a leak in the roof"):
            two.evaluate(asking(tasks.raise_awkward), 5)
        assert two.lost == lost

    def test_nothing_of_it_is_left_for_the_next_generation(self, two):
        for do in (tasks.raise_own, tasks.raise_ours):
            with pytest.raises((tasks.OwnError, ArgumentError)):
                two.evaluate(asking(do), 5)
            assert same_bits(two.evaluate(asking(tasks.double), 6), right(6))

    def test_fitness_of_another_shape(self, two):
        with pytest.raises(ArgumentError) as caught:
            two.evaluate(asking(tasks.one_number), 0)
        assert str(caught.value) == (
            "make_task: needed a task whose evaluate returns an Evaluation with fitness of shape "
            "[2] for 2 members, got []. One whose members are others needs parts and part of its "
            "own."
        )

    def test_where_workers_make_their_task(self, cluster):
        assert cluster.is_initialized()
        with pytest.raises(tasks.OwnError) as caught:
            RayEvaluator(tasks.make_badly, 1, here=tasks.Everything())
        assert caught.value.args == ("no data here",)


class TestRefused:
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"workers": 0}, "workers: needed an integer of at least 1, got 0."),
            ({"threads": 0}, "threads: needed an integer of at least 1, got 0."),
            (
                {"gpus_per_worker": -1.0},
                "gpus_per_worker: needed a finite number of at least 0, got -1.0.",
            ),
            (
                {"gpus_per_worker": float("inf")},
                "gpus_per_worker: needed a finite number of at least 0, got inf.",
            ),
            ({"timeout": 0.0}, "timeout: needed a finite number of seconds above 0, got 0.0."),
            (
                {"timeout": float("nan")},
                "timeout: needed a finite number of seconds above 0, got nan.",
            ),
        ],
    )
    def test_a_number_out_of_range(self, given, said):
        with pytest.raises(ArgumentError) as caught:
            RayEvaluator(pytest.fail, **given)
        assert str(caught.value) == said

    def test_without_ray(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(ArgumentError) as caught:
            RayEvaluator(tasks.Everything, 2)
        assert str(caught.value) == (
            "workers: needed the package ray, got a Python without it. "
            "pip install 'tinkering[ray]' installs it."
        )

    def test_more_than_the_cluster_has(self, cluster, monkeypatch):
        """They are waited for, since nodes may come."""
        monkeypatch.setattr(pool, "_PATIENCE", 0.1)
        monkeypatch.setattr(pool, "_START_TIMEOUT", 1.5)
        said, cpus = [], int(cluster.cluster_resources()["CPU"])
        with pytest.raises(ClusterError) as caught:
            RayEvaluator(tasks.Everything, 1, threads=cpus + 1, say=said.append)
        needs = rf"Each needs CPU {cpus + 1}; the cluster has CPU {cpus} \(\d+ free\)"
        assert len(said) == 1
        assert re.fullmatch(f"0 of 1 workers have started. {needs}", said[0])
        got = rf"Ray: needed a worker that starts, got none for \d s. {needs}."
        assert re.fullmatch(got, str(caught.value))

    def test_workers_that_end_while_they_start(self, cluster, monkeypatch):
        assert cluster.is_initialized()
        monkeypatch.setattr(pool, "_MOST_FAILED_STARTS", 2)
        with pytest.raises(ClusterError) as caught:
            RayEvaluator(tasks.make_never, 1, here=tasks.Everything())
        said = "Ray: needed a worker that starts, got 2 that ended while they did. The last one: "
        assert str(caught.value).startswith(said)


def test_ray_is_imported_by_none_who_does_not_ask_for_it():
    source = (
        "import sys, tinkering; tinkering.EvolutionStrategy, tinkering.Classification; "
        "import tinkering.cli.program, tinkering.distributed.evaluator; "
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", source], check=True, timeout=60)


def test_an_error_of_the_cluster_is_one_of_the_family():
    assert issubclass(ClusterError, TinkeringError)
