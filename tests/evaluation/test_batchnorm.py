"""Reference statistics against NumPy."""

import copy

import numpy as np
import pytest
import torch
from small_nets import make, resnet
from torch import nn

from tinkering.errors import TinkeringError
from tinkering.evaluation.batchnorm import recalibrate, reference_statistics


def params_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def two_norms():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 4),
        nn.BatchNorm1d(4),
    )


def statistics(values):
    """Mean and unbiased variance of each channel of ``[images, channels, ...]``, in NumPy."""
    rows = np.moveaxis(values.detach().double().numpy(), 1, -1).reshape(-1, values.shape[1])
    return rows.mean(0), rows.var(0, ddof=1)


def by_hand(model, x):
    """Both norms' statistics, and the outputs, in double precision."""
    with torch.no_grad():
        conv, first, _, _, linear, _ = (copy.deepcopy(layer).double() for layer in model)
        y = conv(x.double())
        mean, variance = statistics(y)
        count = y.numel() / y.shape[1]
        spread = torch.from_numpy(variance * (count - 1) / count + first.eps).sqrt()
        y = (y - torch.from_numpy(mean).view(1, -1, 1, 1)) / spread.view(1, -1, 1, 1)
        y = y * first.weight.view(1, -1, 1, 1) + first.bias.view(1, -1, 1, 1)
        y = linear(y.relu().flatten(1))
        return {"1": (mean, variance), "5": statistics(y)}


class TestReferenceStatistics:
    @pytest.mark.parametrize("images", [2, 3, 50])
    def test_exact_where_one_tile_holds_all(self, images):
        model = two_norms()
        with torch.no_grad():
            model[1].weight.uniform_(0.5, 2)
            model[1].bias.normal_()
        x = 3 * torch.randn(images, 2, 4, 4) + 1
        buffers = reference_statistics(model, params_of(model), x)
        for norm, (mean, variance) in by_hand(model, x).items():
            np.testing.assert_allclose(buffers[f"{norm}.running_mean"], mean, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(buffers[f"{norm}.running_var"], variance, rtol=1e-3)

    @pytest.mark.parametrize(
        ("images", "tile", "parts"), [(90, 30, 3), (92, 30, 4), (64, 2, 32), (65, 2, 32)]
    )
    def test_tiles_are_averaged(self, images, tile, parts):
        model = nn.BatchNorm1d(3, affine=False)
        x = torch.randn(images, 3)
        buffers = reference_statistics(model, {}, x, tile)
        parts = np.array_split(x.double().numpy(), parts)
        assert max(len(part) for part in parts) <= max(tile, 3)
        mean = np.mean([part.mean(0) for part in parts], axis=0)
        variance = np.mean([part.var(0, ddof=1) for part in parts], axis=0)
        np.testing.assert_allclose(buffers["running_mean"], mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(buffers["running_var"], variance, rtol=1e-4)

    def test_tiles_come_close_to_the_whole(self):
        model = make(resnet)
        x = torch.randn(240, 1, 8, 8)
        whole = reference_statistics(model, params_of(model), x)
        tiled = reference_statistics(model, params_of(model), x, tile=80)
        for name, value in whole.items():
            if "running" in name:
                assert not torch.equal(tiled[name], value)
                torch.testing.assert_close(tiled[name], value, rtol=0.1, atol=0.05)

    def test_more_images_than_the_default_tile_come_close_to_numpy(self):
        x = 2 * torch.randn(3000, 2) + 5
        buffers = reference_statistics(nn.BatchNorm1d(2, affine=False), {}, x)
        mean, variance = statistics(x)
        np.testing.assert_allclose(buffers["running_mean"], mean, rtol=1e-5)
        np.testing.assert_allclose(buffers["running_var"], variance, rtol=0.01)

    def test_what_the_buffers_were_before_does_not_count(self):
        model, other = two_norms(), two_norms()
        other.train()(100 * torch.randn(9, 2, 4, 4))
        x = torch.randn(10, 2, 4, 4)
        first = reference_statistics(model, params_of(model), x)
        again = reference_statistics(other, params_of(model), x)
        assert all(torch.equal(again[name], value) for name, value in first.items())

    def test_the_given_parameters_count_and_the_module_is_left_alone(self):
        model, other = make(resnet, seed=0), make(resnet, seed=1)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        x = torch.randn(10, 1, 8, 8)
        buffers = reference_statistics(model, params_of(other), x)
        expected = reference_statistics(other, params_of(other), x)
        assert all(torch.equal(buffers[name], value) for name, value in expected.items())
        assert all(torch.equal(before[name], v) for name, v in model.state_dict().items())
        assert not any(layer.training for layer in model.modules())
        assert model.bn1.momentum == 0.1
        assert all(p.requires_grad for p in model.parameters())
        assert not any(value.requires_grad for value in buffers.values())

    @pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout1d, nn.AlphaDropout])
    def test_dropout_drops_nothing(self, layer):
        with_dropout = nn.Sequential(layer(0.5), nn.BatchNorm1d(3))
        x = torch.randn(50, 3)
        first = reference_statistics(with_dropout, params_of(with_dropout), x)
        again = reference_statistics(with_dropout, params_of(with_dropout), x)
        mean, variance = statistics(x)
        assert torch.equal(first["1.running_mean"], again["1.running_mean"])
        np.testing.assert_allclose(first["1.running_mean"], mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(first["1.running_var"], variance, rtol=1e-4)

    def test_in_eval_mode_they_give_what_train_mode_gives(self):
        """Up to the unbiased variance: the point of having them."""
        model = two_norms()
        x = torch.randn(400, 2, 4, 4)
        with torch.no_grad():
            expected = copy.deepcopy(model).train()(x)
            buffers = reference_statistics(model, params_of(model), x)
            result = torch.func.functional_call(model.eval(), {**params_of(model), **buffers}, (x,))
        torch.testing.assert_close(result, expected, rtol=0.01, atol=0.01)


class TestRecalibrate:
    @pytest.mark.parametrize("training", [True, False])
    def test_replaces_the_statistics_in_place(self, training):
        model = two_norms().train(training)
        model[1].running_mean.add_(50)
        params, held = params_of(model), model[1].running_mean
        x = torch.randn(30, 2, 4, 4)
        recalibrate(model, x)
        assert model[1].running_mean is held
        for norm, (mean, variance) in by_hand(model, x).items():
            layer = model[int(norm)]
            np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(layer.running_var, variance, rtol=1e-3)
        assert model.training is training
        assert model[1].momentum == 0.1
        assert all(torch.equal(params[name], p) for name, p in model.named_parameters())

    def test_a_module_without_norms_stays_as_it_is(self):
        model = nn.Linear(3, 2)
        before = copy.deepcopy(model.state_dict())
        recalibrate(model, torch.randn(5, 3))
        assert all(torch.equal(before[name], v) for name, v in model.state_dict().items())


@pytest.mark.parametrize("images", [0, 1])
def test_fewer_than_two_images(images):
    model = two_norms()
    x = torch.zeros(images, 2, 4, 4)
    for call in (
        lambda: recalibrate(model, x),
        lambda: reference_statistics(model, params_of(model), x),
    ):
        with pytest.raises(ValueError, match="variance") as caught:
            call()
        needed = "inputs: needed at least two examples, for a variance"
        assert str(caught.value) == f"{needed}, got {images}."
        assert isinstance(caught.value, TinkeringError)


def test_a_tile_of_one_image_is_refused():
    with pytest.raises(ValueError, match="needed") as caught:
        reference_statistics(nn.BatchNorm1d(3), {}, torch.zeros(4, 3), tile=1)
    assert str(caught.value) == "tile: needed at least two examples, for a variance, got 1."
