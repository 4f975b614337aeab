"""What is refused as out of range, or as no number at all, and how that is said."""

import math

import pytest

from tinkering.errors import ArgumentError
from tinkering.ranges import require_at_least, require_not_negative, require_positive


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: require_at_least(1, rank=0), "rank: needed an integer of at least 1, got 0."),
        (lambda: require_at_least(1, rank=1.5), "rank: needed an integer of at least 1, got 1.5."),
        (lambda: require_at_least(2, a=2, b="3"), "b: needed an integer of at least 2, got '3'."),
        (
            lambda: require_not_negative(sigma=-0.1),
            "sigma: needed a finite number of at least 0, got -0.1.",
        ),
        (
            lambda: require_not_negative(sigma=math.inf),
            "sigma: needed a finite number of at least 0, got inf.",
        ),
        (
            lambda: require_not_negative(sigma="1"),
            "sigma: needed a finite number of at least 0, got '1'.",
        ),
        (lambda: require_positive("step", 0), "step: needed a finite number above 0, got 0."),
        (
            lambda: require_positive("step", math.nan),
            "step: needed a finite number above 0, got nan.",
        ),
        (
            lambda: require_positive("step", 3, most=2.0),
            "step: needed a number above 0 and at most 2, got 3.",
        ),
    ],
)
def test_said(call, said):
    with pytest.raises(ArgumentError) as caught:
        call()
    assert str(caught.value) == said


def test_what_is_in_range_and_none_pass():
    require_at_least(0, generation=0, group=None)
    require_not_negative(sigma=0, blur=0.5, seconds=None)
    require_positive("step", 1)
    require_positive("step", 2.0, most=2.0)
