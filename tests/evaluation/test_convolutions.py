"""Convolutions of every geometry, through the layers that engines use, against float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import fx, nn

import tinkering
from tinkering.graph.program import CONVOLUTIONS, Fused
from tinkering.layers.centre import ConvLayer, Folded
from tinkering.layers.low_rank import grouped_correction
from tinkering.layers.onednn import Geometry
from tinkering.noise import Dense, LowRank, Separable
from tinkering.population import PerturbedPopulation

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2**-7}
"""Of a result, by the sum of its products' sizes."""
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def whole(number):
    return number, number


def case(size, kernel, stride, padding, dilation=(1, 1), channels=1, outputs=1, groups=1, images=3):
    """Channels and outputs are those of a group."""
    shape = images, channels * groups, *size
    return shape, (outputs * groups, channels, *kernel), (stride, padding, dilation, groups)


# What oneDNN's kernels for channels-last images got wrong, some of each kind; the last five wrote
# or read beyond their memory, which ends the process sooner or later.
KNOWN = [
    case((9, 3), (5, 5), (1, 3), (3, 1), outputs=3, groups=16),
    case((3, 3), (3, 3), (1, 3), (1, 1), outputs=3, groups=32),
    case((10, 2), (4, 5), (1, 2), (2, 2), (3, 1), outputs=2, groups=24),
    case((5, 4), (3, 4), (1, 3), (1, 1), outputs=17),
    case((10, 3), (3, 3), (1, 4), (1, 1)),
    case((2, 4), (1, 4), (2, 4), (1, 0), channels=16, outputs=64),
    case((4, 14), (7, 7), (7, 7), (3, 3), channels=16, outputs=2, groups=3),
    case((12, 14), (1, 7), (2, 7), (0, 3), channels=5, outputs=16, groups=8),
    case((9, 1), (1, 1), (2, 2), (1, 3), (3, 3), channels=3, outputs=33),
    case((6, 2), (4, 1), (1, 3), (2, 4), (3, 3), channels=4, outputs=3, groups=3),
    case((7, 1), (4, 1), (4, 4), (0, 5), (2, 3), outputs=8, groups=33),
]


@st.composite
def cases(draw, axes=2):
    channels = draw(st.sampled_from([1, 1, 2, 3, 4, 7, 8, 16, 17, 32]))
    outputs = draw(st.sampled_from([1, 2, 3, 5, 8, 16, 17, 32]))
    groups = draw(st.sampled_from([1, 1, 2, 3, 8, 15, 16, 32]))
    if groups > 3:
        channels, outputs = min(channels, 4), min(outputs, 5)
    each = {"min_size": axes, "max_size": axes}
    kernel = draw(st.lists(st.integers(1, 7 if axes < 3 else 3), **each))
    stride = draw(st.lists(st.integers(1, 4), **each))
    if draw(st.booleans()):  # with steps as long as the kernel
        stride[-1] = kernel[-1]
    padding = draw(st.lists(st.integers(0, 5 if axes < 3 else 2), **each))
    dilation = draw(st.one_of(st.just([1] * axes), st.lists(st.integers(1, 3), **each)))
    size = []
    for k, p, d in zip(kernel, padding, dilation, strict=True):
        least = max(1, d * (k - 1) + 1 - 2 * p)
        size.append(draw(st.integers(least, least + 9 if axes < 3 else least + 3)))
    walk = (tuple(stride), tuple(padding), tuple(dilation), groups)
    images = draw(st.integers(1, 4))
    return (images, channels * groups, *size), (outputs * groups, channels, *kernel), walk


def normal(*shape, dtype, layout=torch.channels_last):
    drawn = torch.randn(shape).to(dtype)
    return drawn.contiguous(memory_format=layout) if len(shape) == 4 else drawn


def assert_right(result, x, weight, walk, bias=None, other=None):
    """Compare with float64, each number by the size of what was summed for it."""
    convolve = CONVOLVE[x.dim() - 2]
    given = [x.double(), weight.double(), None if bias is None else bias.double()]
    expected = convolve(*given, *walk)
    sizes = convolve(*(None if value is None else value.abs() for value in given), *walk)
    if other is not None:
        expected, sizes = expected + other.double(), sizes + other.double().abs()
    assert result.shape == expected.shape
    error = (result.double() - expected).abs()
    assert torch.isfinite(result).all()
    assert (error <= TOLERANCE[x.dtype] * sizes + 1e-6).all(), float((error / sizes).max())


def layer_of(weight, bias, walk, dtype):
    graph = fx.Graph()
    given = [graph.placeholder(name) for name in ("x", "weight", "bias")]
    convolve = CONVOLUTIONS[weight.dim() - 3]
    node = graph.call_function(convolve, (*given, *map(list, walk[:3]), walk[3]))
    folded = Folded(torch.ones(len(weight)), bias.float(), weight.float())
    return ConvLayer(Fused(node, None, None, None, node), folded, None, dtype)


def check_layer(case, dtype):
    shape, kernel, walk = case
    torch.manual_seed(0)
    weight, bias = normal(*kernel, dtype=dtype), normal(kernel[0], dtype=dtype)
    layer = layer_of(weight.contiguous(), bias, walk, dtype)
    for images in (shape[0], 1, 5):  # weights are packed for the first, and right for all
        x = normal(images, *shape[1:], dtype=dtype)
        result = layer(x, None, False)
        assert_right(result, x, weight, walk, bias)
        assert torch.equal(layer(x, None, False), result)
        other = normal(*result.shape, dtype=dtype)
        kept = other.clone()
        assert_right(layer(x, other, False), x, weight, walk, bias, other)
        assert torch.equal(other, kept)


dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@dtypes
class TestConvLayer:
    @pytest.mark.parametrize("case", KNOWN, ids=str)
    def test_what_went_wrong_once(self, case, dtype):
        check_layer(case, dtype)

    @settings(max_examples=80, deadline=None)
    @given(case=cases())
    def test_any_geometry(self, case, dtype):
        check_layer(case, dtype)

    @settings(max_examples=30, deadline=None)
    @given(case=cases(axes=1))
    @example(case=((3, 3, 1), (33, 3, 1), ((2,), (3,), (3,), 1)))
    def test_along_a_line(self, case, dtype):
        check_layer(case, dtype)

    @settings(max_examples=25, deadline=None)
    @given(case=cases(axes=3))
    def test_in_three_dimensions(self, case, dtype):
        check_layer(case, dtype)


@dtypes
class TestGroupedCorrection:
    """Every image has weights of its own."""

    def check(self, case, dtype):
        shape, kernel, walk = case
        torch.manual_seed(0)
        x, noise = normal(*shape, dtype=dtype), torch.randn(shape[0], *kernel).to(dtype)
        result = grouped_correction(x, noise, Geometry(*walk))
        for i in range(len(x)):
            assert_right(result[i : i + 1], x[i : i + 1], noise[i], walk)

    @pytest.mark.parametrize("images", [1, 3])
    @pytest.mark.parametrize("case", KNOWN, ids=str)
    def test_what_went_wrong_once(self, case, images, dtype):
        shape, *rest = case
        self.check(((images, *shape[1:]), *rest), dtype)

    @settings(max_examples=40, deadline=None)
    @given(case=st.one_of(cases(), cases(axes=3)))
    def test_any_geometry(self, case, dtype):
        self.check(case, dtype)


@dtypes
@pytest.mark.parametrize(("build", "size"), [
    (lambda: nn.Conv2d(16, 48, 5, (1, 3), (3, 1), groups=16), (16, 9, 3)),
    (lambda: nn.Conv2d(1, 17, (3, 4), (1, 3), (1, 1)), (1, 5, 4)),
    (lambda: nn.Conv1d(3, 33, 1, 2, 3, 3), (3, 1)),
], ids=["multiplier", "one channel", "line"])  # fmt: skip
@pytest.mark.parametrize("engine", ["factored", "sequential"])
def test_engines_agree_with_each_member_on_its_own(engine, build, size, dtype):
    torch.manual_seed(0)
    first = build()
    pool = nn.AdaptiveAvgPool2d(2) if len(size) == 3 else nn.AdaptiveAvgPool1d(2)
    wide = first.out_channels * (4 if len(size) == 3 else 2)
    model = nn.Sequential(first, nn.ReLU(), pool, nn.Flatten(), nn.Linear(wide, 5)).eval()
    population = PerturbedPopulation(model, size=4, sigma=0.05)
    for images in (1, 3):
        x = torch.randn(4, images, *size)
        options = {"in_dims": (0, 0), "dtype": dtype, "engine": engine}
        result = tinkering.forward(model, population, x, **options)
        again = tinkering.forward(model, population, x, **options)
        assert torch.equal(result, again)
        # In float64: PyTorch's own float32 ends the process for the last of them.
        members = [population.materialise(i, model).double() for i in range(4)]
        alone = torch.stack([member(x[i].double()) for i, member in enumerate(members)])
        tolerance = 1e-4 if dtype == torch.float32 else 0.03
        assert (result - alone).abs().max() <= tolerance * alone.abs().max()


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch's own, of what it copies
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("build", "size"), [
    (lambda p: nn.Conv1d(3, 4, 4, padding=p, dilation=3), (3, 14)),
    (lambda p: nn.Conv2d(3, 4, (2, 3), padding=p, dilation=(1, 2)), (3, 7, 9)),
    (lambda p: nn.Conv2d(4, 4, 4, padding=p, groups=4), (4, 7, 8)),
    (lambda p: nn.Conv3d(2, 3, (1, 3, 5), padding=p), (2, 4, 5, 6)),
], ids=["line", "plane", "depthwise", "volume"])  # fmt: skip
def test_padding_in_words(build, padding, size):
    """With an even kernel "same" has more behind than before."""
    torch.manual_seed(0)
    model = nn.Sequential(build(padding), nn.Flatten(), nn.LazyLinear(5)).eval()
    x = torch.randn(4, 2, *size)
    model(x[0])
    population = PerturbedPopulation(model, size=4, sigma=0.05)
    result = tinkering.forward(model, population, x, in_dims=(0, 0), engine="factored")
    alone = torch.stack([population.materialise(i, model)(x[i]) for i in range(4)])
    torch.testing.assert_close(result, alone, rtol=1e-4, atol=1e-5)


@st.composite
def transposed_cases(draw):
    axes = draw(st.integers(1, 3))
    each = {"min_size": axes, "max_size": axes}
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, outputs = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    size, kernel = (
        draw(st.lists(st.integers(1, 5), **each)),
        draw(st.lists(st.integers(1, 4), **each)),
    )
    stride = draw(st.lists(st.integers(1, 3), **each))
    dilation = draw(st.lists(st.integers(1, 2), **each))
    output_padding = [
        draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
    ]
    padding = [
        draw(st.integers(0, min(2, ((n - 1) * s + d * (k - 1)) // 2)))
        for n, s, d, k in zip(size, stride, dilation, kernel, strict=True)
    ]
    build = getattr(nn, f"ConvTranspose{axes}d")
    walk = (kernel, stride, padding, output_padding, groups, True, dilation)
    return (channels * groups, *size), build(channels * groups, outputs * groups, *walk)


@settings(max_examples=15, deadline=None)  # each is captured
@given(transposed_cases(), st.sampled_from([LowRank(1), LowRank(3), Separable(2), Dense()]))
def test_transposed_convolutions(case, kind):
    shape, layer = case
    torch.manual_seed(0)
    x, population = torch.randn(4, 2, *shape), PerturbedPopulation(layer, 4, 0.3, kind)
    alone = torch.stack([population.materialise(i)(x[i]) for i in range(4)])
    for members in (population, population.stack()):
        result = tinkering.bind(layer, members, x, in_dims=(0, 0))(x)
        assert (result - alone).abs().max() <= 1e-4 * alone.abs().max().clamp(min=1)
