"""A run that is resumed ends as if it had never ended: every strategy, every boundary."""

import pytest
from stands import STRATEGIES, Task, after, begin, same_bits

from tinkering.runs.checkpoint import Checkpoints
from tinkering.runs.evolve import Limits, evolve

GENERATIONS = 4
pytestmark = pytest.mark.parametrize("name", STRATEGIES)


def centre_of(strategy, outcome):
    return dict(strategy.centre(outcome.state))


def resumed(run, strategy, generations):
    """What a new process would do: nothing is there but the files."""
    task = Task()
    start = begin(strategy, task)
    checkpoints = Checkpoints(run, start, keep=1000)
    found = checkpoints.newest(pytest.fail)
    limits = Limits(generations=generations, measure_every=1e9)
    return evolve(strategy, found.state, task, limits, (), found.progress, checkpoints.save)


def test_from_every_generation_boundary(tmp_path, name):
    strategy = STRATEGIES[name]
    whole = after(strategy, GENERATIONS)
    assert not same_bits(centre_of(strategy, whole), Task().params())
    for boundary in range(1, GENERATIONS + 1):
        run = tmp_path / str(boundary)
        run.mkdir()
        after(strategy, boundary, keep=Checkpoints(run, begin(strategy, Task())).save)
        outcome = resumed(run, strategy, GENERATIONS)
        assert same_bits(centre_of(strategy, outcome), centre_of(strategy, whole))
        assert same_bits(outcome.state, whole.state)
        assert outcome.evaluations == whole.evaluations
        assert outcome.measured == whole.measured


def test_resumed_after_every_generation(tmp_path, name):
    strategy = STRATEGIES[name]
    after(strategy, 1, keep=Checkpoints(tmp_path, begin(strategy, Task())).save)
    for generations in range(2, GENERATIONS + 1):
        outcome = resumed(tmp_path, strategy, generations)
    assert same_bits(outcome.state, after(strategy, GENERATIONS).state)
