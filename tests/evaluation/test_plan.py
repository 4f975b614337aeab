"""Portions: whatever is done at a time, and in how much memory, the results are the same."""

import dataclasses
import re

import pytest
import torch
from small_nets import (
    InPlace,
    assert_close,
    convnet,
    depends_on_data,
    fitness_of,
    inputs_for,
    loop,
    made,
    modules_of,
    population_of,
    resnet,
    seen,
)

from tinkering.engines import planning, table
from tinkering.engines.job import Tiles
from tinkering.engines.table import ENGINES
from tinkering.errors import ArgumentError
from tinkering.evaluation.entry import forward, plan

both_in_dims = pytest.mark.parametrize("in_dims", [(0, None), (0, 0)], ids=str)
MEMBERS, IMAGES = 9, 5


@pytest.fixture
def tiled(monkeypatch):
    """Make every evaluation that follows use the tiles it is called with."""
    make_plan = table.make_plan

    def use(members, images, threads=1):
        def planned(*args, **kwargs):
            tiles = Tiles(members, images, threads)
            return dataclasses.replace(make_plan(*args, **kwargs), tiles=tiles)

        monkeypatch.setattr(table, "make_plan", planned)

    return use


def images_for(build, in_dims):
    return inputs_for(build, *([MEMBERS] if in_dims == (0, 0) else []), IMAGES)


class TestTiles:
    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("norm", ["running", "batch"])
    @both_in_dims
    def test_results_do_not_depend_on_them(self, tiled, in_dims, norm, engine):
        model = made(InPlace)
        population = population_of(model, size=MEMBERS, antithetic=False)
        x = images_for(InPlace, in_dims)
        y = torch.randint(5, x.shape[:-3])
        options = {"engine": engine, "norm": norm}
        whole = forward(model, population, x, in_dims, **options)
        assert_close(whole, loop(population, x, in_dims, of_batch=norm == "batch"))
        fitness = fitness_of(model, population, x, y, in_dims=in_dims, **options)
        for members, images in ((1, 1), (1, 64), (7, 7), (64, 1)):
            # The statistics of a batch need all of it; the planner never cuts it then.
            tiled(members, max(images, IMAGES) if norm == "batch" else images)
            assert_close(forward(model, population, x, in_dims, **options), whole, 1e-5)
        again = fitness_of(model, population, x, y, in_dims=in_dims, **options)
        torch.testing.assert_close(again, fitness, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("engine", ["factored", "sequential"])
    @both_in_dims
    def test_nor_on_the_number_of_threads(self, tiled, in_dims, engine):
        model = made(InPlace)
        population = population_of(model, size=MEMBERS, antithetic=False)
        x = images_for(InPlace, in_dims)
        whole = forward(model, population, x, in_dims, engine=engine)
        tiled(2, 4, threads=3)
        assert_close(forward(model, population, x, in_dims, engine=engine), whole, 1e-5)

    @pytest.mark.parametrize("engine", ENGINES)
    @both_in_dims
    def test_the_parts_of_a_population_make_the_whole_in_any_order(self, in_dims, engine):
        model = made(InPlace)
        x = images_for(InPlace, in_dims)
        population = population_of(model, size=MEMBERS + 1)[1:]
        whole = forward(model, population, x, in_dims, engine=engine)
        for start, stop in ((7, 9), (6, 7), (0, 1), (1, 6), (1, 2)):
            own = x if in_dims == (0, None) else x[start:stop]
            part = forward(model, population[start:stop], own, in_dims, engine=engine)
            assert_close(part, whole[start:stop], 1e-5)

    def test_more_members_than_are_drawn_at_once(self):
        model = made(convnet)
        population = population_of(model, size=1028)
        x = inputs_for(convnet, 1028, 1)
        result = forward(model, population, x, (0, 0))
        for i in (0, 1, 1022, 1023, 1024, 1025, 1027):
            assert_close(result[i : i + 1], loop(population[i : i + 1], x[i : i + 1], (0, 0)))

    @pytest.mark.parametrize("engine", ["factored", "sequential"])
    def test_a_batch_of_more_images_than_a_run(self, engine):
        model = made(convnet)
        population = population_of(model, size=2)
        x = inputs_for(convnet, 4100)
        found = plan(model, population, x, engine=engine)
        assert found.tiles.images < 4100
        assert_close(forward(model, population, x, engine=engine), loop(population, x))

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("norm", ["running", "batch"])
    def test_a_member_does_not_see_its_neighbours_images(self, norm, engine):
        model = made(InPlace)
        population = population_of(model, size=6)
        x = inputs_for(InPlace, 6, 3)
        before = forward(model, population, x, (0, 0), engine=engine, norm=norm)
        x[[0, 1, 3, 4, 5]] = 100 * torch.randn(5, 3, 1, 8, 8)
        after = forward(model, population, x, (0, 0), engine=engine, norm=norm)
        assert_close(after[2:3], before[2:3], 1e-5)
        assert not torch.allclose(after[3], before[3])


class TestMemory:
    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("norm", ["running", "batch"])
    @both_in_dims
    def test_less_memory_gives_smaller_tiles_and_the_same_results(self, in_dims, norm, engine):
        model = made(InPlace)
        population = population_of(model, size=MEMBERS, antithetic=False)
        arguments = model, population, images_for(InPlace, in_dims), in_dims
        options = {"engine": engine, "norm": norm}
        whole = forward(*arguments, **options)
        found = plan(*arguments, **options)
        size, least = found.tiles.members * found.tiles.images, self.least(arguments, options)
        sizes = [size]
        for budget in (found.needed, (found.needed + least) // 2, least):
            smaller = plan(*arguments, **options, memory=budget)
            assert smaller.needed <= smaller.budget == budget
            sizes.append(smaller.tiles.members * smaller.tiles.images)
            assert_close(forward(*arguments, **options, memory=budget), whole, 1e-5)
        assert sizes == sorted(sizes, reverse=True)
        if least < found.needed:
            assert sizes[-1] < size
        if norm == "batch":
            assert smaller.tiles.images >= IMAGES

    def least(self, arguments, options):
        """The bytes that the refusal of one byte names, and one less is refused as well."""
        with pytest.raises(ArgumentError) as caught:
            plan(*arguments, **options, memory=1)
        number = re.search(r"needed at least ([\d,]+) bytes", str(caught.value))
        least = int(number[1].replace(",", ""))
        with pytest.raises(ArgumentError, match="needed at least"):
            forward(*arguments, **options, memory=least - 1)
        return least

    @pytest.mark.parametrize("build", [resnet, depends_on_data], ids=lambda build: build.__name__)
    def test_the_default_is_a_part_of_what_is_free(self, build):
        found = plan(made(build), modules_of(build), inputs_for(build, 3))
        assert 0 < found.needed <= found.budget

    def test_fitness_needs_no_room_for_logits(self):
        model = made(InPlace)
        population = population_of(model, size=4)
        x, y = inputs_for(InPlace, 40), torch.zeros(40, dtype=torch.long)
        least = self.least((model, population, x), {"engine": "sequential"})
        memory = least - 4 * 40 * 5 * 4 + 4 * 4  # a number each, in place of 40 x 5
        assert len(fitness_of(model, population, x, y, engine="sequential", memory=memory)) == 4
        with pytest.raises(ArgumentError, match="at least"):
            fitness_of(model, population, x, y, engine="sequential", memory=memory - 1)


class TestPortions:
    """Threads take them as they get free, so one that is held up holds up no other."""

    def tiles(self, monkeypatch, members, threads, images=64, draw=1 << 20, little=0):
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(planning, "_LITTLE_WORK", little)
        monkeypatch.setattr(planning._Sizes, "images_in_cache", lambda _: images)
        monkeypatch.setattr(planning._Sizes, "members_a_draw", lambda _: draw)
        model = made(resnet)
        x = inputs_for(resnet, members, 1)
        return plan(model, population_of(model, size=members), x, (0, 0)).tiles

    @pytest.mark.parametrize("threads", [2, 3, 4])
    @pytest.mark.parametrize("members", [256, 1000, 4096])
    def test_there_are_some_for_every_thread_and_they_fill_runs(
        self, monkeypatch, members, threads
    ):
        found = self.tiles(monkeypatch, members, threads)
        portions = -(-members // found.members)
        assert found.members % found.images == 0 or portions == threads
        assert found.members >= min(found.images, members // threads)
        # Four a thread, as near as whole runs come to it.
        assert portions >= min(2 * threads, members // found.images)
        assert found.threads == threads

    def test_a_population_without_full_runs_is_shared_out_evenly(self, monkeypatch):
        assert self.tiles(monkeypatch, 32, 2).members == 16
        assert self.tiles(monkeypatch, 66, 2).members == 33

    def test_one_thread_takes_as_many_as_are_drawn_at_once(self, monkeypatch):
        assert self.tiles(monkeypatch, 1024, 1).members == 1024
        assert self.tiles(monkeypatch, 1024, 1, draw=128).members == 128

    def test_little_work_is_one_portion_of_one_thread(self, monkeypatch):
        one = seen(made(resnet), inputs_for(resnet, 2)).footprint.work
        for members, threads in ((64, 1), (66, 2)):
            found = self.tiles(monkeypatch, members, 2, images=256, little=64 * one + 1)
            assert (found.threads, found.members) == (threads, -(-members // threads))

    @pytest.mark.parametrize("members", [256, 4096])
    def test_the_same_whenever_asked(self, monkeypatch, members):
        first = self.tiles(monkeypatch, members, 2)
        assert all(self.tiles(monkeypatch, members, 2) == first for _ in range(3))


def test_a_plan_can_be_read():
    model = made(resnet)
    x = inputs_for(resnet, 3)
    found = plan(model, population_of(model), x, dtype=torch.bfloat16, memory=50 << 20)
    assert re.fullmatch(
        "engine factored: members share a centre, so one pass serves many of them\n"
        r"\d+ members a thread, \d+ images a run, \d+ threads, bfloat16" + "\n"
        r"about \d+ MiB of 50 MiB" + "\n"
        r"about [\d.]+ ms of one thread, expected from sizes",
        str(found),
    )
    assert f"{found.tiles.members} members a thread, {found.tiles.images} images" in str(found)
