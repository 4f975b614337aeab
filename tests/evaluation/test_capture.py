"""Modules as graphs: what is refused, what is kept, what is random, what couples images."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from small_nets import captured, loop, program, seen
from torch import nn

import tinkering
from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.graph.capture import NotCapturedError
from tinkering.population import PerturbedPopulation

IMAGES = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Does(nn.Module):
    """A linear layer, and a forward of ``(net, images)``."""

    def __init__(self, given, **layers):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.given = given
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.given(self, x)


def attention(dropout):
    return nn.MultiheadAttention(4, 2, dropout=dropout, batch_first=True)


class TestCoupled:
    @pytest.mark.parametrize(
        "forward",
        [
            lambda m, x: m.linear(x - x.mean(0)),
            lambda m, x: m.linear(x).cumsum(0),
            lambda m, x: m.linear(x.flip(0)),
            lambda m, x: m.linear(x).sum(0, keepdim=True),
        ],
    )
    def test_images_with_an_influence_on_each_other_are_seen(self, forward):
        assert captured(Does(forward).eval(), IMAGES).coupled

    @pytest.mark.parametrize("images", [1, 4])
    def test_words_with_an_influence_on_each_other_are_seen(self, images):
        """They are no numbers to be drawn: with a single image given, another is needed."""
        model = Does(lambda m, x: (y := m.words(x).mean(1)) - y.mean(0), words=nn.Embedding(9, 3))
        words = torch.arange(2 * images).view(images, 2) + 1
        assert captured(model.eval(), words).coupled

    def test_statistics_of_the_batch_are_seen(self):
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        assert not captured(model.eval(), IMAGES).coupled
        kept = nn.BatchNorm1d(3, track_running_stats=False).eval()
        assert captured(kept, IMAGES).coupled

    def test_a_norm_in_train_mode_learns_nothing_from_it(self):
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ArgumentError, match=r"which changes '1\.running_mean'"):
            captured(model, IMAGES)
        assert all(torch.equal(before[name], v) for name, v in model.state_dict().items())

    @pytest.mark.parametrize(
        "forward", [lambda m, x: m.linear(x - x.mean(1, True)), lambda m, x: m.linear(x.mul_(2))]
    )
    def test_images_without_one_are_not_accused(self, forward):
        images = IMAGES.clone()
        assert not captured(Does(forward).eval(), images).coupled
        assert torch.equal(images, IMAGES)


class TestRefused:
    @pytest.mark.parametrize(
        ("made", "said"),
        [
            (lambda y: y.tolist(), "a list"),
            (lambda y: {"a": float(y.sum())}, "a dict"),
            (lambda _: "two", "a str"),
        ],
    )
    def test_what_holds_no_tensor(self, made, said):
        with pytest.raises(ArgumentError) as caught:
            captured(Does(lambda m, x: made(m.linear(x))).eval(), IMAGES)
        expected = "model: needed a module that returns a tensor, got Does, which returns "
        assert str(caught.value) == f"{expected}{said}."

    def test_an_object_of_a_class_that_nobody_knows(self):
        with pytest.raises(ArgumentError) as caught:
            captured(Does(lambda m, x: SimpleNamespace(y=m.linear(x))).eval(), IMAGES)
        assert str(caught.value) == (
            "model: needed a module that returns a tensor, got Does, which returns a "
            "SimpleNamespace. torch.export.register_dataclass makes a class of yours known."
        )

    def test_a_forward_that_depends_on_the_images_with_the_reason_in_one_line(self):
        model = Does(lambda m, x: m.linear(x) if x.sum() > 0 else x[:, :2]).eval()
        for _ in range(2):  # the second time it is remembered
            with pytest.raises(NotCapturedError) as caught:
                program(model, IMAGES)
            assert isinstance(caught.value, UnsupportedLayerError)
            start = "Does: its forward is no graph of operations (torch.export cannot capture it: "
            assert str(caught.value).startswith(start)
            assert "data-dependent" in str(caught.value)
            assert "\n" not in str(caught.value)

    def test_images_that_it_does_not_take(self):
        with pytest.raises(
            ArgumentError, match=r"args\[0\]: needed examples that Linear takes"
        ) as caught:
            captured(nn.Linear(4, 2), IMAGES)
        assert "got [4, 3] of torch.float32 (" in str(caught.value)


class TestKept:
    def test_for_the_module_as_it_is_and_the_shape_and_dtype_of_an_image(self):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
        small, large = torch.zeros(2, 1, 5, 5), torch.zeros(2, 1, 6, 6)
        first = program(model, small)
        assert program(model, torch.ones(7, 1, 5, 5)) is first
        assert program(model, large) is not first
        model[2] = nn.Tanh()
        assert program(model, small) is not first
        words = nn.Embedding(3, 2)
        kinds = [torch.zeros(2, 3, dtype=dtype) for dtype in (torch.int32, torch.int64)]
        assert program(words, kinds[0]) is not program(words, kinds[1])

    def test_not_for_another_module_and_not_after_its_end(self):
        one, two = nn.Linear(3, 2), nn.Linear(3, 2)
        assert program(one, IMAGES) is not program(two, IMAGES)
        tinkering.forward(one, PerturbedPopulation(one, size=2, sigma=0.1), IMAGES)
        gone = weakref.ref(one)
        del one
        gc.collect()
        assert gone() is None

    def test_the_first_call_leaves_the_generator_as_later_ones_do(self):
        """Else the same seed gives other numbers in the first evaluation."""
        model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).train()
        torch.manual_seed(5)
        captured(model, IMAGES)
        first = torch.rand(3)
        torch.manual_seed(5)
        assert torch.equal(first, torch.rand(3))


class TestNames:
    def test_values_stand_behind_their_placeholders(self):
        constant = torch.tensor([0.5, 1.0, 2.0])
        model = Does(lambda m, x: m.bn(m.linear(x - constant)), bn=nn.BatchNorm1d(2)).eval()
        taken = captured(model, IMAGES)
        assert sorted(taken.parameters.values()) == [
            "bn.bias",
            "bn.weight",
            "linear.bias",
            "linear.weight",
        ]
        assert {"bn.running_mean", "bn.running_var"} <= set(taken.buffers.values())
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        values = taken.values(state)
        for names in (taken.parameters, taken.buffers):
            assert all(values[key] is state[name] for key, name in names.items())
        (name,) = taken.constants
        assert torch.equal(values[name], constant)
        assert not values.keys() & set(taken.inputs)

    def test_a_tensor_that_two_layers_share_has_the_name_of_the_modules_state(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        names = set(captured(model, IMAGES).parameters.values())
        assert names == {name for name, _ in model.named_parameters()}


def is_random(model, x=IMAGES):
    return seen(model, x).random


TOKENS = torch.randn(2, 5, 4)


class TestRandom:
    @pytest.mark.parametrize("layer", [nn.Dropout, nn.AlphaDropout, nn.Dropout1d])
    def test_dropout_in_train_mode(self, layer):
        model = nn.Sequential(nn.Linear(3, 2), layer(0.5))
        assert is_random(model.train())
        assert not is_random(model.eval())
        assert not is_random(nn.Sequential(nn.Linear(3, 2), layer(0.0)).train())

    def test_dropout_in_the_forward(self):
        always = Does(lambda m, x: F.dropout(m.linear(x), 0.5))
        assert is_random(always.eval())
        training = Does(lambda m, x: F.dropout(m.linear(x), 0.5, m.training))
        assert is_random(training.train())
        assert not is_random(training.eval())

    def test_noise_in_the_forward(self):
        assert is_random(Does(lambda m, x: m.linear(x + torch.randn_like(x))).eval())

    @pytest.mark.parametrize("dropout", [0.0, 0.5])
    def test_attention(self, dropout):
        model = Does(lambda m, x: m.mix(x, x, x, need_weights=False)[0], mix=attention(dropout))
        assert is_random(model.train(), TOKENS) is (dropout > 0)
        assert not is_random(model.eval(), TOKENS)

    def test_where_there_is_no_graph(self):
        def undecided(m, x):
            return F.dropout(m.linear(x), 0.5, m.training) if x.sum() > -1e9 else x

        for training in (True, False):
            known = seen(Does(undecided).train(training), IMAGES)
            assert (known.program, known.random) == (None, training)

    def test_a_rectifier_with_a_random_slope_draws_in_train_mode_alone(self):
        model = nn.Sequential(nn.Linear(3, 2), nn.RReLU())
        assert is_random(model.train())
        assert not is_random(model.eval())


@pytest.mark.parametrize("forward", [lambda m, x: m.linear(x).cumsum(0), lambda _, x: x.flip(0)])
def test_members_whose_images_have_an_influence_on_each_other_are_kept_apart(forward):
    """The first member alone shows nothing: a running sum goes one way."""
    model = Does(forward).eval()
    population = PerturbedPopulation(model, size=4, sigma=0.1)
    x = torch.randn(4, *IMAGES.shape)
    with pytest.raises(UnsupportedLayerError, match="examples of a batch are not independent"):
        tinkering.forward(model, population, x, (0, 0), engine="factored")
    result = tinkering.forward(model, population, x, (0, 0), engine="sequential")
    torch.testing.assert_close(result, loop(population, x, (0, 0), model))
