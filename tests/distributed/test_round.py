"""A generation's parts: who gets which, and which result counts."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkering.distributed.round import Round


class Model:
    """A round, with what it must have come to noted beside it."""

    def __init__(self, parts, workers):
        self.round = Round(parts)
        self.parts = parts
        self.now = 0.0
        self.names = iter(range(10_000))
        self.working = {next(self.names): None for _ in range(workers)}
        self.handed, self.losses, self.first = Counter(), Counter(), {}

    def held(self):
        return Counter(part for part in self.working.values() if part is not None)

    def ask(self, worker):
        part = self.round.next_for(worker, self.now)
        if part is None:
            return
        assert 0 <= part < self.parts
        assert part not in self.first
        self.working[worker] = part
        self.handed[part] += 1
        assert self.held()[part] <= 2
        assert self.handed[part] == 1 or self.held()[part] == 2 or self.losses[part]

    def return_(self, worker):
        part, result = self.working[worker], (worker, self.handed.total())
        self.working[worker] = None
        self.round.returned(worker, part, result, self.now)
        self.first.setdefault(part, result)

    def lose(self, worker):
        part = self.working.pop(worker)
        self.working[next(self.names)] = None
        if part is not None:
            self.losses[part] += 1
        assert self.round.lost(worker) == (0 if part is None else self.losses[part])

    def check(self):
        assert self.round.complete == (len(self.first) == self.parts)
        assert self.round.repeated == sum(times - 1 for times in self.handed.values())
        if self.round.complete:
            assert self.round.results() == [self.first[part] for part in range(self.parts)]
            assert self.round.next_for("anybody", self.now + 1e9) is None


steps = st.lists(
    st.tuples(st.integers(0, 99), st.integers(0, 5), st.sampled_from([0.0, 0.1, 1.0, 5.0, 1e6])),
    max_size=80,
)


@given(parts=st.integers(0, 6), workers=st.integers(1, 4), steps=steps)
def test_each_part_has_the_first_of_its_results_whatever_happens(parts, workers, steps):
    model = Model(parts, workers)
    for chosen, what, later in steps:
        model.now += later
        worker = sorted(model.working)[chosen % len(model.working)]
        if what == 0:
            model.lose(worker)
        elif model.working[worker] is None:
            model.ask(worker)
        else:
            model.return_(worker)
        model.check()
    for worker in [worker for worker, part in model.working.items() if part is not None]:
        model.lose(worker)
    last = next(model.names)
    for _ in range(parts - len(model.first)):  # not one part is forgotten
        assert not model.round.complete
        model.working[last] = None
        model.ask(last)
        model.return_(last)
    assert model.round.complete
    model.check()


class TestSlow:
    @pytest.fixture
    def round_(self):
        """Three parts: a has the first, b did the others in 1 s and 3 s, median 2 s."""
        round_ = Round(3)
        assert [round_.next_for(name, 0.0) for name in "abc"] == [0, 1, 2]
        round_.returned("b", 1, "one", 1.0)
        round_.returned("c", 2, "two", 3.0)
        return round_

    def test_is_what_takes_more_than_twice_the_median(self, round_):
        assert round_.next_for("b", 4.0) is None
        assert round_.repeated == 0
        assert round_.next_for("b", 4.01) == 0
        assert round_.repeated == 1

    def test_is_not_given_to_its_own_worker(self, round_):
        assert round_.next_for("a", 100.0) is None

    def test_is_given_to_one_more_worker_and_no_other(self, round_):
        assert round_.next_for("b", 5.0) == 0
        assert round_.next_for("c", 100.0) is None

    def test_is_given_to_another_when_one_of_both_is_lost(self, round_):
        assert round_.next_for("b", 5.0) == 0
        assert round_.lost("a") == 1
        assert round_.next_for("c", 5.1) is None  # b has it, and has not had it for long
        assert round_.next_for("c", 9.1) == 0
        assert round_.repeated == 2

    def test_is_the_one_that_was_given_first(self):
        round_ = Round(3)
        for part, since in enumerate((1.0, 0.5, 2.0)):
            assert round_.next_for("abc"[part], since) == part
        round_.returned("c", 2, "two", 2.1)
        assert [round_.next_for("c", 9.0), round_.next_for("d", 9.0)] == [1, 0]

    def test_is_nothing_while_no_part_is_done(self):
        round_ = Round(2)
        assert [round_.next_for("a", 0.0), round_.next_for("b", 0.0)] == [0, 1]
        assert round_.next_for("c", 1e9) is None

    def test_the_later_result_is_dropped(self, round_):
        round_.next_for("b", 5.0)
        round_.returned("b", 0, "first", 6.0)
        assert round_.complete
        round_.returned("a", 0, "late", 7.0)
        assert round_.results() == ["first", "one", "two"]

    def test_the_later_result_does_not_move_the_median(self):
        round_ = Round(3)
        assert [round_.next_for(name, 0.0) for name in "abc"] == [0, 1, 2]
        round_.returned("b", 1, "one", 1.0)
        assert round_.next_for("b", 2.5) == 0
        round_.returned("b", 0, "nought", 3.5)  # 1 s each, so far
        round_.returned("a", 0, "late", 1000.0)
        assert round_.next_for("a", 1000.0) == 2


class TestLost:
    def test_a_part_waits_again_before_the_others(self):
        round_ = Round(3)
        assert [round_.next_for(name, 0.0) for name in "ab"] == [0, 1]
        assert round_.lost("b") == 1
        assert [round_.next_for(name, 0.0) for name in "cd"] == [1, 2]
        assert round_.repeated == 1

    def test_how_many_times_is_told(self):
        round_ = Round(1)
        for times in range(1, 4):
            round_.next_for(times, 0.0)
            assert round_.lost(times) == times

    def test_a_worker_that_has_nothing(self):
        round_ = Round(1)
        assert round_.lost("nobody") == 0
        assert round_.next_for("a", 0.0) == 0
        assert round_.repeated == 0

    def test_a_result_of_a_worker_that_was_given_up_counts(self):
        round_ = Round(1)
        round_.next_for("a", 0.0)
        round_.lost("a")
        round_.returned("a", 0, "after all", 1.0)
        assert round_.complete
        assert round_.next_for("b", 1.0) is None
        assert round_.results() == ["after all"]


def test_a_round_of_nothing_is_complete():
    assert Round(0).complete
    assert Round(0).results() == []
