"""The door to evaluation against a loop over members as modules of their own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import (
    NETWORKS,
    ByHand,
    assert_close,
    batch_for,
    convnet,
    loop,
    made,
    make,
    perceptron,
    population_of,
    resnet,
)
from torch import nn

from tinkering.errors import ArgumentError, TinkeringError, UnsupportedLayerError
from tinkering.evaluation import forward as door
from tinkering.evaluation.fitness import accuracy, negative_cross_entropy
from tinkering.evaluation.forward import evaluate, fastest_dtype, forward
from tinkering.noise import Dense, LowRank, Separable
from tinkering.population import PerturbedPopulation

KINDS = [Dense(), LowRank(1), LowRank(2), Separable(1)]
both_in_dims = pytest.mark.parametrize("in_dims", [(0, None), (0, 0)], ids=str)
networks = pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)


class TestAgainstALoop:
    @both_in_dims
    @networks
    @pytest.mark.parametrize("images", [1, 3])
    def test_every_network(self, build, in_dims, images):
        model = made(build)
        population = population_of(model)
        x = batch_for(in_dims, 6, images)
        assert_close(forward(model, population, x, in_dims), loop(population, x, in_dims))

    @networks
    @pytest.mark.parametrize("kind", KINDS, ids=str)
    def test_every_noise(self, build, kind):
        model = made(build)
        population = population_of(model, size=5, noise=kind, antithetic=False)
        x = batch_for((0, None), 5, 2)
        assert_close(forward(model, population, x), loop(population, x))

    @both_in_dims
    @pytest.mark.parametrize(("start", "stop"), [(1, 6), (3, 4), (1, 2), (2, 5)])
    def test_slices_with_odd_starts(self, in_dims, start, stop):
        model = made(resnet)
        whole = population_of(model, size=6)
        part = whole[start:stop]
        x = batch_for(in_dims, len(part), 2)
        result = forward(model, part, x, in_dims)
        assert len(result) == stop - start
        assert_close(result, loop(part, x, in_dims))

    @pytest.mark.parametrize("size", [8, 9, 28])
    def test_images_of_any_size(self, size):
        model = made(resnet)
        population = population_of(model, size=2)
        x = torch.randn(2, 1, size, size)
        assert_close(forward(model, population, x), loop(population, x))

    @both_in_dims
    @pytest.mark.parametrize("images", [1, 3, 200])
    def test_more_members_and_images_than_a_tile(self, in_dims, images):
        model = made(convnet)
        size = 300 if images < 200 else 4
        population = population_of(model, size=size)
        x = batch_for(in_dims, size, images)
        result = forward(model, population, x, in_dims)
        assert len(result) == size
        for i in {0, 1, size // 2 - 1, size // 2, size - 1}:
            own = x if in_dims == (0, None) else x[i : i + 1]
            assert_close(result[i : i + 1], loop(population[i : i + 1], own, in_dims))

    def test_more_members_than_a_draw(self):
        model = made(perceptron)
        population = population_of(model, size=2050)
        x = batch_for((0, 0), 2050, 1)
        result = forward(model, population, x, (0, 0))
        for i in (0, 1, 1022, 1023, 1024, 1025, 2047, 2048, 2049):
            assert_close(result[i : i + 1], loop(population[i : i + 1], x[i : i + 1], (0, 0)))

    def test_the_populations_parameters_count_and_not_the_modules(self):
        model, other = made(resnet), make(resnet, seed=1)
        population = population_of(other)
        x = batch_for((0, None), 6, 2)
        expected = loop(population, x)
        assert_close(forward(model, population, x), expected)
        assert not torch.allclose(forward(model, population_of(model), x), expected)

    def test_the_populations_buffers_count_and_not_the_modules(self):
        model = made(resnet)
        buffers = {name: b + 1 if b.is_floating_point() else b for name, b in model.named_buffers()}
        population = population_of(model).with_buffers(buffers)
        x = batch_for((0, None), 6, 2)
        assert_close(forward(model, population, x), loop(population, x))

    def test_a_population_from_parameters_alone(self):
        model = made(resnet)
        params = {name: p.detach() for name, p in make(resnet, seed=1).named_parameters()}
        population = PerturbedPopulation(params, size=4, sigma=0.1)
        x = batch_for((0, None), 4, 2)
        assert_close(forward(model, population, x), loop(population, x, model=model))

    @pytest.mark.parametrize("kept", ["weight", "bias", "conv", "bn", "linear"])
    def test_parameters_that_do_not_evolve_are_the_modules(self, kept):
        model = made(resnet)
        params = {n: p.detach() for n, p in model.named_parameters() if kept not in n}
        population = PerturbedPopulation(params, size=4, sigma=0.2)
        x = batch_for((0, None), 4, 2)
        assert_close(forward(model, population, x), loop(population, x, model=model))

    def test_sigma_zero_is_the_centre(self):
        model = made(resnet)
        x = batch_for((0, None), 4, 3)
        result = forward(model, population_of(model, size=4, sigma=0.0), x)
        expected = model(x).detach()
        for member in result:
            assert_close(member[None], expected[None])

    def test_tied_weights_get_the_same_noise(self):
        model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)).eval()
        model[2].weight = model[0].weight
        population = population_of(model)
        x = torch.randn(3, 5)
        assert_close(forward(model, population, x), loop(population, x))

    def test_what_is_changed_in_the_module_between_calls_counts(self):
        """A forward that is kept for a module must not keep its numbers."""
        model = make(resnet)
        x = batch_for((0, None), 4, 2)
        before = forward(model, population_of(model, size=4), x)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1)
            model.bn1.running_mean.add_(0.5)
        population = population_of(model, size=4)
        after = forward(model, population, x)
        assert_close(after, loop(population, x))
        assert not torch.allclose(before, after, rtol=1e-2)

    @given(
        kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        stride=st.integers(1, 2),
        padding=st.integers(0, 1),
        inputs=st.integers(1, 4),
        outputs=st.integers(1, 5),
        bias=st.booleans(),
        normed=st.booleans(),
        kind=st.sampled_from([*KINDS, LowRank(3)]),
        images=st.integers(1, 3),
        sizes=st.tuples(st.integers(3, 7), st.integers(3, 7)),
        shared=st.booleans(),
    )
    @settings(max_examples=30)
    def test_convolutions_of_any_shape(
        self, kernel, stride, padding, inputs, outputs, bias, normed, kind, images, sizes, shared
    ):
        torch.manual_seed(0)
        layers = [nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias)]
        if normed:
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
            layers[1].running_mean.normal_(std=0.1)
            layers[1].running_var.uniform_(0.5, 1.5)
        model = nn.Sequential(*layers, nn.Flatten()).eval()
        population = PerturbedPopulation(model, size=4, sigma=0.5, noise=kind)[1:]
        in_dims = (0, None) if shared else (0, 0)
        x = batch_for(in_dims, 3, images, (inputs, *sizes))
        result, expected = forward(model, population, x, in_dims), loop(population, x, in_dims)
        assert result.shape == expected.shape
        assert (result - expected).abs().max() <= 1e-4 * expected.abs().max().clamp_min(1e-2)


class TestTiles:
    @both_in_dims
    @pytest.mark.parametrize(("images_per_tile", "members_per_draw"), [(1, 1), (7, 4)])
    def test_results_do_not_depend_on_how_it_is_tiled(
        self, monkeypatch, in_dims, images_per_tile, members_per_draw
    ):
        model = made(resnet)
        population = population_of(model, size=14)
        x = batch_for(in_dims, 14, 3)
        y = torch.randint(5, x.shape[:-3])
        whole = forward(model, population, x, in_dims)
        fitness = evaluate(model, population, x, y, in_dims=in_dims)
        for name, value in (
            ("_IMAGES_PER_TILE", images_per_tile),
            ("_MEMBERS_PER_DRAW", members_per_draw),
        ):
            if hasattr(door, name):
                monkeypatch.setattr(door, name, value)
        assert_close(forward(model, population, x, in_dims), whole, 1e-5)
        torch.testing.assert_close(
            evaluate(model, population, x, y, in_dims=in_dims), fitness, rtol=1e-5, atol=1e-5
        )

    @both_in_dims
    def test_the_parts_of_a_population_make_the_whole(self, in_dims):
        model = made(resnet)
        population = population_of(model, size=14)
        x = batch_for(in_dims, 14, 3)
        parts = []
        for start, stop in ((0, 1), (1, 6), (6, 7), (7, 14)):
            own = x if in_dims == (0, None) else x[start:stop]
            parts.append(forward(model, population[start:stop], own, in_dims))
        assert_close(torch.cat(parts), forward(model, population, x, in_dims), 1e-5)

    def test_a_member_does_not_see_its_neighbours_images(self):
        model = made(resnet)
        population = population_of(model, size=6)
        x = batch_for((0, 0), 6, 2)
        before = forward(model, population, x, (0, 0))
        x[[0, 1, 3, 4, 5]] = 100 * torch.randn(5, 2, 1, 8, 8)
        after = forward(model, population, x, (0, 0))
        assert_close(after[2:3], before[2:3], 1e-5)
        assert not torch.allclose(after[3], before[3])


class TestHalfPrecision:
    """In bfloat16 convolutions say less; the public interface stays float32."""

    @both_in_dims
    @pytest.mark.parametrize("build", [resnet, convnet, ByHand], ids=lambda build: build.__name__)
    def test_is_close_to_the_loop(self, build, in_dims):
        model = made(build)
        population = population_of(model)
        x = batch_for(in_dims, 6, 3)
        result = forward(model, population, x, in_dims, dtype=torch.bfloat16)
        expected = loop(population, x, in_dims)
        assert result.dtype == torch.float32
        assert (result - expected).abs().max() <= 0.05 * expected.abs().max()
        # It did compute in other digits.
        assert not torch.equal(result, forward(model, population, x, in_dims))

    def test_the_fitness_function_is_given_float32(self):
        model = made(resnet)
        x, y = batch_for((0, None), 6, 3), torch.tensor([0, 1, 2])
        seen = []

        def fitness(logits, labels):
            seen.append(logits.dtype)
            return negative_cross_entropy(logits, labels)

        result = evaluate(model, population_of(model), x, y, fitness, dtype=torch.bfloat16)
        assert set(seen) == {torch.float32}
        expected = evaluate(model, population_of(model), x, y)
        torch.testing.assert_close(result, expected, rtol=0.05, atol=0.05)

    def test_the_fastest_dtype_is_one_of_the_two(self):
        assert fastest_dtype() in (torch.float32, torch.bfloat16)


class TestEvaluate:
    @both_in_dims
    @pytest.mark.parametrize("fitness", [negative_cross_entropy, accuracy])
    def test_is_the_fitness_of_the_forward(self, in_dims, fitness):
        model = made(resnet)
        population = population_of(model, size=150)
        x = batch_for(in_dims, 150, 2)
        y = torch.randint(5, x.shape[:-3])
        result = evaluate(model, population, x, y, fitness, in_dims)
        logits = forward(model, population, x, in_dims)
        expected = fitness(logits, y.expand(150, 2))
        assert result.shape == (150,)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
        assert result.unique().numel() > 1

    def test_against_a_loop(self):
        model = made(perceptron)
        population = population_of(model)
        x, y = batch_for((0, None), 6, 4), torch.tensor([0, 4, 2, 2])
        expected = torch.stack([-F.cross_entropy(logits, y) for logits in loop(population, x)])
        torch.testing.assert_close(evaluate(model, population, x, y), expected)

    def test_a_fitness_is_called_with_the_labels_of_its_members(self):
        model = made(perceptron)
        x = batch_for((0, 0), 300, 1)
        y = torch.arange(300).view(300, 1)
        seen = []

        def label(logits, labels):
            assert logits.shape == (len(labels), 1, 5)
            seen.append(len(labels))
            return labels[:, 0].float()

        result = evaluate(model, population_of(model, size=300), x, y, label, (0, 0))
        assert result.tolist() == list(range(300))
        assert sum(seen) == 300


class TestModule:
    @networks
    def test_is_left_as_it_was(self, build):
        model = made(build)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        held = {name: p.data_ptr() for name, p in model.named_parameters()}
        grads = {name: p.requires_grad for name, p in model.named_parameters()}
        population = population_of(model)
        centre = {name: p.clone() for name, p in population.params.items()}
        x = batch_for((0, None), 6, 2)
        images = x.clone()
        result = forward(model, population, x)
        evaluate(model, population, x, torch.tensor([0, 1]))
        assert all(torch.equal(before[name], v) for name, v in model.state_dict().items())
        assert held == {name: p.data_ptr() for name, p in model.named_parameters()}
        assert grads == {name: p.requires_grad for name, p in model.named_parameters()}
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(centre[name], p) for name, p in population.params.items())
        assert torch.equal(x, images)
        assert not any(layer.training for layer in model.modules())
        assert not result.requires_grad
        assert copy.deepcopy(model)(x).shape == (2, 5)


class Scaled(nn.Module):
    """Multiplies by a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(64))

    def forward(self, x):
        return x.flatten(1) * self.scale


class Masked(nn.Module):
    """Computes the weight that it uses from the one that it holds."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 64))
        self.register_buffer("mask", torch.rand(4, 64).round())

    def forward(self, x):
        return F.linear(x.flatten(1), self.weight * self.mask)


class Transposed(nn.Module):
    """A product without a layer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 4))

    def forward(self, x):
        return x.flatten(1) @ self.weight


class Twice(nn.Module):
    """The same layer used twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x))).flatten(1)


def before_flatten(*layers):
    return lambda: nn.Sequential(*(make_layer() for make_layer in layers), nn.Flatten())


class TestOtherLayers:
    """A layer is either evaluated as the loop does or refused; never silently something else."""

    @both_in_dims
    @pytest.mark.parametrize(
        "build",
        [
            pytest.param(build, id=name)
            for name, build in {
                "grouped": before_flatten(
                    lambda: nn.Conv2d(1, 4, 3), lambda: nn.Conv2d(4, 4, 3, groups=2)
                ),
                "depthwise": before_flatten(
                    lambda: nn.Conv2d(1, 4, 3), lambda: nn.Conv2d(4, 4, 3, groups=4)
                ),
                "same padding": before_flatten(lambda: nn.Conv2d(1, 3, 3, padding="same")),
                "reflected padding": before_flatten(
                    lambda: nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect")
                ),
                "transposed": before_flatten(lambda: nn.ConvTranspose2d(1, 3, 3, stride=2)),
                "conv1d": before_flatten(lambda: nn.Flatten(2), lambda: nn.Conv1d(1, 3, 5)),
                "conv3d": before_flatten(
                    lambda: nn.Unflatten(1, (1, 1)), lambda: nn.Conv3d(1, 3, (1, 3, 3))
                ),
                "linear over rows": before_flatten(lambda: nn.Linear(8, 3)),
                "layer norm": before_flatten(lambda: nn.LayerNorm(8)),
                "group norm": before_flatten(
                    lambda: nn.Conv2d(1, 4, 3), lambda: nn.GroupNorm(2, 4)
                ),
                "instance norm": before_flatten(
                    lambda: nn.Conv2d(1, 4, 3), lambda: nn.InstanceNorm2d(4, affine=True)
                ),
                "norm without scale": before_flatten(
                    lambda: nn.Conv2d(1, 4, 3), lambda: nn.BatchNorm2d(4, affine=False)
                ),
                "norm alone": before_flatten(lambda: nn.BatchNorm2d(1)),
                "norm of the batch": before_flatten(
                    lambda: nn.Conv2d(1, 4, 3),
                    lambda: nn.BatchNorm2d(4, track_running_stats=False),
                ),
                "norm of the batch without scale": before_flatten(
                    lambda: nn.Conv2d(1, 4, 3),
                    lambda: nn.BatchNorm2d(4, affine=False, track_running_stats=False),
                ),
                "rectified in place": before_flatten(
                    lambda: nn.Conv2d(1, 4, 3),
                    lambda: nn.ReLU(inplace=True),
                    lambda: nn.Linear(6, 2),
                ),
                "prelu": before_flatten(lambda: nn.Conv2d(1, 4, 3), lambda: nn.PReLU(4)),
                "scaled": Scaled,
                "masked": Masked,
                "product": Transposed,
                "twice": Twice,
            }.items()
        ],
    )
    def test_equal_or_refused(self, build, in_dims):
        torch.manual_seed(0)
        model = build().eval()
        population = population_of(model, size=4)
        x = batch_for(in_dims, 4, 3)
        try:
            result = forward(model, population, x, in_dims)
        except UnsupportedLayerError:
            return
        assert_close(result, loop(population, x, in_dims))

    def test_a_norm_left_in_train_mode_is_refused(self):
        """Its statistics would be those of all members together."""
        model = make(resnet)
        model.layer2[0].bn1.train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(UnsupportedLayerError):
            forward(model, population_of(model), batch_for((0, None), 6, 2))
        assert all(torch.equal(before[name], v) for name, v in model.state_dict().items())

    def test_images_that_influence_each_other_are_refused(self):
        class Centred(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(64, 3)

            def forward(self, x):
                x = x.flatten(1)
                return self.linear(x - x.mean(0))

        model = Centred().eval()
        with pytest.raises(UnsupportedLayerError):
            forward(model, population_of(model), batch_for((0, None), 6, 2))

    @pytest.mark.parametrize(
        ("build", "parameter", "x"),
        [
            (
                lambda: nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 2)),
                "0.weight",
                torch.zeros(2, 4, dtype=torch.long),
            ),
            (
                lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)),
                "1.weight",
                torch.zeros(2, 3),
            ),
        ],
        ids=["embedding", "layer norm"],
    )
    def test_a_layer_that_is_not_known_is_refused_by_its_parameters_name(self, build, parameter, x):
        model = build().eval()
        for function in (
            lambda: forward(model, population_of(model), x),
            lambda: evaluate(model, population_of(model), x, torch.zeros(2, dtype=torch.long)),
        ):
            with pytest.raises(UnsupportedLayerError) as caught:
                function()
            assert parameter in str(caught.value)
            assert "no member-wise form of" in str(caught.value)
            assert isinstance(caught.value, TinkeringError)


class TestMistakes:
    MODEL = nn.Linear(8, 4).eval()
    X = torch.zeros(5, 8)
    Y = torch.zeros(5, dtype=torch.long)

    def message(self, **changes):
        arguments = {
            "model": self.MODEL,
            "population": population_of(self.MODEL),
            "x": self.X,
            "y": self.Y,
            **changes,
        }
        with pytest.raises(ArgumentError) as caught:
            evaluate(**arguments)
        assert isinstance(caught.value, ValueError)
        if not {"y", "fitness"} & set(changes):
            del arguments["y"]
            with pytest.raises(ArgumentError) as again:
                forward(**arguments)
            assert str(again.value) == str(caught.value)
        return str(caught.value)

    def test_train_mode(self):
        assert self.message(model=nn.Linear(8, 4)) == (
            "model: needed a module in eval mode, got one in train mode. Call model.eval()."
        )

    @pytest.mark.parametrize("in_dims", [(None, 0), (None, None), (1, None), (0, 1)])
    def test_in_dims(self, in_dims):
        assert self.message(in_dims=in_dims) == (
            "in_dims: needed (0, None) for one batch shared by all members or (0, 0) for a batch "
            f"each, got {in_dims}."
        )

    @pytest.mark.parametrize("shape", [(5, 8), (7, 5, 8), (1, 5, 8), (6,)])
    def test_x_without_a_batch_for_each_member(self, shape):
        assert self.message(x=torch.zeros(shape), in_dims=(0, 0)) == (
            f"x: needed [members, batch, ...] with 6 members, got {list(shape)}."
        )

    @pytest.mark.parametrize(
        ("in_dims", "x", "y", "needed"),
        [
            ((0, None), (5, 8), (4,), [5]),
            ((0, None), (5, 8), (), [5]),
            ((0, None), (5, 8), (5, 1), [5]),
            ((0, 0), (6, 5, 8), (5,), [6, 5]),
            ((0, 0), (6, 5, 8), (6,), [6, 5]),
            ((0, 0), (6, 5, 8), (5, 6), [6, 5]),
        ],
    )
    def test_labels_that_do_not_fit(self, in_dims, x, y, needed):
        message = self.message(
            in_dims=in_dims, x=torch.zeros(x), y=torch.zeros(y, dtype=torch.long)
        )
        assert message == f"y: needed a label for every image of x, {needed}, got {list(y)}."

    @pytest.mark.parametrize(
        ("fitness", "shape"),
        [
            (lambda logits, _: logits.mean(), []),
            (lambda logits, labels: F.cross_entropy(logits.flatten(0, 1), labels.flatten()), []),
            (lambda logits, _: logits.mean(2), [6, 5]),
            (lambda logits, _: logits.mean((1, 2))[:1], [1]),
        ],
        ids=["mean", "cross-entropy", "a number an image", "one number in all"],
    )
    def test_a_fitness_that_is_not_a_number_a_member(self, fitness, shape):
        assert self.message(fitness=fitness) == (
            "fitness: needed a tensor of shape [members] = [6], one number a member, got a tensor "
            f"of shape {shape}. Average over the images of a member (dimension 1), not over the "
            "members."
        )
