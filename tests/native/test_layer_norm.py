"""Layer norms with members' own scale and shift in one pass, against a loop over images."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkering.native.after import After, layer_norm
from tinkering.native.build import library

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler on this machine")


@settings(max_examples=100)
@given(
    st.integers(1, 70) | st.sampled_from([16, 32, 48]),
    st.integers(1, 5),
    st.tuples(st.booleans(), st.booleans()),
    st.sampled_from([(torch.float32, 1e-5), (torch.bfloat16, 2**-7)]),
    st.integers(0, 1000),
)
def test_equals_a_loop(features, pixels, given_, dtype, seed):
    dtype, tolerance = dtype
    torch.manual_seed(seed)
    x = (torch.randn(4, pixels, features) * 2 + 3).to(dtype)
    scale, shift = torch.randn(features), torch.randn(features)
    # Rows with gaps between them, as a part of a draw has.
    noise = [torch.randn(3, 2 * features)[:, :features] if there else None for there in given_]
    rows, signs = torch.tensor([2, 0, 0, 1]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    result = layer_norm(After(scale=scale, scale_noise=noise[0], shift=shift,
                              shift_noise=noise[1], sigma=0.3), x, 1e-3, rows, signs)  # fmt: skip
    assert result.dtype == dtype
    for i in range(4):
        own = [
            value if one is None else value + one[rows[i]] * signs[i] * 0.3
            for value, one in zip((scale, shift), noise, strict=True)
        ]
        expected = F.layer_norm(x[i].double(), [features], *(v.double() for v in own), 1e-3)
        difference = (result[i].double() - expected).abs().max()
        assert difference <= tolerance * expected.abs().max().clamp(min=1)


def test_what_is_not_finite_shows():
    x = torch.tensor([[[1.0, float("nan"), 2.0]]])
    result = layer_norm(After(), x, 1e-5, torch.zeros(1, dtype=torch.int64), torch.ones(1))
    assert result.isnan().all()
