"""Which engine serves which network, what is said about it, and the paths beside the kernels."""

import warnings

import pytest
import torch
from small_nets import (
    NETWORKS,
    DependsOnData,
    assert_close,
    convnet,
    depends_on_data,
    engine_for,
    inputs_for,
    loop,
    made,
    modules_of,
    population_of,
    program,
    resnet,
    takes,
)
from torch import nn

from tinkering.engines.table import ENGINES
from tinkering.errors import UnsupportedLayerError
from tinkering.evaluation.entry import forward, plan
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.noise import Dense, LowRank, Separable
from tinkering.population import StackedPopulation

networks = pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)


class MinusTheMeanOfItsBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 5)

    def forward(self, x):
        return self.linear(x.flatten(1) - x.flatten(1).mean(0))


@takes(256)
def wide():
    return nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256))


def planned(build, population=None, images=3, **options):
    """The plan, and what was said meanwhile."""
    population = population_of(made(build)) if population is None else population
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = plan(made(build), population, inputs_for(build, images), **options)
    return result, [str(warning.message) for warning in caught]


class TestAuto:
    @networks
    def test_a_centre_is_factored_and_who_is_not_is_told(self, build):
        found, said = planned(build)
        assert found.engine == engine_for(build)
        if found.engine == "factored":
            assert said == []
            assert found.reason == "members share a centre, so one pass serves many of them"
        else:
            assert said == [f"{found.reason} Members are evaluated one after the other."]
            assert found.reason.startswith(f"members share a centre, but {build.unknown}")

    @networks
    def test_small_members_of_their_own_are_evaluated_at_once_without_a_word(self, build):
        found, said = planned(build, modules_of(build))
        batched = engine_for(build) == "factored"
        assert (found.engine, said) == ("batched" if batched else "sequential", [])
        assert found.reason.startswith("every member has weights of its own")
        assert batched or build.unknown == type(made(build)).__name__

    def test_large_members_of_their_own_are_evaluated_one_by_one(self):
        model = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=32).eval()
        members, x = StackedPopulation.from_modules([model, model]), torch.zeros(128, 1, 28, 28)
        assert plan(model, members, x).engine == "sequential"

    @pytest.mark.parametrize(
        ("build", "noise", "images", "engine"),
        [
            (wide, Dense(), 1, "factored"),
            (wide, Dense(), 64, "batched"),
            (convnet, Dense(), 8, "batched"),
            (convnet, LowRank(2), 8, "factored"),
            (convnet, Separable(1), 50, "factored"),
        ],
        ids=lambda value: getattr(value, "__name__", str(value)),
    )
    def test_dense_noise_is_built_where_it_pays(self, build, noise, images, engine):
        population = population_of(made(build), noise=noise)
        found, said = planned(build, population, images)
        assert (found.engine, said) == (engine, [])
        if engine == "batched":
            assert "dense noise is as large as the weights" in found.reason

    @pytest.mark.parametrize("engine", ENGINES)
    def test_an_engine_that_was_asked_for(self, engine):
        found, said = planned(resnet, engine=engine)
        assert (found.engine, found.reason, said) == (engine, "asked for", [])

    def test_images_that_count_for_each_other_are_evaluated_one_member_at_a_time(self):
        model = MinusTheMeanOfItsBatch().eval()
        population = population_of(model)
        x = torch.randn(6, 40, 1, 8, 8)
        with pytest.warns(UserWarning, match="examples of a batch are not independent"):
            result = forward(model, population, x, (0, 0), memory=300_000)
        assert_close(result, loop(population, x, (0, 0)))
        with pytest.raises(UnsupportedLayerError, match="examples of a batch are not independent"):
            forward(model, population, x, (0, 0), engine="factored")


class TestWithoutAGraph:
    def test_the_plan_says_so(self):
        for population in (modules_of(depends_on_data), population_of(made(depends_on_data))):
            found, _ = planned(depends_on_data, population)
            (note,) = found.notes
            assert note.startswith("The module runs unfused: torch.export cannot capture it: ")
            assert note in str(found)
            assert planned(resnet)[0].notes == ()

    def test_factored_is_refused_with_the_reason(self):
        with pytest.raises(UnsupportedLayerError) as caught:
            planned(depends_on_data, engine="factored")
        assert str(caught.value).startswith(
            "DependsOnData: no member-wise form of its forward (torch.export cannot capture it: "
        )

    def test_it_is_tried_once(self, monkeypatch):
        model, tries = DependsOnData().eval(), []
        export = torch.export.export

        def counted(*args, **kwargs):
            tries.append(1)
            return export(*args, **kwargs)

        monkeypatch.setattr(torch.export, "export", counted)
        for _ in range(3):
            with pytest.raises(UnsupportedLayerError, match="cannot capture it"):
                program(model, torch.zeros(2, 1, 8, 8))
        assert len(tries) == 1

    def test_in_its_own_dtype(self):
        x = inputs_for(depends_on_data, 3)
        arguments = made(depends_on_data), modules_of(depends_on_data), x
        result = forward(*arguments, dtype=torch.bfloat16)
        assert result.dtype == torch.float32
        expected = loop(modules_of(depends_on_data), x)
        difference = (result - expected).abs().max()
        assert 0 < difference <= 0.05 * expected.abs().max()
