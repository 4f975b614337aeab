"""A network with twice the channels computes what the narrow one does, and then learns more."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinkering.errors import ArgumentError
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.noise import Stream
from tinkering.strategies.widening import widened


def net(width, blocks=(1, 1, 1, 1), channels=1):
    """A network whose norms have statistics, shifts and scales of their own."""
    model = SimpleResNet(BasicBlock, blocks, 3, channels, width=width).eval()
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point() and value.dim() == 1:
            value.normal_(std=0.5)
            if ".weight" in name:
                value.add_(1)
    return model


def grown(narrow, wide, stream):
    shapes = {name: value.shape for name, value in wide.state_dict().items()}
    state = widened(narrow.state_dict(), shapes, stream)
    wide.load_state_dict(state)
    return wide.eval()


@settings(max_examples=12)
@given(
    width=st.integers(1, 5),
    blocks=st.tuples(*[st.integers(1, 2)] * 4),
    channels=st.integers(1, 2),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_wide_residual_network_returns_what_the_narrow_one_did(width, blocks, channels, seed):
    torch.manual_seed(seed % 2**32)
    narrow, wide = net(width, blocks, channels), net(2 * width, blocks, channels)
    x = torch.randn(3, channels, 12, 12)
    with torch.no_grad():
        expected = narrow(x)
        assert not torch.allclose(wide(x), expected, rtol=1e-2, atol=1e-2)
        came = grown(narrow, wide, Stream(seed, 1))(x)
    torch.testing.assert_close(came, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_again_and_again():
    narrow, x = net(2), torch.randn(3, 1, 12, 12)
    model = narrow
    for stage, width in enumerate((4, 8, 16)):
        model = grown(model, net(width), Stream(0, stage))
    with torch.no_grad():
        torch.testing.assert_close(model(x), narrow(x), rtol=1e-4, atol=1e-5)


def test_copies_are_moved_apart_by_a_gradient():
    """By autograd, which knows nothing of how it was widened."""
    wide = grown(net(2), net(4), Stream(0, 1))
    wide(torch.randn(32, 1, 12, 12)).square().sum().backward()
    one, other = wide.conv1.weight.grad.flatten(1).chunk(2)
    # Not even alike but for their lengths, which Adam would not see.
    assert (torch.cosine_similarity(one, other).abs() < 0.99).all()


def test_shares_come_from_the_stream_alone():
    narrow, shapes = {"a": torch.randn(3, 4)}, {"a": (3, 8)}
    once, again = (widened(narrow, shapes, Stream(0, 1))["a"] for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(widened(narrow, shapes, Stream(1, 1))["a"], once)
    torch.testing.assert_close(once[:, :4] + once[:, 4:], narrow["a"])


def test_what_a_fresh_wide_network_weighs():
    """Copies share a weight so that the sum of squares, over twice the inputs, stays."""
    narrow = {"a": torch.randn(64, 64, 3, 3)}
    wide = widened(narrow, {"a": (64, 128, 3, 3)}, Stream(0, 1))
    ratio = wide["a"].square().sum() / narrow["a"].square().sum()
    assert float(ratio) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("shape", [(3, 12), (3, 5), (3,), (3, 2), (3, 4, 1)])
def test_other_shapes_are_refused(shape):
    said = f"[3, 4], or twice as many outputs or inputs, for 'a', got {[*shape]}."
    with pytest.raises(ArgumentError, match=re.escape(said)):
        widened({"a": torch.zeros(3, 4)}, {"a": shape}, Stream(0, 1))


def test_other_kernels_and_names_are_refused():
    with pytest.raises(ArgumentError, match=re.escape("got [6, 8, 6].")):
        widened({"a": torch.zeros(3, 4, 3)}, {"a": (6, 8, 6)}, Stream(0, 1))
    with pytest.raises(ArgumentError, match="with 'a', got none"):
        widened({"a": torch.zeros(3)}, {"b": (3,)}, Stream(0, 1))


def test_a_linear_layer_after_flattened_channels():
    def make(width):
        return nn.Sequential(
            nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 3)
        )

    narrow, x = make(2), torch.randn(5, 1, 6, 6)
    with torch.no_grad():
        expected = narrow(x)
        torch.testing.assert_close(grown(narrow, make(4), Stream(0, 1))(x), expected)
