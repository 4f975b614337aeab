"""Taking the time, and what is made of the readings."""

import time

import pytest
import torch

from benchmarks.bench.clock import Contender, Rates, compare


class TestRates:
    RATES = Rates({"ours": [10.0, 1.0, 12.0], "theirs": [5.0, 0.5, 4.0], "third": [6.0, 6.0, 6.0]})

    def test_the_median_is_taken(self):
        assert self.RATES.median("ours") == 10.0

    def test_a_ratio_is_that_of_readings_of_one_round(self):
        # The medians' ratio would be 2.5 too here, but not with a round that was slow for one.
        assert self.RATES.ratio("ours", "theirs") == 2.0

    def test_the_best_has_the_highest_median(self):
        assert self.RATES.best(["theirs", "third"]) == "third"

    def test_the_ranking_has_the_fastest_first(self):
        assert self.RATES.ranked() == ["ours", "third", "theirs"]


class TestCompare:
    def test_every_round_has_each_once_and_every_other_one_is_backwards(self):
        calls = []
        contenders = [Contender(name, lambda name=name: calls.append(name), 3) for name in "ab"]
        rates = compare(contenders, rounds=3, shortest=0.0)
        assert "".join(calls[-6:]) == "abbaab"
        assert {name: len(found) for name, found in rates.readings.items()} == {"a": 3, "b": 3}

    def test_a_rate_counts_images_a_second(self):
        rates = compare([Contender("a", lambda: time.sleep(0.02), 4)], rounds=1, shortest=0.05)
        assert 20 < rates.median("a") <= 200

    def test_short_calls_are_repeated(self):
        calls = []
        contender = Contender("a", lambda: calls.append(time.sleep(0.001)))
        compare([contender], rounds=1, shortest=0.01)
        assert 4 <= len(calls) <= 13

    def test_long_calls_are_not_asked_twice_before_they_count(self):
        calls = []
        contender = Contender("a", lambda: calls.append(time.sleep(0.02)))
        compare([contender], rounds=2, shortest=0.001)
        assert len(calls) == 3

    def test_no_gradients_are_kept(self):
        seen = []
        compare([Contender("a", lambda: seen.append(torch.is_grad_enabled()))], 1, 0.0)
        assert set(seen) == {False}


def test_a_ratio_needs_readings_of_the_same_rounds():
    with pytest.raises(ValueError, match="shorter"):
        Rates({"a": [1.0, 2.0], "b": [1.0]}).ratio("a", "b")
