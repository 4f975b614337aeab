"""How a task without parts of its own is divided."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinkering.distributed.division import Divisible, divisible
from tinkering.engines.evaluation import Evaluation, merged
from tinkering.errors import ArgumentError


class Half:
    """Half of each number."""

    def evaluate(self, population, generation):
        fitness = torch.tensor([number / 2 + generation for number in population])
        return Evaluation(fitness, evaluations=3 * len(population))

    def measure(self, params):
        return {"test_loss": float(len(params))}


class InOneGo(Half):
    """A task with a part of its own."""

    def parts(self, population, count):
        del count
        return [slice(0, len(population))]

    def part(self, population, generation, part):
        return self.evaluate(population[part], generation)


class Wrong(Half):
    def __init__(self, came):
        self.came = came

    def evaluate(self, population, generation):
        del population, generation
        return self.came


@given(members=st.integers(0, 300), count=st.integers(1, 40))
def test_slices_cover_all_members_and_pairs_stay_whole(members, count):
    parts = divisible(Half()).parts(range(members), count)
    assert [i for part in parts for i in range(members)[part]] == [*range(members)]
    assert all(part.step is None and 0 <= part.start < part.stop <= members for part in parts)
    sizes = [part.stop - part.start for part in parts]
    assert all(size % 2 == 0 for size in sizes[:-1])
    assert len({*sizes[:-1]}) <= 1
    assert sizes[-1:] <= sizes[:1]
    assert len(parts) <= count
    assert len(parts) > count / 2 or 2 in sizes[:1] or members <= 2


def test_about_as_many_parts_as_were_asked_for():
    for members, count, expected in ((64, 8, 8), (64, 7, 7), (16, 100, 8), (5, 1, 1), (1, 4, 1)):
        assert len(divisible(Half()).parts(range(members), count)) == expected


def test_the_parts_together_are_the_whole():
    task, population = divisible(Half()), range(11)
    parts = task.parts(population, 3)
    assert len(parts) == 3
    together = merged([task.part(population, 4, part) for part in parts])
    for whole in (Half().evaluate(population, 4), task.evaluate(population, 4)):
        assert torch.equal(together.fitness, whole.fitness)
        assert together.evaluations == whole.evaluations == 33


def test_what_is_not_divided_is_the_tasks():
    task = divisible(Half())
    assert task.measure({"a": torch.ones(1)}) == {"test_loss": 1.0}


def test_a_task_with_parts_of_its_own_is_used_as_it_is():
    task = InOneGo()
    assert divisible(task) is task
    assert isinstance(task, Divisible)
    assert not isinstance(Half(), Divisible)


@pytest.mark.parametrize(
    ("came", "said"),
    [
        (Evaluation(torch.tensor(1.0)), "[]"),
        (Evaluation(torch.ones(3)), "[3]"),
        (Evaluation(torch.ones(4, 1)), "[4, 1]"),
        (torch.ones(4), "Tensor"),
        ([1.0, 2.0, 3.0, 4.0], "list"),
        (None, "NoneType"),
    ],
)
def test_a_fitness_that_is_not_one_number_a_member(came, said):
    with pytest.raises(ArgumentError) as caught:
        divisible(Wrong(came)).part(range(10), 0, slice(2, 6))
    assert str(caught.value) == (
        "make_task: needed a task whose evaluate returns an Evaluation with fitness of shape [4] "
        f"for 4 members, got {said}. One whose members are others needs parts and part of its own."
    )


def test_a_population_that_cannot_be_sliced():
    class Whole:
        def evaluate(self, population, generation): ...

        def measure(self, params): ...

    with pytest.raises(ArgumentError) as caught:
        divisible(Whole()).parts(object(), 4)
    needed = "a task with parts of its own, for object"
    assert str(caught.value) == f"make_task: needed {needed}, got Whole."
