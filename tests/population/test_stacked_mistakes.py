"""What cannot be stacked is refused, in words that name the argument, the need and what came."""

import pytest
import torch
from stacked_models import WIDTH, make_model, make_models, make_tied, message_of
from torch import nn
from torch.func import stack_module_state

from tinkering.population import StackedPopulation

W, B = torch.zeros(3, 4, 8), torch.zeros(3, 4)


class TestTensors:
    @pytest.mark.parametrize(
        ("params", "buffers", "message"),
        [
            ({}, {}, "params: needed at least one parameter or buffer, got none."),
            (
                {"weight": W, "bias": torch.zeros(2, 4)},
                {},
                "params: needed 3 members along the first axis of 'bias', as 'weight' has, got 2.",
            ),
            (
                {"weight": W},
                {"mean": torch.zeros(4)},
                "buffers: needed 3 members along the first axis of 'mean', as 'weight' has, got 4.",
            ),
            (
                {"weight": torch.zeros(0, 4)},
                {},
                "params: needed at least one member along the first axis of 'weight', got 0.",
            ),
            (
                {},
                {"mean": torch.zeros(0, 4)},
                "buffers: needed at least one member along the first axis of 'mean', got 0.",
            ),
            (
                {"weight": W, "bias": [1.0, 2.0]},
                {},
                "params: needed a tensor for 'bias', got a list.",
            ),
            (
                {"weight": W},
                {"mean": B, "count": 3},
                "buffers: needed a tensor for 'count', got an int.",
            ),
            (
                {"weight": torch.tensor(1.0)},
                {},
                "params: needed 'weight' of shape [members, ...], got [].",
            ),
        ],
    )
    def test_by_themselves(self, params, buffers, message):
        assert message_of(StackedPopulation, params, buffers) == message

    @pytest.mark.parametrize(
        ("params", "buffers", "message"),
        [
            ({"weight": W}, {}, "params: needed a tensor for the model's 'bias', got none."),
            (
                {"weight": W, "bias": B, "scale": B},
                {},
                "params: needed only params that the model has, got 'scale'.",
            ),
            (
                {"weight": W, "bias": torch.zeros(3, 5)},
                {},
                "params: needed 'bias' of shape [3, 4], as the model's, got [3, 5].",
            ),
            (
                {"weight": W, "bias": B},
                {"mean": B},
                "buffers: needed only buffers that the model has, got 'mean'.",
            ),
        ],
    )
    def test_another_model(self, params, buffers, message):
        assert message_of(StackedPopulation, params, buffers, nn.Linear(8, 4)) == message

    def test_a_models_buffers_left_out(self):
        params, _ = stack_module_state(make_models())
        assert message_of(StackedPopulation, params, {}, make_model()) == (
            "buffers: needed a tensor for the model's '1.running_mean', got none."
        )


class TestModules:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda model: model.__setitem__(0, nn.Conv2d(2, 3, 3)),
                "a parameter '0.weight' of shape [4, 2, 3, 3], as member 0 has, got [3, 2, 3, 3].",
            ),
            (
                lambda model: model[4].double(),
                "a parameter '4.weight' of dtype torch.float32, as member 0 has, "
                "got torch.float64.",
            ),
            (
                lambda model: model[4].to("meta"),
                "a parameter '4.weight' on device cpu, as member 0 has, got meta.",
            ),
            (
                lambda model: model[4].register_parameter("bias", None),
                "a parameter '4.bias', as member 0 has, got none.",
            ),
            (
                lambda model: model.register_parameter("scale", nn.Parameter(torch.ones(1))),
                "the parts of member 0 and no other, got a parameter 'scale'.",
            ),
            (
                lambda model: model[1].register_buffer("running_var", torch.ones(1)),
                "a buffer '1.running_var' of shape [4], as member 0 has, got [1].",
            ),
            (
                lambda model: model[1].register_buffer("running_mean", torch.zeros(4).half()),
                "a buffer '1.running_mean' of dtype torch.float32, as member 0 has, "
                "got torch.float16.",
            ),
            (
                lambda model: model.register_buffer("count", torch.ones(1)),
                "the parts of member 0 and no other, got a buffer 'count'.",
            ),
            (
                lambda model: model[1].train(),
                "a submodule '1' in eval mode, as member 0 has, got train mode.",
            ),
            (
                lambda model: setattr(model, "training", True),
                "a module in eval mode, as member 0 has, got train mode.",
            ),
            (
                lambda model: model.__setitem__(2, nn.Tanh().eval()),
                "a submodule '2' of type ReLU, as member 0 has, got Tanh.",
            ),
        ],
    )
    @pytest.mark.parametrize("member", [1, 2])
    def test_modules_that_differ(self, change, message, member):
        models = make_models()
        change(models[member])
        assert message_of(StackedPopulation.from_modules, models) == (
            f"models: needed for member {member} {message}"
        )

    def test_tied_in_one_member_only(self):
        models = [make_tied(), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))]
        assert message_of(StackedPopulation.from_modules, models) == (
            "models: needed for member 1 the parts of member 0 and no other, "
            "got a parameter '1.weight'."
        )

    def test_modules_of_another_class(self):
        class Net(nn.Linear):
            pass

        assert message_of(StackedPopulation.from_modules, [nn.Linear(2, 2), Net(2, 2)]) == (
            "models: needed for member 1 a module of type Linear, as member 0 has, got "
            f"{Net.__qualname__}."
        )

    def test_no_modules(self):
        message = message_of(StackedPopulation.from_modules, [])
        assert message == "models: needed at least one module, got none."
        # As an iterator, into which beartype does not look before our own check does.
        message = message_of(StackedPopulation.from_modules, iter([nn.Linear(2, 2), "linear"]))
        assert message == "models: needed a module for member 1, got str."


class TestVectors:
    @pytest.mark.parametrize("shape", [(3, 134), (3, 136), (135,), (1, 3, 135)], ids=str)
    def test_another_width(self, shape):
        message = message_of(StackedPopulation.from_vectors, make_model(), torch.zeros(shape))
        assert message == (
            "vectors: needed a matrix of shape [members, 135], as the model has 135 parameters, "
            f"got {list(shape)}."
        )

    def test_no_row(self):
        message = message_of(StackedPopulation.from_vectors, make_model(), torch.zeros(0, WIDTH))
        assert message == "vectors: needed at least one member, a row each, got none."

    def test_a_single_set_of_buffers(self):
        model = make_model()
        vectors, own = torch.zeros(3, WIDTH), dict(model.named_buffers())
        message = message_of(StackedPopulation.from_vectors, model, vectors, buffers=own)
        assert message == "buffers: needed '1.num_batches_tracked' of shape [members, ...], got []."


class TestBuffers:
    @pytest.mark.parametrize("with_a_model", [True, False])
    def test_that_do_not_fit(self, with_a_model):
        state = stack_module_state(make_models())
        population = StackedPopulation(*state, make_model() if with_a_model else None)
        fitting, replace = state[1], population.with_buffers
        assert message_of(replace, {**fitting, "1.running_mean": torch.zeros(3, 4)}) == (
            "buffers: needed 4 members along the first axis of '1.running_mean', "
            "as this population has, got 3."
        )
        assert message_of(replace, {**fitting, "1.running_mean": torch.zeros(4)}) == (
            "buffers: needed '1.running_mean' of shape [4, 4], as the model's, got [4]."
        )
        assert message_of(replace, {**fitting, "other": torch.zeros(4)}) == (
            "buffers: needed only buffers that the model has, got 'other'."
        )
        del fitting["1.running_var"]
        assert message_of(replace, fitting) == (
            "buffers: needed a tensor for the model's '1.running_var', got none."
        )


def test_a_member_as_a_module_where_there_is_none():
    population = StackedPopulation({"w": torch.zeros(2, 3)}, {})
    assert message_of(population.materialise, 0) == (
        "model: needed a module, because this population was built from parameters alone, "
        "got None. Call materialise(index, model)."
    )


class TestParts:
    NAMES = "The parameters are '0.weight', '0.bias', '1.weight', '1.bias', '4.weight', '4.bias'."

    @pytest.mark.parametrize(
        ("parameters", "pattern"), [("fc.*", "'fc.*'"), (["4.*", "Head"], "'Head'")], ids=str
    )
    def test_a_pattern_that_matches_nothing(self, parameters, pattern):
        needed = "parameters: needed patterns that match a parameter's name"
        for ask in (
            lambda **more: StackedPopulation.from_vectors(make_model(), torch.zeros(2, 51), **more),
            lambda **more: StackedPopulation.from_modules([make_model()]).to_vectors(**more),
        ):
            message = message_of(ask, parameters=parameters)
            assert message == f"{needed}, got {pattern}. {self.NAMES}"

    def test_no_pattern(self):
        build = StackedPopulation.from_vectors
        message = message_of(build, make_model(), torch.zeros(2, 0), parameters=[])
        assert message == "parameters: needed at least one pattern, got none."

    def test_a_matrix_of_another_width(self):
        build = StackedPopulation.from_vectors
        message = message_of(build, make_model(), torch.zeros(2, WIDTH), parameters="4.*")
        assert message == (
            "vectors: needed a matrix of shape [members, 51], as 4.weight, 4.bias have 51 "
            "parameters, got [2, 135]."
        )
