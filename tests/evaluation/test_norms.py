"""What norm policies promise beyond equality with the loop, which test_every_engine.py holds."""

import copy
from itertools import product

import pytest
import torch
from small_nets import (
    InPlace,
    assert_close,
    inputs_for,
    loop,
    made,
    modules_of,
    norm_without_statistics,
    normalised_perceptron,
    population_of,
    resnet,
)
from torch import nn

from tinkering.engines.table import ENGINES
from tinkering.errors import ArgumentError
from tinkering.evaluation.batchnorm import Reference
from tinkering.evaluation.entry import forward

engines = pytest.mark.parametrize("engine", ENGINES)


class TestRunning:
    @pytest.mark.parametrize("engine", ["auto", "sequential", "vmapped"])
    def test_members_of_their_own_have_statistics_of_their_own(self, engine):
        members = modules_of(InPlace)
        x = inputs_for(InPlace, 3)
        own = forward(made(InPlace), members, x, engine=engine)
        assert_close(own, loop(members, x))
        same = {name: b[:1].expand_as(b) for name, b in members.buffers.items()}
        shared = forward(made(InPlace), members.with_buffers(same), x, engine=engine)
        assert_close(shared[:1], own[:1], 1e-5)
        assert not torch.allclose(shared[1], own[1], rtol=1e-2)

    @engines
    def test_the_populations_statistics_count_and_not_the_modules(self, engine):
        model = made(InPlace)
        buffers = {n: b + 1 if b.is_floating_point() else b for n, b in model.named_buffers()}
        population = population_of(model).with_buffers(buffers)
        x = inputs_for(InPlace, 3)
        assert_close(forward(model, population, x, engine=engine), loop(population, x))


class TestBatch:
    def test_what_was_kept_does_not_count_nor_the_mode(self):
        model = copy.deepcopy(made(InPlace))
        population = population_of(model)
        x = inputs_for(InPlace, 3)
        expected = loop(population, x, of_batch=True)
        model.bn1.running_mean.fill_(float("nan"))
        for training, engine in product((True, False), ENGINES):
            model.train(training)
            result = forward(model, population, x, engine=engine, norm="batch")
            assert_close(result, expected)
            assert model.training is training
            assert model.bn1.running_mean.isnan().all()
            assert int(model.bn1.num_batches_tracked) == 1

    @engines
    def test_a_norm_that_keeps_nothing_needs_no_policy(self, engine):
        model = made(norm_without_statistics)
        population = population_of(model)
        x = inputs_for(norm_without_statistics, 3)
        expected = loop(population, x)
        for norm in ("running", "batch", Reference(x)):
            assert_close(forward(model, population, x, engine=engine, norm=norm), expected)

    @engines
    def test_one_image_has_statistics_where_it_has_pixels(self, engine):
        model = made(InPlace)
        population = population_of(model)
        x = inputs_for(InPlace, 6, 1)
        result = forward(model, population, x, (0, 0), engine=engine, norm="batch")
        assert_close(result, loop(population, x, (0, 0), of_batch=True))

    @engines
    def test_one_image_of_one_number_a_channel_is_refused(self, engine):
        model = made(normalised_perceptron)
        x = inputs_for(normalised_perceptron, 1)
        with pytest.raises(ArgumentError) as caught:
            forward(model, population_of(model), x, engine=engine, norm="batch")
        assert str(caught.value).startswith(
            "inputs: needed at least two examples a member, for norms that use the statistics of "
            "the batch, got one (Expected more than 1 value per channel"
        )


class TestReference:
    @engines
    def test_it_is_the_centres_and_members_do_not_change_it(self, engine):
        model = made(resnet)
        images, x = inputs_for(resnet, 5), inputs_for(resnet, 3)
        population = population_of(model)
        before = {name: b.clone() for name, b in population.buffers.items()}
        whole = forward(model, population, x, engine=engine, norm=Reference(images))
        part = forward(model, population[2:3], x, engine=engine, norm=Reference(images))
        assert_close(part, whole[2:3], 1e-5)
        assert all(torch.equal(before[name], b) for name, b in population.buffers.items())
        other = forward(model, population, x, engine=engine, norm=Reference(images + 1))
        assert not torch.allclose(other, whole, rtol=1e-2)

    @engines
    def test_a_part_of_the_parameters_evolves(self, engine):
        """The centre is then the module's for the rest."""
        model = made(InPlace)
        weight = {"conv1.weight": modules_of(InPlace).params["conv1.weight"][0]}
        centre = copy.deepcopy(model)
        centre.conv1.weight = nn.Parameter(weight["conv1.weight"])
        images, x = inputs_for(InPlace, 5), inputs_for(InPlace, 3)
        narrow = type(population_of(model))(weight, size=4, sigma=0.0)
        result = forward(model, narrow, x, engine=engine, norm=Reference(images))
        expected = forward(
            centre, population_of(centre, 4, 0.0), x, engine="vmapped", norm=Reference(images)
        )
        assert_close(result[:1], expected[:1])
