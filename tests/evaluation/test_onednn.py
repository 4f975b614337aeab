"""The calls that PyTorch does not promise: right where they are used, left where they are not."""

import pytest
import torch
import torch.nn.functional as F

from tinkering.evaluation import onednn
from tinkering.evaluation.onednn import AccumulatingConv, Geometry

GEOMETRIES = [
    (3, Geometry((1, 1), (1, 1), (1, 1))),
    (3, Geometry((2, 2), (1, 1), (1, 1))),
    (1, Geometry((2, 2), (0, 0), (1, 1))),
    (3, Geometry((1, 2), (2, 0), (2, 1))),
]


@pytest.fixture
def _fresh_check():
    """The check's verdict is kept for the process; these tests want one of their own."""
    onednn.packed_convolutions_work.cache_clear()
    yield
    onednn.packed_convolutions_work.cache_clear()


def channels_last(*shape):
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def sum_in_float64(x, other, weight, bias, geometry, relu):
    out = other.double() + F.conv2d(
        x.double(),
        weight.double(),
        bias.double(),
        geometry.stride,
        geometry.padding,
        geometry.dilation,
    )
    return out.clamp(min=0) if relu else out


@pytest.mark.parametrize(("kernel", "geometry"), GEOMETRIES)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=str
)
def test_sum_of_convolution_bias_and_other(kernel, geometry, relu, dtype, tolerance):
    x, weight = channels_last(5, 8, 9, 9), torch.randn(12, 8, kernel, kernel) / 8
    bias = torch.randn(12)
    conv = F.conv2d(x, weight, None, geometry.stride, geometry.padding, geometry.dilation)
    other = channels_last(*conv.shape)
    expected = sum_in_float64(x, other, weight, bias, geometry, relu)
    layer = AccumulatingConv(weight.to(dtype), bias.to(dtype), geometry, relu)
    for _ in range(2):  # the second call finds the weights packed
        result = layer(x.to(dtype), other.to(dtype, copy=True))
        torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)
        assert (result < 0).any() != relu


@pytest.mark.usefixtures("_fresh_check")
@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_a_fault_is_found_and_the_public_path_serves(monkeypatch, caplog, fault):
    real = onednn._accumulate

    def accumulate(*args, **kwargs):
        if fault == "missing":
            raise RuntimeError("no such operation")
        return real(*args, **kwargs) * 1.5

    monkeypatch.setattr(onednn, "_accumulate", accumulate)
    geometry = Geometry((1, 1), (1, 1), (1, 1))
    x, other = channels_last(2, 3, 5, 5), channels_last(2, 4, 5, 5)
    weight, bias = torch.randn(4, 3, 3, 3), torch.randn(4)
    expected = sum_in_float64(x, other, weight, bias, geometry, relu=True)
    caplog.set_level("INFO", "tinkering")
    layer = AccumulatingConv(weight, bias, geometry, relu=True)
    if fault == "missing":  # nothing to worry about on another processor
        result = layer(x, other)
        assert "packed convolutions are not used for torch.float32: no such" in caplog.text
    else:
        with pytest.warns(UserWarning, match="convolutions are not used: wrong results"):
            result = layer(x, other)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_not_called_fast_without_working_convolutions(monkeypatch):
    monkeypatch.setattr(onednn, "packed_convolutions_work", lambda _: False)
    onednn.bfloat16_is_fast.cache_clear()
    try:
        assert not onednn.bfloat16_is_fast()
    finally:
        onednn.bfloat16_is_fast.cache_clear()
