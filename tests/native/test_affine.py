"""Scale, shift, residual and rectifier in one pass, and how the kernels round."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkering.graph.activation import RECTIFIER
from tinkering.layers.after import Affine, After
from tinkering.native import after as native
from tinkering.native.build import library

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler on this machine")
NAN, INF = float("nan"), float("inf")


def both(x, residual, folded, noise, relu, rows, signs, sigma):
    """What the kernel and the plain form make of the same arguments."""
    after = After(RECTIFIER if relu else None, folded, noise, sigma)
    return after(x, residual, rows, signs), after.plain(x, residual, rows, signs)


def alone(x, relu=False, scale=1.0, shift=0.0, residual=None):
    """One image, whose channels are the given numbers."""
    images = x.view(1, -1, 1, 1)
    row, sign = torch.zeros(1, dtype=torch.int64), torch.ones(1)
    vectors = [torch.full((x.numel(),), value) for value in (scale, shift)]
    added = None if residual is None else residual.view(1, -1, 1, 1)
    kernel, plain = both(images, added, Affine(*vectors), (None, None), relu, row, sign, 0.0)
    return kernel.flatten(), plain.flatten()


class TestAffine:
    @settings(max_examples=80)
    @given(
        st.integers(1, 40) | st.sampled_from([8, 16, 32]),
        st.tuples(st.integers(1, 6), st.integers(1, 6)),
        st.tuples(*[st.booleans()] * 4),
        st.sampled_from([(torch.float32, 1e-5), (torch.bfloat16, 2**-7)]),
        st.integers(0, 1000),
    )
    def test_the_kernel_and_its_plain_form_equal_a_loop(self, channels, image, given, dtype, seed):
        with_residual, scale_noise, shift_noise, relu = given
        dtype, tolerance = dtype
        torch.manual_seed(seed)
        x, residual = (torch.randn(5, channels, *image).to(dtype) for _ in range(2))
        folded = Affine(torch.randn(channels), torch.randn(channels))
        # Rows with gaps between them, as a part of a draw has.
        noise = [torch.randn(3, 2 * channels)[:, :channels] for _ in range(2)]
        rows, signs = torch.tensor([2, 0, 0, 1, 2]), torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
        expected = []
        for i in range(5):
            scale, shift = folded.scale.double(), folded.shift.double()
            scale = scale + noise[0][rows[i]] * signs[i] * 0.3 * scale_noise
            shift = shift + noise[1][rows[i]] * signs[i] * 0.3 * shift_noise
            out = x[i].double() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
            out = out + residual[i].double() * with_residual
            expected.append(out.clamp(min=0) if relu else out)
        expected = torch.stack(expected)
        results = both(
            x,
            residual if with_residual else None,
            folded,
            (noise[0] if scale_noise else None, noise[1] if shift_noise else None),
            relu,
            rows,
            signs,
            0.3,
        )
        for result in results:
            assert result.dtype == dtype
            difference = (result.double() - expected).abs().max()
            assert difference <= tolerance * expected.abs().max().clamp(min=1)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("count", [5, 8, 16, 19])
    @pytest.mark.parametrize("relu", [False, True])
    def test_what_is_not_finite_stays_what_it_is(self, dtype, count, relu):
        """A NaN that a rectifier made a zero would hide that a member has broken down."""
        x = torch.tensor([NAN, INF, -INF, -1.0, 0.0] * 4, dtype=dtype)[:count]
        expected = torch.relu(x) if relu else x
        for result in alone(x, relu):
            torch.testing.assert_close(result, expected, equal_nan=True, rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_a_residual_that_is_not_finite_shows(self, dtype):
        residual = torch.tensor([NAN, INF, -INF, -1.0, 0.0] * 4, dtype=dtype)
        for result in alone(torch.ones(20, dtype=dtype), True, residual=residual):
            expected = torch.relu(1 + residual)
            torch.testing.assert_close(result, expected, equal_nan=True, rtol=0, atol=0)

    def test_the_result_may_lie_in_the_inputs_memory(self):
        x = torch.randn(3, 20, 2, 2).contiguous(memory_format=torch.channels_last)
        scale, shift, expected = torch.randn(20), torch.randn(20), x.clone()
        rows, signs = torch.zeros(3, dtype=torch.int64), torch.ones(3)
        native.affine(native.After(scale=scale, shift=shift), x, None, x, rows, signs)
        expected = expected * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
        torch.testing.assert_close(x, expected)


def rounded(values):
    """The kernel's bfloat16 for float32 numbers: as the shift of an image of zeros."""
    zeros = torch.zeros(1, len(values), 1, 1, dtype=torch.bfloat16)
    row, sign = torch.zeros(1, dtype=torch.int64), torch.ones(1)
    folded = Affine(torch.zeros(len(values)), values)
    return After(None, folded)(zeros, None, row, sign).flatten()


def bits_of_many_numbers():
    """Random bits, and all of the cases that rounding can get wrong."""
    random = torch.randint(-(2**31), 2**31, (200_000,), generator=torch.Generator().manual_seed(0))
    upper = torch.arange(-(2**15), 2**15) << 16
    ties = torch.cat([upper + lower for lower in (0, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    return torch.cat([random, ties]).to(torch.int32).view(torch.float32)


def assert_rounds_as_torch_does(round_):
    """To nearest, ties to even; numbers below 1e-38 may become zero, as AVX512-BF16 has it."""
    values = bits_of_many_numbers()
    result, expected = round_(values), values.bfloat16()
    subnormal = (values.abs() < torch.finfo(torch.float32).tiny) & (values != 0)
    nan = values.isnan()
    ordinary = ~nan & ~subnormal & (values != 0)
    assert subnormal.sum() > 1000 < nan.sum()
    assert torch.equal(result[ordinary], expected[ordinary])
    assert result[nan].isnan().all()
    assert not result[~nan].isnan().any()
    flushed = result[subnormal] == 0
    assert (flushed | (result[subnormal] == expected[subnormal])).all()
    return flushed.all().item()


class TestRounding:
    def test_equals_torch(self):
        assert_rounds_as_torch_does(rounded)

    def test_with_the_number_of_channels_that_no_vector_has(self):
        values = bits_of_many_numbers()[:100_003]
        ordinary = values.isfinite() & (values.abs() > 1e-37)
        assert torch.equal(rounded(values)[ordinary], values.bfloat16()[ordinary])

    @pytest.mark.long
    def test_equals_torch_without_the_processors_instruction(self, tmp_path):
        """Built for any processor, the kernel rounds by itself, and keeps the small ones."""
        code = (
            "from test_affine import assert_rounds_as_torch_does, rounded\n"
            "from tinkering.native.build import library\n"
            "assert library() is not None\n"
            "assert not assert_rounds_as_torch_does(rounded)\n"
        )
        generic = "g++ -U__AVX512BF16__"
        path = os.pathsep.join([os.path.dirname(__file__), *sys.path])  # noqa: PTH120
        changes = {"CXX": generic, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": path}
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **changes})
