"""Convolutions of few channels in one kernel, against float32 arithmetic on the same numbers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinkering import noise as noises
from tinkering.evaluation.entry import forward
from tinkering.graph.activation import RECTIFIER, Activation
from tinkering.layers.low_rank import Correction, layer_noise
from tinkering.layers.narrow import NarrowConv, is_narrow
from tinkering.layers.onednn import Geometry
from tinkering.native import correction as native
from tinkering.native.correction import Shape
from tinkering.noise import Dense, LowRank, Separable, Stream
from tinkering.population import PerturbedPopulation

needs_kernel = pytest.mark.skipif(
    not native.convolves(8, 8, (1, 1)), reason="no compiler, or no AVX512-BF16 here"
)


def channels_last(*shape):
    return torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)


@needs_kernel
class TestAgainstFloat32:
    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_any_shape(self, data):
        draw = data.draw
        torch.manual_seed(draw(st.integers(0, 10**6)))
        channels = draw(st.sampled_from([1, 4, 8, 16]))
        outputs = draw(st.sampled_from([8, 16, 24, 32]))
        kernel = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
        stride = draw(st.integers(1, 2))
        padding = draw(st.tuples(st.integers(0, 5), st.integers(0, 5)))
        dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        least = [max(1, r - 2 * p) for r, p in zip(reach, padding, strict=True)]
        size = [draw(st.integers(one, one + 15)) for one in least]
        kind = draw(st.sampled_from([Dense(), LowRank(1), LowRank(2), Separable(1), Separable(2)]))
        with_residual, with_shift = (draw(st.booleans()) for _ in range(2))
        activation = draw(st.sampled_from([None, RECTIFIER, Activation("silu")]))
        images, pairs = 3, 2
        rows, signs = torch.tensor([1, 0, 1]), torch.tensor([1.0, -1.0, -1.0])

        weight = torch.randn(outputs, channels, *kernel).bfloat16().float()
        shift, scale = torch.randn(outputs), torch.rand(outputs)
        noise = noises.draw(kind, Stream(1, 2), {"w": weight.shape}, range(pairs))["w"]
        shift_noise = torch.randn(pairs, outputs) if with_shift else None
        x = channels_last(images, channels, *size)
        geometry = ((stride, stride), padding, dilation)
        expected = torch.stack(
            [
                F.conv2d(
                    x[i : i + 1].float(),
                    weight + noise.dense()[rows[i]] * signs[i] * scale.view(-1, 1, 1, 1),
                    shift + (shift_noise[rows[i]] * signs[i] * 0.5 if with_shift else 0),
                    *geometry,
                )[0]
                for i in range(images)
            ]
        )
        residual = channels_last(*expected.shape) if with_residual else None
        if residual is not None:
            expected = expected + residual.float()
        expected = expected if activation is None else activation(expected)

        half = torch.full((outputs,), 0.5)
        add = Correction(
            Shape(channels, outputs, 1, tuple(size), tuple(expected.shape[2:]), kernel, *geometry),
            layer_noise(noise, scale, shift_noise, half),
        )
        conv = NarrowConv(weight, shift, activation)
        result = conv(x, residual, add, rows, signs, overwrite=False)
        assert result.dtype == torch.bfloat16
        # One rounding to bfloat16 at the end, and sums in another order.
        assert torch.allclose(result.float(), expected, rtol=2**-7, atol=2e-3)
        if residual is not None:
            again = conv(x, residual, add, rows, signs, overwrite=True)
            assert again.data_ptr() == residual.data_ptr()
            assert torch.equal(again, result)

    def test_a_network_of_narrow_layers(self):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5),
        ).eval()  # fmt: skip
        population = PerturbedPopulation(model, size=6, sigma=0.1)
        x = torch.randn(3, 1, 8, 8)
        wide = forward(model, population, x)
        narrow = forward(model, population, x, dtype=torch.bfloat16)
        assert not torch.equal(wide, narrow)
        assert (wide - narrow).abs().max() < 0.02 * wide.abs().max()


class TestIsNarrow:
    geometry = Geometry((1, 1), (1, 1), (1, 1))

    def weight(self, outputs=8, channels=8, dims=2):
        return torch.zeros(outputs, channels, *[3] * dims)

    @needs_kernel
    def test_few_channels_in_bfloat16(self, monkeypatch):
        monkeypatch.setattr("tinkering.layers.narrow.has_amx", lambda: False)
        assert is_narrow(self.weight(), self.geometry, torch.bfloat16)
        assert is_narrow(self.weight(channels=1), self.geometry, torch.bfloat16)
        monkeypatch.setattr("tinkering.layers.narrow.has_amx", lambda: True)
        assert not is_narrow(self.weight(), self.geometry, torch.bfloat16)
        assert is_narrow(self.weight(channels=1), self.geometry, torch.bfloat16)

    @pytest.mark.parametrize(
        ("weight", "geometry", "dtype"),
        [
            ((8, 8, 2), geometry, torch.float32),
            ((8, 32, 2), geometry, torch.bfloat16),
            ((8, 6, 2), geometry, torch.bfloat16),
            ((10, 8, 2), geometry, torch.bfloat16),
            ((8, 8, 3), geometry, torch.bfloat16),
            ((8, 8, 2), Geometry((3, 3), (1, 1), (1, 1)), torch.bfloat16),
            ((8, 8, 2), Geometry((1, 2), (1, 1), (1, 1)), torch.bfloat16),
            ((8, 4, 2), Geometry((1, 1), (1, 1), (1, 1), groups=2), torch.bfloat16),
        ],
    )
    def test_everything_else_is_not(self, weight, geometry, dtype):
        assert not is_narrow(self.weight(*weight), geometry, dtype)

    def test_without_kernels_nothing_is(self, monkeypatch):
        monkeypatch.setattr("tinkering.native.correction.library", lambda: None)
        assert not is_narrow(self.weight(), self.geometry, torch.bfloat16)
