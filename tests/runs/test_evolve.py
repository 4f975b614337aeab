"""The loop: limits, records, callbacks and measurements, on a clock that is moved by hand."""

import math
import signal

import pytest
from fakes import Clock, Counting, Evaluator

from tinkering.errors import TinkeringError
from tinkering.runs.checkpoint import Progress
from tinkering.runs.evolve import Limits, evolve


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("tinkering.runs.evolve.time", clock)
    return clock


def press(number=signal.SIGINT):
    signal.raise_signal(number)


def run(clock, limits, callbacks=(), **settings):
    """An outcome, the records, and what the evaluator saw."""
    evaluator, records = Evaluator(clock, **settings), []
    outcome = evolve(Counting(), 0, evaluator, limits, [records.append, *callbacks])
    return outcome, records, evaluator


class TestLimits:
    @pytest.mark.parametrize(
        ("seconds", "generations", "expected"),
        [
            (None, 5, (5, "generations")),
            (4.0, None, (4, "seconds")),
            (3.5, None, (4, "seconds")),
            (10.0, 5, (5, "generations")),
            (3.0, 5, (3, "seconds")),
            (None, 1, (1, "generations")),
            (0.5, 100, (1, "seconds")),
        ],
    )
    def test_whichever_comes_first(self, clock, seconds, generations, expected):
        outcome, records, evaluator = run(clock, Limits(seconds, generations))
        assert (outcome.generations, outcome.reason) == expected
        assert len(records) == len(evaluator.populations) == outcome.state == expected[0]

    @pytest.mark.parametrize(
        ("limits", "reason"), [(Limits(generations=0), "generations"), (Limits(0.0), "seconds")]
    )
    def test_a_limit_of_zero_measures_the_start(self, clock, limits, reason):
        outcome, records, evaluator = run(clock, limits)
        assert (outcome.generations, outcome.reason, outcome.evaluations) == (0, reason, 0)
        assert records == evaluator.populations == []
        assert outcome.measured == {"test_accuracy": 0.0, "test_loss": 0.0}
        assert evaluator.measured == [0]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "seconds: needed a limit: seconds, generations or both, got None."),
            ({"seconds": -1.0}, "seconds: needed a finite number of at least 0, got -1.0."),
            ({"seconds": math.nan}, "seconds: needed a finite number of at least 0, got nan."),
            ({"generations": -1}, "generations: needed a finite number of at least 0, got -1."),
            (
                {"generations": 1, "measure_every": -2.0},
                "measure_every: needed a finite number of at least 0, got -2.0.",
            ),
        ],
    )
    def test_message(self, arguments, message):
        with pytest.raises(ValueError, match="needed") as caught:
            Limits(**arguments)
        assert str(caught.value) == message
        assert isinstance(caught.value, TinkeringError)


class TestRecords:
    def test_count_generations_images_and_seconds(self, clock):
        outcome, records, _ = run(clock, Limits(generations=3), seconds=2.0, measuring=0.5)
        assert records == [
            {
                "generation": g,
                "evaluations": 7 * g,
                "seconds": 2.0 * g,
                "fitness_mean": 2.0,
                "fitness_best": 3.0,
                "fitness_low": 1.0,
                "fitness_high": 3.0,
                **({"test_accuracy": 0.03, "test_loss": -3.0} if g == 3 else {}),
            }
            for g in (1, 2, 3)
        ]
        assert (outcome.evaluations, outcome.seconds) == (21, 6.5)

    def test_hand_on_what_was_asked_evaluated_and_told(self, clock):
        strategy, evaluator = Counting(), Evaluator(clock, fitness=(0.5, -1.0, 2.0))
        outcome = evolve(strategy, 4, evaluator, Limits(generations=2))
        # The strategy's own count goes on; the evaluator's begins with this run.
        assert evaluator.populations == [
            ("population of generation 4", 0),
            ("population of generation 5", 1),
        ]
        assert strategy.told == [[0.5, -1.0, 2.0]] * 2
        assert outcome.state == 6

    @pytest.mark.parametrize(
        ("fitness", "mean", "best"),
        [
            ((1.0, 2.0, 6.0), 3.0, 6.0),
            ((math.nan, 2.0, 4.0), 3.0, 4.0),
            ((math.inf, -math.inf, 2.0), 2.0, 2.0),
            ((math.nan, math.inf), -math.inf, -math.inf),
        ],
    )
    def test_what_is_not_finite_does_not_hide_the_rest(self, clock, fitness, mean, best):
        _, records, _ = run(clock, Limits(generations=1), fitness=fitness)
        assert (records[0]["fitness_mean"], records[0]["fitness_best"]) == (mean, best)

    def test_tell_how_far_most_members_spread(self, clock):
        fitness = (*range(100, -1, -1), math.nan, math.inf, -math.inf)
        _, records, _ = run(clock, Limits(generations=1), fitness=[float(f) for f in fitness])
        assert (records[0]["fitness_low"], records[0]["fitness_high"]) == (10.0, 90.0)
        _, records, _ = run(clock, Limits(generations=1), fitness=(math.nan,))
        assert records[0]["fitness_low"] == records[0]["fitness_high"] == -math.inf

    def test_reach_the_callbacks_in_order(self, clock):
        calls = []
        callbacks = [lambda r, name=n: calls.append((name, r["generation"])) for n in "abc"]
        run(clock, Limits(generations=2), callbacks)
        assert calls == [(name, g) for g in (1, 2) for name in "abc"]


class TestMeasurements:
    @pytest.mark.parametrize(
        ("every", "measuring", "expected"),
        [
            (0.0, 0.0, [1, 2, 3, 4, 5, 6, 7]),
            (3.0, 0.0, [3, 6, 7]),
            (2.5, 0.0, [3, 6, 7]),
            (100.0, 0.0, [7]),
            (3.0, 10.0, [3, 6, 7]),  # counted from the end of the measurement before
        ],
    )
    def test_come_at_their_interval_and_at_the_end(self, clock, every, measuring, expected):
        limits = Limits(generations=7, measure_every=every)
        _, records, evaluator = run(clock, limits, measuring=measuring)
        assert evaluator.measured == expected
        assert [r["generation"] for r in records if "test_accuracy" in r] == expected
        assert all(r["test_loss"] == -r["generation"] for r in records if "test_loss" in r)

    @pytest.mark.parametrize("limits", [Limits(generations=3), Limits(3.0), Limits(2.1)], ids=str)
    def test_the_last_is_that_of_the_final_centre(self, clock, limits):
        outcome, records, evaluator = run(clock, limits)
        assert outcome.state == 3
        assert outcome.measured == {"test_accuracy": 0.03, "test_loss": -3.0}
        assert records[-1]["test_accuracy"] == 0.03
        assert evaluator.measured == [3]

    def test_a_long_measurement_does_not_run_past_the_seconds_by_a_generation(self, clock):
        limits = Limits(10.0, measure_every=2.0)
        outcome, _, evaluator = run(clock, limits, measuring=9.0)
        assert evaluator.measured[-1] == outcome.generations
        assert outcome.reason == "seconds"


class TestGoingOn:
    def test_counts_on_from_what_was_done(self, clock):
        done = Progress(4, 28, 8.5)
        records, evaluator = [], Evaluator(clock)
        outcome = evolve(Counting(), 4, evaluator, Limits(generations=6), [records.append], done)
        assert [(r["generation"], r["evaluations"], r["seconds"]) for r in records] == [
            (5, 35, 9.5),
            (6, 42, 10.5),
        ]
        assert evaluator.populations[0] == ("population of generation 4", 4)
        assert (outcome.generations, outcome.evaluations, outcome.seconds) == (6, 42, 10.5)
        assert outcome.measured["test_loss"] == -6.0

    def test_limits_count_over_the_whole_run(self, clock):
        outcome = evolve(Counting(), 4, Evaluator(clock), Limits(10.0), (), Progress(4, 28, 8.5))
        assert (outcome.generations, outcome.reason) == (6, "seconds")

    @pytest.mark.parametrize("limits", [Limits(generations=4), Limits(8.0)], ids=str)
    def test_nothing_left_measures_where_it_stands(self, clock, limits):
        evaluator = Evaluator(clock)
        outcome = evolve(Counting(), 4, evaluator, limits, (), Progress(4, 28, 8.5, {"a": 1}))
        assert (outcome.state, outcome.generations, outcome.evaluations) == (4, 4, 28)
        assert outcome.measured["test_loss"] == -4.0
        assert outcome.troubles == {"a": 1}
        assert evaluator.populations == []

    def test_measurements_keep_their_interval(self, clock):
        limits = Limits(generations=9, measure_every=3.0)
        evaluator = Evaluator(clock)
        evolve(Counting(), 4, evaluator, limits, (), Progress(4, 28, 4.0))
        assert evaluator.measured == [7, 9]


class TestKeeping:
    def test_after_every_generation_and_after_its_record(self, clock):
        seen = []
        evolve(
            Counting(),
            0,
            Evaluator(clock, measuring=0.5),
            Limits(generations=2),
            [lambda record: seen.append(record["generation"])],
            keep=lambda progress, state: seen.append((progress, state)),
        )
        # The measurement at the end is time of the run too.
        assert seen == [1, (Progress(1, 7, 1.0), 1), 2, (Progress(2, 14, 2.5), 2)]

    def test_what_is_kept_leads_to_the_same_end(self, clock):
        kept, limits = [], Limits(generations=5)
        whole = evolve(
            Counting(), 0, Evaluator(clock), limits, keep=lambda *both: kept.append(both)
        )
        for progress, state in kept:
            outcome = evolve(Counting(), state, Evaluator(clock), limits, (), progress)
            assert outcome == whole

    def test_a_disk_that_fails_ends_the_loop(self, clock):
        def full(progress, _):
            if progress.generation == 2:
                raise OSError(28, "No space left on device")

        before = signal.getsignal(signal.SIGTERM)
        evaluator = Evaluator(clock)
        with pytest.raises(OSError, match="No space"):
            evolve(Counting(), 0, evaluator, Limits(generations=5), keep=full)
        assert len(evaluator.populations) == 2
        assert signal.getsignal(signal.SIGTERM) is before


class TestTroubles:
    @pytest.mark.parametrize(
        ("fitness", "trouble"),
        [
            ((1.0, 1.0), "constant fitness"),
            ((math.nan, 1.0), "some members' fitness not finite"),
            ((math.nan, math.inf), "no finite fitness"),
        ],
    )
    def test_are_in_the_record_and_counted_in_the_outcome(self, clock, fitness, trouble):
        outcome, records, _ = run(clock, Limits(generations=3), fitness=fitness)
        assert [record["troubles"] for record in records] == [[trouble]] * 3
        assert outcome.troubles == {trouble: 3}

    def test_are_counted_on(self, clock):
        done = Progress(2, 14, 2.0, {"constant fitness": 2, "centre diverged": 1})
        kept = []
        outcome = evolve(
            Counting(),
            2,
            Evaluator(clock, fitness=(1.0, 1.0)),
            Limits(generations=3),
            (),
            done,
            lambda progress, _: kept.append(progress.troubles),
        )
        assert outcome.troubles == {"constant fitness": 3, "centre diverged": 1}
        assert kept == [outcome.troubles]
        assert done.troubles["constant fitness"] == 2

    def test_an_update_that_the_strategy_left_out(self, clock):
        class State(int):
            told = "update not finite"

        class Leaving(Counting):
            def tell(self, state, evaluation):
                return State(super().tell(state, evaluation))

        outcome = evolve(Leaving(), 0, Evaluator(clock), Limits(generations=2))
        assert outcome.troubles == {"update not finite": 2}

    def test_a_centre_that_goes_bad(self, clock):
        class Diverging(Evaluator):
            def measure(self, params):
                losses = {1: 2.0, 2: 30.0, 3: math.nan}
                return {"test_loss": losses[int(params["generation"])]}

        records = []
        limits = Limits(generations=3, measure_every=0.0)
        evolve(Counting(), 0, Diverging(clock), limits, [records.append])
        assert [record.get("troubles") for record in records] == [
            None,
            ["centre diverged"],
            ["centre's loss not finite"],
        ]


class TestInterrupt:
    def test_sigterm_ends_with_a_complete_outcome_too(self, clock):
        before = signal.getsignal(signal.SIGTERM)
        during = {("fitness", 2): lambda: press(signal.SIGTERM)}
        outcome, records, evaluator = run(clock, Limits(generations=100), during=during)
        assert outcome.reason == "terminated"
        assert outcome.generations == len(records) == evaluator.measured[-1] == 3
        assert signal.getsignal(signal.SIGTERM) is before

    @pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
    def test_whatever_comes_second_is_obeyed_at_once(self, clock, second):
        during = {("fitness", 1): lambda: (press(signal.SIGTERM), press(second))}
        with pytest.raises(KeyboardInterrupt):
            run(clock, Limits(generations=100), during=during)

    @pytest.mark.parametrize("what", ["fitness", "measure"])
    def test_ctrl_c_ends_with_a_complete_outcome(self, clock, what):
        before = signal.getsignal(signal.SIGINT)
        moment = (what, 2 if what == "fitness" else 3)
        outcome, records, evaluator = run(
            clock, Limits(generations=100, measure_every=0.0), during={moment: press}
        )
        assert outcome.reason == "interrupted"
        # The generation under way is finished, and what was measured is the last centre.
        assert outcome.generations == len(records) == outcome.state
        assert 3 <= outcome.generations <= 4
        assert outcome.measured["test_loss"] == -outcome.state
        assert evaluator.measured[-1] == outcome.state
        assert records[-1]["test_loss"] == -outcome.state
        assert signal.getsignal(signal.SIGINT) is before

    def test_ctrl_c_in_a_callback_ends_with_a_complete_outcome_too(self, clock):
        def callback(record):
            if record["generation"] == 2:
                press()

        outcome, records, evaluator = run(clock, Limits(generations=100), [callback])
        assert outcome.reason == "interrupted"
        assert outcome.generations == len(records) == outcome.state
        assert 2 <= outcome.generations <= 3
        assert outcome.measured["test_loss"] == -outcome.state
        assert evaluator.measured[-1] == outcome.state
        assert records[-1]["test_loss"] == -outcome.state

    def test_a_second_ctrl_c_is_obeyed_at_once(self, clock):
        before = signal.getsignal(signal.SIGINT)
        evaluator = Evaluator(clock, during={("fitness", 1): lambda: (press(), press())})
        with pytest.raises(KeyboardInterrupt):
            evolve(Counting(), 0, evaluator, Limits(generations=100))
        assert len(evaluator.populations) == 2
        assert signal.getsignal(signal.SIGINT) is before

    def test_the_handler_is_given_back_after_a_mistake(self, clock):
        def fail():
            raise RuntimeError("the evaluator broke")

        before = signal.getsignal(signal.SIGINT)
        evaluator = Evaluator(clock, during={("fitness", 1): fail})
        with pytest.raises(RuntimeError, match="broke"):
            evolve(Counting(), 0, evaluator, Limits(generations=5))
        assert signal.getsignal(signal.SIGINT) is before
