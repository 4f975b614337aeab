"""What members add to a layer: the kernel and its plain form against a loop over images."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinkering import bind
from tinkering import noise as noises
from tinkering.graph.activation import CURVES, Activation
from tinkering.layers.after import Affine, After
from tinkering.layers.low_rank import (
    Correction,
    embedding_noise,
    layer_noise,
    of_members,
    plain_correction,
)
from tinkering.native import calls
from tinkering.native import correction as native
from tinkering.native.build import library
from tinkering.native.correction import LayerNoise, Shape
from tinkering.native.depthwise import Depthwise
from tinkering.noise import Dense, LowRank, Separable, Stream
from tinkering.population import PerturbedPopulation

needs_kernels = pytest.mark.skipif(library() is None, reason="no C++ compiler on this machine")
DTYPES = [torch.float32, torch.bfloat16]
KINDS = [Dense(), *(kind(rank) for kind in (LowRank, Separable) for rank in (1, 2, 3))]


@dataclass
class Layer:
    """A layer's noise and images, and what a loop over the images makes of them."""

    shape: Shape
    weight: object
    scale: torch.Tensor
    shift: torch.Tensor | None
    shift_scale: torch.Tensor
    x: torch.Tensor
    residual: torch.Tensor | None
    rows: torch.Tensor
    signs: torch.Tensor

    @property
    def noise(self):
        return layer_noise(self.weight, self.scale, self.shift, self.shift_scale)

    def expected(self):
        """One image after the other, in double precision."""
        images = []
        shape = self.shape
        walk = (shape.stride, shape.padding, shape.dilation, shape.groups)
        for i, (row, sign) in enumerate(zip(self.rows, self.signs.double(), strict=True)):
            out = torch.zeros(1, shape.outputs * shape.groups, *shape.result, dtype=torch.float64)
            if self.weight is not None:
                weight = self.weight.dense()[row].double() * self.scale.view(-1, 1, 1, 1)
                out += F.conv2d(self.x[i : i + 1].double(), weight * sign, None, *walk)
            if self.shift is not None:
                out += (self.shift[row].double() * self.shift_scale * sign).view(1, -1, 1, 1)
            images.append(out if self.residual is None else out + self.residual[i].double())
        return torch.cat(images)


def channels_last(x, dtype):
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def make_layer(sizes, kind, seed, dtype, with_shift=True, with_residual=True, pairs=3, images=5):
    channels, outputs, groups, image, kernel, stride, padding, dilation = sizes
    whole = outputs * groups
    result = tuple(
        (size + 2 * pad - spread * (taps - 1) - 1) // step + 1
        for size, taps, step, pad, spread in zip(
            image, kernel, stride, padding, dilation, strict=True
        )
    )
    g = torch.Generator().manual_seed(seed)
    stream, names = Stream(seed, 1), range(pairs)
    return Layer(
        Shape(channels, outputs, groups, image, result, kernel, stride, padding, dilation),
        kind and draw_one(kind, stream, "weight", (whole, channels, *kernel), names),
        torch.rand(whole, generator=g) + 0.5,
        draw_one(Dense(), stream, "bias", (whole,), names).dense() if with_shift else None,
        torch.rand(whole, generator=g) + 0.5,
        channels_last(torch.randn(images, channels * groups, *image, generator=g), dtype),
        channels_last(torch.randn(images, whole, *result, generator=g), dtype)
        if with_residual
        else None,
        torch.randint(pairs, (images,), generator=g),
        torch.randint(2, (images,), generator=g).float() * 2 - 1,
    )


def assert_right(result, layer, tolerance):
    expected = layer.expected()
    assert result.shape == expected.shape
    scale = expected.abs().max().clamp(min=1e-3)
    assert ((result.double() - expected).abs().max() / scale).item() <= tolerance


def draw_one(kind, stream, name, shape, pairs):
    return noises.draw(kind, stream, {name: shape}, pairs)[name]


def two(values):
    return st.tuples(values, values)


@st.composite
def layer_sizes(draw):
    kernel, dilation = draw(two(st.integers(1, 5))), draw(two(st.integers(1, 3)))
    padding = draw(two(st.integers(0, 3)))
    least = [
        max(1, spread * (taps - 1) + 1 - 2 * pad)
        for taps, spread, pad in zip(kernel, dilation, padding, strict=True)
    ]
    image = tuple(draw(st.integers(size, max(20, size))) for size in least)
    stride = draw(two(st.integers(1, 3)))
    outputs = draw(st.integers(1, 40) | st.sampled_from([8, 16, 32]))
    channels = draw(st.integers(1, 40) | st.sampled_from([8, 16, 32]))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 8]))
    if groups > 1:
        channels, outputs = min(channels, 8), min(outputs, 16)
    return channels, outputs, groups, image, kernel, stride, padding, dilation


layers = st.tuples(
    layer_sizes() | st.just((16, 16, 1, (7, 9), (3, 3), (1, 1), (1, 1), (1, 1))),
    st.sampled_from([*KINDS, None]),
    st.integers(0, 1000),
    st.just(torch.float32),
    st.booleans(),
    st.booleans(),
)

ACTIVATIONS = [None, *(Activation(curve) for curve in CURVES), Activation("clamp", 0.0, 6.0)]


def finish(layer, out, after):
    """What stands behind a layer, one image after the other, in double precision."""
    images = []
    for i, (row, sign) in enumerate(zip(layer.rows, layer.signs.double(), strict=True)):
        image = out[i].double()
        if after.affine is not None:
            own = [after.affine.scale.double(), after.affine.shift.double()]
            for at, noise in enumerate(after.noise):
                if noise is not None:
                    own[at] = own[at] + noise[row].double() * sign * after.sigma
            image = image * own[0].view(-1, 1, 1) + own[1].view(-1, 1, 1)
        if layer.residual is not None:
            image = image + layer.residual[i].double()
        images.append(image if after.activation is None else after.activation(image))
    return torch.stack(images)


def make_after(layer, activation, which, seed, pairs=3):
    """`which` of the scale, its noise, and the noise of the shift are there."""
    torch.manual_seed(seed)
    count = layer.shape.outputs * layer.shape.groups
    if not which[0]:
        return After(activation)
    noise = [torch.randn(pairs, count) if there else None for there in which[1:]]
    return After(activation, Affine(torch.randn(count), torch.randn(count)), tuple(noise), 0.3)


def assert_finished(result, expected, tolerance):
    assert result.shape == expected.shape
    assert result.is_contiguous(memory_format=torch.channels_last)
    scale = expected.abs().max().clamp(min=1)
    assert ((result.double() - expected).abs().max() / scale).item() <= tolerance


behind = st.tuples(
    st.sampled_from(ACTIVATIONS), st.tuples(*[st.booleans()] * 3), st.integers(0, 99)
)


SATURATING = ("tanh", "sigmoid")
"""Functions that hide how large the numbers were that they are computed from."""


class TestFinished:
    @needs_kernels
    @settings(max_examples=250)
    @given(layers, behind, st.sampled_from([(torch.float32, 1e-5), (torch.bfloat16, 2**-7)]))
    def test_the_kernel_and_its_plain_form_equal_a_loop(self, given_, behind, dtype):
        dtype, tolerance = dtype
        layer = make_layer(*given_[:3], dtype, *given_[4:])
        after = make_after(layer, *behind)
        shape = (len(layer.x), layer.shape.outputs * layer.shape.groups, *layer.shape.result)
        product = channels_last(torch.randn(shape), dtype)
        residual, layer.residual = layer.residual, None
        total = product.double() + layer.expected()
        layer.residual = residual
        expected = finish(layer, total, after)
        for serves in (True, False):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(calls, "available", lambda _, serves=serves: serves)
                add = Correction(layer.shape, layer.noise)
                held = product.clone(memory_format=torch.preserve_format)
                result = add.finished(layer.x, held, residual, after, layer.rows, layer.signs)
            # Before the activation numbers may be larger: what is lost there is lost.
            before = finish(layer, total, replace(after, activation=None)).abs().max()
            before = max(before, product.abs().max().double(), (total - product).abs().max())
            more = max(1.0, (before / expected.abs().max().clamp(min=1)).item())
            saturates = after.activation is not None and after.activation.curve in SATURATING
            if serves or dtype == torch.float32:
                assert_finished(result, expected, tolerance * (more if saturates else 1))
            else:  # the plain form rounds on the way too
                assert_finished(result, expected, 0.06 * more)


class TestDepthwise:
    @needs_kernels
    @settings(max_examples=250)
    @given(layers, behind, st.sampled_from([(torch.float32, 1e-5), (torch.bfloat16, 2**-7)]))
    def test_equals_a_loop_over_images(self, given_, behind, dtype):
        dtype, tolerance = dtype
        (_, outputs, _, *walk), kind, seed, _, *with_ = given_
        layer = make_layer((1, 1, outputs, *walk), kind, seed, dtype, *with_)
        after, shape = make_after(layer, *behind), layer.shape
        weight, shift = torch.randn(outputs, 1, *shape.kernel), torch.randn(outputs)
        residual, layer.residual = layer.residual, None
        convolved = F.conv2d(
            layer.x.double(), weight.double(), shift.double(),
            shape.stride, shape.padding, shape.dilation, outputs,
        )  # fmt: skip
        total = convolved + layer.expected()
        layer.residual = residual
        expected = finish(layer, total, after)
        left = None
        if layer.weight is not None:
            left = layer.weight.dense().flatten(2).flatten(1).view(3, outputs, -1).mT.contiguous()
        noise = LayerNoise(left, None, None, layer.scale, layer.shift, layer.shift_scale)
        convolve = Depthwise(shape, noise, weight.flatten(1).T.contiguous(), shift)
        result = convolve(after.native, layer.x, residual, layer.rows, layer.signs)
        assert result.dtype == dtype
        assert_finished(result, expected, tolerance)

    @needs_kernels
    @pytest.mark.parametrize("kernel", [1, 3, 5, 7])
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("channels", [5, 16, 24])
    def test_the_kernels_that_are_unrolled(self, kernel, stride, channels):
        for size in (kernel, 13):
            walk = (size, size), (kernel, kernel), (stride, stride), (kernel // 2,) * 2, (1, 1)
            sizes = (0, channels, 0, *walk)
            given_ = (sizes, Dense(), 1, torch.float32, True, True)
            check = TestDepthwise.test_equals_a_loop_over_images.hypothesis.inner_test
            act = (Activation("gelu"), (True, True, True), 1)
            check(self, given_, act, (torch.float32, 1e-5))


class TestCorrection:
    @needs_kernels
    @settings(max_examples=250)
    @given(layers)
    def test_the_kernel_and_its_plain_form_equal_a_loop_over_images(self, given_):
        layer = make_layer(*given_)
        result = Correction(layer.shape, layer.noise)(
            layer.x, layer.residual, layer.rows, layer.signs
        )
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert_right(result, layer, 1e-5)
        plain = plain_correction(
            layer.x, layer.residual, layer.shape, layer.noise, layer.rows, layer.signs
        )
        assert plain.is_contiguous(memory_format=torch.channels_last)
        assert_right(plain, layer, 1e-5)

    @needs_kernels
    @settings(max_examples=120)
    @given(layers)
    def test_in_bfloat16_only_the_result_is_rounded(self, given_):
        """The plain form rounds in between too, and so gets more room."""
        layer = make_layer(*given_)
        layer.x = layer.x.bfloat16()
        layer.residual = None if layer.residual is None else layer.residual.bfloat16()
        arguments = layer.x, layer.residual, layer.rows, layer.signs
        result = Correction(layer.shape, layer.noise)(*arguments)
        assert result.dtype == torch.bfloat16
        assert_right(result, layer, 2**-8)
        plain = plain_correction(*arguments[:2], layer.shape, layer.noise, layer.rows, layer.signs)
        assert plain.dtype == torch.bfloat16
        assert_right(plain, layer, 0.03)

    @needs_kernels
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("kind", KINDS, ids=str)
    @pytest.mark.parametrize("outputs", [5, 16, 24])
    def test_the_result_may_lie_in_the_residuals_memory(self, dtype, kind, outputs):
        sizes = (16, outputs, 1, (9, 10), (3, 3), (1, 1), (1, 1), (1, 1))
        layer = make_layer(sizes, kind, 7, dtype)
        expected = layer.expected()
        out = layer.residual.clone(memory_format=torch.preserve_format)
        native.Correction(layer.shape, layer.noise).write(
            layer.x, out, out, layer.rows, layer.signs
        )
        difference = (out.double() - expected).abs().max() / expected.abs().max()
        assert difference <= (1e-5 if dtype == torch.float32 else 2**-8)

    @needs_kernels
    def test_one_object_serves_images_in_other_numbers_and_of_other_rows(self):
        layer = make_layer(
            (6, 7, 1, (5, 5), (3, 2), (2, 1), (1, 0), (1, 2)), LowRank(2), 3, DTYPES[0]
        )
        add = Correction(layer.shape, layer.noise)
        whole = add(layer.x, layer.residual, layer.rows, layer.signs)
        order = torch.tensor([4, 0, 0, 2, 3, 1, 1])
        part = add(
            channels_last(layer.x[order], DTYPES[0]),
            channels_last(layer.residual[order], DTYPES[0]),
            layer.rows[order],
            layer.signs[order],
        )
        assert torch.equal(part, whole[order])
        assert_right(whole, layer, 1e-5)

    def test_without_kernels_the_plain_form_serves(self, monkeypatch):
        monkeypatch.setattr(calls, "library", lambda: None)
        layer = make_layer(
            (6, 7, 1, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1)), LowRank(), 3, DTYPES[0]
        )
        add = Correction(layer.shape, layer.noise)
        result = add(layer.x, layer.residual, layer.rows, layer.signs)
        assert_right(result, layer, 1e-5)


ROWS, SIGNS = torch.tensor([2, 0, 0, 1]), torch.tensor([1.0, -1.0, 1.0, -1.0])


class TestOfMembers:
    @pytest.mark.parametrize("shape", [(5,), (5, 4), (8, 6, 3, 3)])
    def test_is_the_noise_of_each_images_member(self, shape):
        noise = draw_one(LowRank(), Stream(1, 2), "p", shape, range(3))
        result = of_members(noise, ROWS, SIGNS, 0.5)
        for i in range(4):
            assert torch.equal(result[i], noise.dense()[ROWS[i]] * SIGNS[i] * 0.5)


class TestEmbeddingNoise:
    @pytest.mark.parametrize("kind", [Dense(), LowRank(1), LowRank(3), Separable(2)], ids=str)
    @pytest.mark.parametrize("shape", [(), (7,), (3, 2)])
    def test_equals_looking_up_in_each_members_table(self, kind, shape):
        noise = draw_one(kind, Stream(4, 0), "table", (20, 12), range(3))
        indices = torch.randint(20, (4, *shape))
        result = embedding_noise(noise, indices, ROWS, SIGNS, 0.5)
        assert result.shape == (4, *shape, 12)
        for i in range(4):
            table = noise.dense()[ROWS[i]] * SIGNS[i] * 0.5
            torch.testing.assert_close(result[i], table[indices[i]], rtol=1e-5, atol=1e-6)


def test_a_kind_of_its_own_shows_in_the_noise():
    """Else a wrong form could pass, because all kinds fell back to dense numbers."""
    shape = (16, 8, 3, 3)
    some = (KINDS[0], *KINDS[1::3])
    drawn = [draw_one(kind, Stream(0, 0), "w", shape, range(2)) for kind in some]
    scale = torch.ones(16)
    forms = [layer_noise(noise, scale, None, scale) for noise in drawn]
    assert [form.right is None for form in forms] == [True, False, False]
    assert [form.taps is None for form in forms] == [True, True, False]
    assert all(math.prod(form.left.shape) > 0 for form in forms)


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.Hardtanh(), nn.SiLU(), nn.Tanh()], ids=str)
@pytest.mark.parametrize("engine", ["batched", "factored", "sequential"])
def test_what_is_not_a_number_stays_so(activation, engine):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), activation).eval()
    population = PerturbedPopulation(model, 2, 0.1)
    x = torch.zeros(2, 2, 3, 4, 4)
    x[0, 0, 0, 0, 0] = float("nan")
    result = bind(model, population, x, in_dims=(0, 0), engine=engine)(x)
    assert int(result.isnan().sum()) == 16
    assert not result[1].isnan().any()


@pytest.mark.parametrize(
    "activation", [nn.SiLU(), nn.GELU("tanh"), nn.GELU(), nn.Sigmoid()], ids=str
)
def test_functions_of_what_is_very_far_from_nothing(activation):
    model = nn.Sequential(nn.Linear(1, 8, bias=False), activation).eval()
    nn.init.ones_(model[0].weight)
    population = PerturbedPopulation(model, 2, 0.0)
    x = torch.tensor([[-1e38], [-1e36], [-200.0], [-90.0], [-88.0], [200.0], [1e38]])
    result = bind(model, population, x)(x)
    torch.testing.assert_close(result[0], model(x).detach(), rtol=1e-6, atol=1e-30)
