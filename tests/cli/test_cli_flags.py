"""What is known of each flag of ``tinkering evolve``, and what is made of it."""

import dataclasses
import shlex
from pathlib import Path
from typing import get_args

import pytest

from tinkering.cli import reproduce
from tinkering.cli.checks import require_of_its_strategy
from tinkering.cli.evolve import Evolve
from tinkering.cli.flag import Facts, Role, facts, types, values, with_values
from tinkering.cli.flags import Flags
from tinkering.cli.recipes import RECIPES
from tinkering.cli.resume import changed
from tinkering.cli.settings import resolve
from tinkering.data import load
from tinkering.errors import ArgumentError

FACTS = facts(Flags)
STRATEGIES = get_args(types(Flags)["strategy"])
OTHER = {
    "data": "idx:other",
    "width": 9,
    "blocks": (1, 1, 1, 2),
    "strategy": "weights",
    "population": 9,
    "sigma": 0.9,
    "fitness": "accuracy",
    "shift": 9,
    "seconds": 9.0,
    "generations": 9,
    "measure_every": 9.0,
    "validation": 9,
    "seed": 9,
    "threads": 9,
    "dtype": "float32",
    "memory": 9,
    "group": 9,
    "learning_rate": 0.9,
    "decay": 9.0,
    "averaging": 0.9,
    "shaping": "rank",
    "blur": 0.9,
    "readings": 9,
    "cells": 9,
    "images": 9,
    "statistics": "renewed",
    "antithetic": True,
    "rank": 9,
    "parents": 9,
    "elites": 9,
    "grow_from": 9,
    "grow_every": 9,
    "workers": 9,
    "ray_address": "auto",
    "gpus_per_worker": 0.9,
    "threads_per_worker": 9,
    "worker_timeout": 9.0,
    "out": Path("other"),
    "report": False,
    "tensorboard": True,
    "resume": Path("other"),
    "checkpoint_every": 9,
    "keep_checkpoints": 9,
    "if_disk_full": "go-on",
    "debug": True,
}
"""A value of each flag that is not its default."""
LIMITS = {"seconds", "generations", "measure_every"}
WORKERS = {name for name in OTHER if "worker" in name or name == "ray_address"}
WRITTEN = {"report", "tensorboard", "checkpoint_every", "keep_checkpoints", "if_disk_full"}
CALL = {"resume", "debug"}
RESULT = {*OTHER} - LIMITS - WORKERS - WRITTEN - CALL - {"out", "memory"}


class TestFacts:
    def test_every_flag_has_them(self):
        assert FACTS.keys() == OTHER.keys() == values(Evolve()).keys()
        for known in FACTS.values():
            assert isinstance(known, Facts)
            assert known.role in get_args(Role)
            assert {*known.defaults} <= {*STRATEGIES}

    def test_other_values_are_not_the_defaults(self):
        for name, value in values(Evolve()).items():
            assert value != OTHER[name]

    def test_of_one_group_are_for_the_same_strategies(self):
        for field in dataclasses.fields(Flags):
            if field.name not in OTHER:
                kinds = {tuple(known.defaults) for known in facts(field.default_factory).values()}
                assert len(kinds) == 1

    def test_values_are_found_whichever_group_they_are_in(self):
        other = with_values(Evolve(), OTHER)
        assert isinstance(other, Evolve)
        assert values(other) == OTHER


class TestStrategies:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_a_flag_of_another_is_refused_and_says_whose_it_is(self, strategy):
        for name, known in FACTS.items():
            if not known.defaults or strategy in known.defaults:
                require_of_its_strategy(name, OTHER[name], strategy)
                continue
            with pytest.raises(ArgumentError) as caught:
                require_of_its_strategy(name, OTHER[name], strategy)
            assert str(caught.value) == (
                f"{name}: needed --strategy {' or '.join(known.defaults)}, which it belongs to, "
                f"got {OTHER[name]} with --strategy {strategy}."
            )
            require_of_its_strategy(name, values(Evolve())[name], strategy)

    @pytest.mark.parametrize(
        ("strategy", "expected"),
        [
            (
                "feedback",
                {
                    "population": (16, 16),
                    "sigma": (0.1, 0.1),
                    "learning_rate": (0.004, 0.004),
                    "decay": (1000.0, 1000.0),
                    "averaging": (0.99, 0.99),
                    "shaping": ("raw", "relative"),
                    "blur": (0.0, 2.0),
                    "readings": (64, 1024),
                    "cells": (512, 512),
                    "images": (128, 128),
                    "statistics": ("renewed", "renewed"),
                    "shift": (2, 2),
                },
            ),
            (
                "activations",
                {
                    "population": (512, 512),
                    "group": (8, 8),
                    "sigma": (0.1, 0.1),
                    "learning_rate": (0.004, 0.004),
                    "decay": (200.0, 200.0),
                    "averaging": (0.98, 0.98),
                    "shaping": ("raw", "relative"),
                    "blur": (0.0, 2.0),
                    "readings": (1, 1024),
                    "shift": (2, 2),
                },
            ),
            (
                "weights",
                {
                    "population": (1024, 1024),
                    "group": (256, 256),
                    "sigma": (0.005, 0.005),
                    "learning_rate": (0.002, 0.002),
                    "decay": (300.0, 300.0),
                    "averaging": (0.98, 0.98),
                    "shaping": ("z-score", "z-score"),
                    "images": (1, 1),
                    "statistics": ("fixed", "fixed"),
                    "antithetic": (False, False),
                    "rank": (1, 1),
                    "shift": (0, 0),
                },
            ),
            (
                "genetic",
                {
                    "population": (256, 256),
                    "sigma": (0.01, 0.01),
                    "parents": (16, 16),
                    "elites": (1, 1),
                    "images": (64, 64),
                    "statistics": ("fixed", "fixed"),
                    "shift": (0, 0),
                },
            ),
        ],
    )
    def test_defaults(self, strategy, expected):
        found = {
            name: tuple(known.default(strategy, f, 8) for f in ("cross-entropy", "accuracy"))
            for name, known in FACTS.items()
            if strategy in known.defaults
        }
        assert found == expected

    @pytest.mark.parametrize(("width", "step"), [(2, 0.004), (8, 0.004), (16, 0.002), (64, 0.0005)])
    def test_a_wider_network_takes_smaller_steps(self, width, step):
        known = FACTS["learning_rate"]
        by_the_root = (step * 0.004) ** 0.5  # where norms are renewed
        steps = {"feedback": by_the_root, "activations": step, "weights": step / 2}
        for strategy in known.defaults:
            needed = pytest.approx(steps[strategy])
            for fitness in ("cross-entropy", "accuracy"):
                assert known.default(strategy, fitness, width) == needed

    @pytest.mark.parametrize(
        ("strategy", "given", "name", "expected"),
        [
            ("feedback", {"images": 100}, "population", 10),
            ("feedback", {"images": 101}, "population", 1),
            ("feedback", {"images": 5}, "population", 5),
            ("weights", {"population": 8}, "group", 8),
            ("weights", {"population": 1000}, "group", 250),
            ("weights", {}, "group", 256),
        ],
    )
    def test_some_divide_what_another_flag_says(self, strategy, given, name, expected, digits):
        dataset = load(digits)
        flags = values(with_values(Evolve(), {"strategy": strategy, **given}))
        assert resolve({k: flags[k] for k in FACTS}, dataset)[name] == expected

    def test_every_recipe_is_a_strategy(self):
        assert {*RECIPES} <= {*STRATEGIES}


class TestResuming:
    def test_refuses_exactly_what_is_part_of_the_result_or_the_place(self):
        saved = Evolve()
        for name, other in OTHER.items():
            given = with_values(saved, {name: other})
            if name not in RESULT | {"out", "memory"}:
                assert values(changed(saved, given))[name] == other
                continue
            with pytest.raises(ArgumentError, match=f"^{name}: needed "):
                changed(saved, given)

    def test_one_limit_takes_the_place_of_both(self):
        saved = with_values(Evolve(), {"seconds": 5.0, "generations": 5})
        given = with_values(saved, {"generations": 9})
        assert values(changed(saved, given)) == values(given) | {"seconds": None}
        assert changed(saved, saved) == saved


def test_the_command_that_repeats_a_run_has_exactly_what_tells_runs_apart():
    words = shlex.split(reproduce.command({k: v for k, v in OTHER.items() if k not in CALL}))
    given = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
    assert given == RESULT | LIMITS
