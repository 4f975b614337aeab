"""The calls that PyTorch does not promise: right where they are used, left where they are not."""

import time

import pytest
import torch
import torch.nn.functional as F

import tinkering
from tinkering.graph.activation import RECTIFIER
from tinkering.layers import onednn
from tinkering.layers.onednn import FusedConv, Geometry

ONE = Geometry((1, 1), (1, 1), (1, 1))
LAYERS = {
    "3x3": ((12, 8, 3, 3), ONE),
    "stride": ((12, 8, 3, 3), Geometry((2, 2), (1, 1), (1, 1))),
    "1x1": ((12, 8, 1, 1), Geometry((2, 2), (0, 0), (1, 1))),
    "uneven": ((12, 8, 3, 2), Geometry((1, 2), (2, 0), (2, 1))),
    "groups": ((12, 4, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 2)),
    "depthwise": ((8, 1, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 8)),
    "odd": ((5, 7, 3, 3), ONE),
}
DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 0.02)]


@pytest.fixture
def _fresh_check():
    """The check's verdict is kept for the process; these tests want one of their own."""
    caches = (
        onednn.packed_convolutions_work,
        onednn._agrees,
        onednn._capabilities,
    )
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def channels_last(*shape):
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def in_float64(x, other, weight, bias, geometry, activation):
    walk = geometry.stride, geometry.padding, geometry.dilation, geometry.groups
    out = F.conv2d(x.double(), weight.double(), bias.double(), *walk)
    out = out if other is None else out + other.double()
    return out if activation is None else activation(out)


def assert_near(result, expected, tolerance):
    assert result.shape == expected.shape
    assert (result.double() - expected).abs().max() <= tolerance * expected.abs().max()


def made(name, dtype, activation):
    """A layer, its weights, and inputs of some images for it."""
    shape, geometry = LAYERS[name]
    weight, bias = torch.randn(shape).to(dtype), torch.randn(shape[0]).to(dtype)

    def inputs(images, size=9):
        x = channels_last(images, shape[1] * geometry.groups, size, size).to(dtype)
        out = in_float64(x, None, weight, bias, geometry, activation)
        return x, channels_last(*out.shape).to(dtype)

    def expected(x, other):
        return in_float64(x, other, weight, bias, geometry, activation)

    return FusedConv(weight, bias, geometry, activation), inputs, expected


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, *onednn._CHECKED], ids=str)
@pytest.mark.parametrize("name", LAYERS)
class TestFusedConv:
    def test_with_and_without_a_summand(self, name, activation, dtype, tolerance):
        layer, inputs, expected = made(name, dtype, activation)
        for images in (5, 1, 12, 5):  # packed by the first, and right for all
            x, other = inputs(images)
            wanted = expected(x, other), expected(x, None)
            kept = x.clone()
            result = layer(x, other.clone(memory_format=torch.preserve_format))
            assert_near(result, wanted[0], tolerance)
            assert_near(layer(x), wanted[1], tolerance)
            if activation in (None, RECTIFIER):
                assert (result < 0).any() == (activation is None)
            assert torch.equal(x, kept)

    def test_images_of_another_size(self, name, activation, dtype, tolerance):
        layer, inputs, expected = made(name, dtype, activation)
        for images, size in ((2, 9), (3, 6), (1, 15)):
            x, other = inputs(images, size)
            wanted = expected(x, other)
            assert_near(layer(x, other), wanted, tolerance)


def test_the_packed_path_is_the_one_that_was_tested():
    assert onednn.packed_convolutions_work(torch.float32)
    assert onednn.packed_convolutions_work(torch.bfloat16)


@pytest.mark.usefixtures("_fresh_check")
class TestFaults:
    @pytest.mark.parametrize("call", ["_accumulate", "_convolve", "_pack"])
    def test_a_missing_call_is_found_and_the_public_path_serves(self, monkeypatch, caplog, call):
        def missing(*_, **__):
            raise RuntimeError("no such operation")

        monkeypatch.setattr(onednn, call, missing)
        caplog.set_level("INFO", "tinkering")
        layer, inputs, expected = made("stride", torch.float32, RECTIFIER)
        for given in (inputs(3), (inputs(3)[0], None)):
            wanted = expected(*given)
            assert_near(layer(*given), wanted, 1e-5)
        text = "packed convolutions are not used for torch.float32: no such"
        assert caplog.text.count(text) == 1

    @pytest.mark.parametrize("call", ["_accumulate", "_convolve"])
    def test_a_wrong_result_is_found_and_the_public_path_serves(self, monkeypatch, call):
        real = getattr(onednn, call)
        monkeypatch.setattr(onednn, call, lambda *a, **k: real(*a, **k) * 1.5)
        layer, inputs, expected = made("stride", torch.float32, RECTIFIER)
        x, other = inputs(3)
        wanted = expected(x, other)
        with pytest.warns(UserWarning, match="convolutions are not used: wrong results"):
            result = layer(x, other)
        assert_near(result, wanted, 1e-5)


@pytest.mark.usefixtures("_fresh_check")
class TestTrust:
    GROUPED = (24, 2, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 4)

    def test_a_wrong_kernel_for_one_geometry_is_found_before_it_is_used(self, monkeypatch, caplog):
        real = onednn._convolve
        calls = []

        def wrong_in_groups(x, packed, bias, walk, activation):
            calls.append(len(x))
            result = real(x, packed, bias, walk, activation)
            if walk[-1] == 4:
                result[..., -1] = 0.0
            return result

        monkeypatch.setattr(onednn, "_convolve", wrong_in_groups)
        caplog.set_level("INFO", "tinkering")
        monkeypatch.setitem(LAYERS, "four groups", self.GROUPED)
        layer, inputs, expected = made("four groups", torch.bfloat16, RECTIFIER)
        other_layer = made("four groups", torch.bfloat16, None)[0]
        for images in (3, 5):
            x, other = inputs(images)
            wanted = expected(x, other)
            assert_near(layer(x, other), wanted, 0.02)
            other_layer(x)
        # The check of the calls, and that of the geometry.
        assert calls == [2] * len(onednn._CHECKED) + [1]
        assert caplog.text.count("images [9, 9] is wrong with weights [24, 2, 3, 3]") == 1

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("name", ["3x3", "stride", "1x1", "depthwise", "odd"])
    def test_what_is_ordinary_is_not_checked(self, monkeypatch, name, dtype):
        monkeypatch.setattr(onednn, "_agrees", lambda *_: pytest.fail("was checked"))
        layer, inputs, _ = made(name, dtype, RECTIFIER)
        monkeypatch.setattr(onednn, "_contiguous", lambda *_: pytest.fail("is not trusted"))
        layer(*inputs(2))

    def test_each_size_of_image_is_checked_once(self, monkeypatch):
        checked = []
        monkeypatch.setattr(onednn, "_agrees", lambda *case: checked.append(case[2]) or True)
        monkeypatch.setitem(LAYERS, "four groups", self.GROUPED)
        layer, inputs, _ = made("four groups", torch.float32, RECTIFIER)
        for size in (9, 9, 6, 9, 6):
            layer(*inputs(2, size))
        assert checked == [(9, 9), (6, 6)]


@pytest.mark.usefixtures("_fresh_check")
class TestBfloat16IsFast:
    @pytest.mark.parametrize(
        ("capabilities", "dtype"),
        [
            ({}, torch.float32),
            ({"avx2": True, "avx512_f": True}, torch.float32),
            ({"amx_bf16": False, "avx512_bf16": False}, torch.float32),
            ({"avx512_bf16": True}, torch.bfloat16),
            ({"amx_bf16": True}, torch.bfloat16),
        ],
        ids=str,
    )
    def test_the_instructions_decide_and_no_clock(self, monkeypatch, capabilities, dtype):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        for clock in ("perf_counter", "monotonic", "time", "process_time"):
            monkeypatch.setattr(time, clock, lambda: pytest.fail("was timed"))
        conv = FusedConv.__call__

        def slow(layer, x, other=None):
            """Bfloat16 as slow as it may be on a machine that does something else besides."""
            for _ in range(20 if x.dtype == torch.bfloat16 else 0):
                conv(layer, x)
            return conv(layer, x, other)

        monkeypatch.setattr(FusedConv, "__call__", slow)
        assert tinkering.fastest_dtype() == dtype

    def test_without_capabilities_that_pytorch_knows_it_is_not(self, monkeypatch):
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        assert onednn.bfloat16_is_fast() is False

    def test_without_working_convolutions_it_is_not(self, monkeypatch):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False
        )
        monkeypatch.setattr(onednn, "packed_convolutions_work", lambda _: False)
        assert onednn.bfloat16_is_fast() is False
