"""A stacked population against the modules it was built from, and against torch.func."""

import copy
from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stacked_models import WIDTH, make_model, make_models, make_tied
from torch import nn
from torch.func import functional_call, stack_module_state
from torch.nn.utils import parameters_to_vector, parametrizations, vector_to_parameters

from tinkering.models import functional_forward_core, get_parallel_forward_pass_fn
from tinkering.population import StackedPopulation

X = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def matrices(width, max_members=6):
    """Matrices of any bits, NaN and the infinities among them."""
    return st.integers(1, max_members).flatmap(
        lambda members: st.binary(min_size=4 * members * width, max_size=4 * members * width).map(
            lambda raw: (
                torch.frombuffer(bytearray(raw), dtype=torch.int32)
                .view(torch.float32)
                .reshape(members, width)
            )
        )
    )


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(a.view(torch.int32), b.view(torch.int32))


class TestMembers:
    def test_modules_with_parametrisations(self):
        """Each has a class of its own."""
        models = [nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3))) for _ in range(3)]
        population = StackedPopulation.from_modules(models)
        x = torch.randn(5, 4)
        for member, model in enumerate(models):
            assert torch.equal(population.materialise(member)(x), model(x))

    def test_are_the_modules_they_were_built_from(self):
        models = make_models()
        for population in (
            StackedPopulation.from_modules(models),
            StackedPopulation(*stack_module_state(models)),
            StackedPopulation(*stack_module_state(models), models[0]),
        ):
            assert len(population) == 4
            for i, model in enumerate(models):
                params, buffers = population[i]
                held = {**params, **buffers}
                expected = {**dict(model.named_parameters()), **dict(model.named_buffers())}
                assert list(held) == list(expected)
                assert all(torch.equal(held[name], t) for name, t in expected.items())
                assert not any(t.requires_grad for t in held.values())

    def test_compute_what_the_modules_compute(self):
        models = make_models()
        population = StackedPopulation.from_modules(models)
        for i, model in enumerate(models):
            assert torch.equal(functional_call(models[0], population[i], (X,)), model(X))
            assert torch.equal(functional_forward_core(models[0], population[i], X), model(X))
            assert torch.equal(population.materialise(i)(X), model(X))
        stacked = get_parallel_forward_pass_fn(models[0])(
            (population.params, population.buffers), X
        )
        torch.testing.assert_close(stacked, torch.stack([model(X) for model in models]))

    def test_from_modules_is_what_torch_stacks(self):
        models = make_models()
        population = StackedPopulation.from_modules(iter(models))
        for held, expected in zip(
            (population.params, population.buffers), stack_module_state(models), strict=True
        ):
            assert list(held) == list(expected)
            assert all(torch.equal(held[name], t) for name, t in expected.items())
            assert all(held[name].dtype == t.dtype for name, t in expected.items())
        assert population.template is models[0]

    def test_from_modules_copies_and_the_constructor_does_not(self):
        models = make_models(2)
        population = StackedPopulation.from_modules(models)
        before = population.params["4.weight"].clone()
        with torch.no_grad():
            models[1][4].weight.zero_()
        assert torch.equal(population.params["4.weight"], before)
        params = {"w": torch.zeros(3, 2)}
        assert StackedPopulation(params, {}).params["w"].data_ptr() == params["w"].data_ptr()

    def test_buffers_alone(self):
        norms = [nn.BatchNorm1d(2, affine=False) for _ in range(3)]
        population = StackedPopulation.from_modules(norms)
        assert len(population) == 3
        assert population.to_vectors().shape == (3, 0)
        again = StackedPopulation.from_vectors(norms[0], torch.zeros(3, 0))
        assert len(again) == 3
        assert torch.equal(again[2][1]["running_var"], torch.ones(2))

    def test_the_models_order_whatever_the_order_given(self):
        models = make_models()
        params, buffers = stack_module_state(models)
        turned = StackedPopulation(dict(reversed(params.items())), buffers, models[0])
        assert list(turned.params) == list(params)
        assert torch.equal(turned.to_vectors()[2], parameters_to_vector(models[2].parameters()))


class TestVectors:
    @given(vectors=matrices(WIDTH))
    @settings(max_examples=25)
    def test_there_and_back_bit_for_bit(self, vectors):
        population = StackedPopulation.from_vectors(make_model(), vectors)
        assert len(population) == len(vectors)
        assert same_bits(population.to_vectors(), vectors)

    @given(vectors=matrices(WIDTH, max_members=3))
    @settings(max_examples=10)
    def test_each_row_is_a_member_in_the_order_of_torch(self, vectors):
        model = make_model()
        population = StackedPopulation.from_vectors(model, vectors)
        for i, vector in enumerate(vectors):
            expected = make_model()
            vector_to_parameters(vector.clone(), expected.parameters())
            for name, p in expected.named_parameters():
                assert same_bits(population[i][0][name], p.detach())
            module = population.materialise(i)
            assert same_bits(parameters_to_vector(module.parameters()).detach(), vector)

    def test_of_modules(self):
        models = make_models()
        rows = torch.stack([parameters_to_vector(m.parameters()).detach() for m in models])
        population = StackedPopulation.from_modules(models)
        assert torch.equal(population.to_vectors(), rows)
        again = StackedPopulation.from_vectors(models[0], rows, population.buffers)
        for i, model in enumerate(models):
            assert torch.equal(again.materialise(i)(X), model(X))

    def test_parameters_are_views_of_the_matrix(self):
        vectors = torch.randn(3, WIDTH)
        population = StackedPopulation.from_vectors(make_model(), vectors)
        held = {p.untyped_storage().data_ptr() for p in population.params.values()}
        assert held == {vectors.untyped_storage().data_ptr()}
        vectors[1] = 7
        assert all(bool((p == 7).all()) for p in population[1][0].values())
        assert population.to_vectors().data_ptr() != vectors.data_ptr()

    def test_a_matrix_that_is_not_contiguous(self):
        vectors = torch.randn(WIDTH, 3)
        population = StackedPopulation.from_vectors(make_model(), vectors.T)
        assert torch.equal(population.to_vectors(), vectors.T)

    def test_the_models_buffers_serve_every_member_without_copies(self):
        model = make_model()
        population = StackedPopulation.from_vectors(model, torch.randn(3, WIDTH))
        for name, own in model.named_buffers():
            assert population.buffers[name].shape == (3, *own.shape)
            assert population.buffers[name].data_ptr() == own.data_ptr()
            assert torch.equal(population[2][1][name], own)

    def test_dtype_and_history_of_the_matrix(self):
        vectors = torch.randn(3, WIDTH, dtype=torch.float64, requires_grad=True)
        population = StackedPopulation.from_vectors(make_model(), vectors)
        assert {p.dtype for p in population.params.values()} == {torch.float64}
        assert not any(p.requires_grad for p in population.params.values())

    def test_scalars_and_empty_parameters(self):
        shapes = {"a": (), "b": (0, 2), "c": (2,)}
        model = nn.ParameterDict({name: torch.zeros(shape) for name, shape in shapes.items()})
        vectors = torch.arange(6.0).reshape(2, 3)
        population = StackedPopulation.from_vectors(model, vectors)
        assert population[1][0]["a"] == 3
        assert torch.equal(population.to_vectors(), vectors)


PARTS = st.sampled_from(["0.*", "*weight", ["4.bias", "0.weight"], ["1.*", "4.*"], "*"])


class TestVectorsOfAPart:
    @given(parts=PARTS, data=st.data())
    def test_there_and_back_and_the_rest_is_the_models(self, parts, data):
        model = make_model()
        several = [parts] if isinstance(parts, str) else parts
        own = dict(model.named_parameters())
        names = [n for n in own if any(fnmatchcase(n, pattern) for pattern in several)]
        vectors = data.draw(matrices(sum(own[name].numel() for name in names)))
        population = StackedPopulation.from_vectors(model, vectors, parameters=parts)
        assert same_bits(population.to_vectors(parts), vectors)
        # The rows are in the model's order, whatever the patterns' is.
        start = 0
        for name, value in own.items():
            held = population.params[name]
            if name in names:
                expected = vectors[:, start : start + value.numel()]
                start += value.numel()
                assert same_bits(held.flatten(1), expected)
            else:
                assert all(torch.equal(member, value) for member in held)
                assert held.data_ptr() == value.data_ptr()

    def test_of_a_slice(self):
        vectors = torch.randn(5, 51)
        population = StackedPopulation.from_vectors(make_model(), vectors, parameters="4.*")
        assert torch.equal(population[1:3].to_vectors("4.*"), vectors[1:3])
        assert population.to_vectors().shape == (5, 135)


class TestTiedParameters:
    def test_are_there_once_and_stay_tied(self):
        models = [make_tied() for _ in range(3)]
        population = StackedPopulation.from_modules(models)
        assert list(population.params) == ["0.weight", "0.bias", "1.bias"]
        module = population.materialise(1)
        assert module[0].weight is module[1].weight
        x = torch.randn(4, 3)
        for i, model in enumerate(models):
            assert torch.equal(population.materialise(i)(x), model(x))
            assert torch.equal(functional_call(models[0], population[i], (x,)), model(x))

    def test_as_vectors(self):
        model = make_tied()
        population = StackedPopulation.from_vectors(model, torch.randn(2, 15))
        module = population.materialise(1)
        assert module[0].weight is module[1].weight
        expected = parameters_to_vector(module.parameters())
        assert torch.equal(population.to_vectors()[1], expected)


class TestSlices:
    @given(start=st.integers(-14, 11), length=st.integers(1, 12), again=st.integers(0, 11))
    @settings(max_examples=25)
    def test_have_the_members_of_the_whole_and_its_memory(self, start, length, again):
        whole = StackedPopulation({"w": torch.arange(24.0).reshape(12, 2)}, {"b": torch.arange(12)})
        expected = range(12)[start:][:length]
        part = whole[start:][:length]
        assert part.members == expected
        assert (len(part), part.size) == (len(expected), 12)
        again = min(again, len(part) - 1)
        nested = part[again:]
        assert nested.members == expected[again:]
        for i, position in enumerate(nested.members):
            params, buffers = nested[i]
            assert torch.equal(params["w"], whole[position][0]["w"])
            assert params["w"].data_ptr() == whole[position][0]["w"].data_ptr()
            assert buffers["b"].data_ptr() == whole[position][1]["b"].data_ptr()

    def test_copy_nothing(self):
        whole = StackedPopulation.from_modules(make_models())
        part = whole[1:3]
        for name, p in {**whole.params, **whole.buffers}.items():
            view = {**part.params, **part.buffers}[name]
            assert view.untyped_storage().data_ptr() == p.untyped_storage().data_ptr()
            assert view.data_ptr() == p[1].data_ptr()
        assert part.template is whole.template
        assert torch.equal(part.to_vectors(), whole.to_vectors()[1:3])


class TestMaterialise:
    def test_is_independent(self):
        models = make_models()
        population = StackedPopulation.from_modules(models)
        before = copy.deepcopy((population.params, population.buffers, models[0].state_dict()))
        with torch.no_grad():
            for tensor in population.materialise(0).state_dict().values():
                tensor.zero_()
        now = (population.params, population.buffers, models[0].state_dict())
        for kept, held in zip(before, now, strict=True):
            assert all(torch.equal(kept[name], t) for name, t in held.items())

    @pytest.mark.parametrize("training", [True, False])
    def test_has_the_templates_mode(self, training):
        models = [model.train(training) for model in make_models()]
        assert StackedPopulation.from_modules(models).materialise(1).training is training
        other = make_model().train(not training)
        module = StackedPopulation.from_modules(models).materialise(1, other)
        assert module.training is not training
        assert torch.equal(module[4].weight, models[1][4].weight)

    def test_from_a_skeleton_on_meta(self):
        models = make_models()
        skeleton = copy.deepcopy(models[0]).to("meta")
        population = StackedPopulation(*stack_module_state(models), skeleton)
        assert torch.equal(population.materialise(2)(X), models[2](X))


class TestBuffers:
    def test_other_buffers_for_the_same_members(self):
        population = StackedPopulation.from_modules(make_models())
        other = population.with_buffers({name: b + 1 for name, b in population.buffers.items()})
        for i in range(4):
            assert torch.equal(other[i][0]["4.weight"], population[i][0]["4.weight"])
            for name, b in population[i][1].items():
                assert torch.equal(other[i][1][name], b + 1)
        mean = other.buffers["1.running_mean"]
        assert torch.equal(other[2:].materialise(0)[1].running_mean, mean[2])

    def test_of_a_part(self):
        population = StackedPopulation.from_modules(make_models())
        part = population[1:3].with_buffers(population[2:4].buffers)
        assert part.members == range(1, 3)
        assert torch.equal(part[0][1]["1.running_var"], population[2][1]["1.running_var"])

    def test_where_there_were_none(self):
        population = StackedPopulation({"w": torch.zeros(2, 3)}, {})
        other = population.with_buffers({"b": torch.arange(2)})
        assert other[1][1]["b"] == 1
        assert population[1][1] == {}
