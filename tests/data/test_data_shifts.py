"""Images moved by some pixels: against a loop over pixels, and as a pure function."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinkering.data import Shifts, load
from tinkering.errors import ArgumentError


def moved_by_hand(image, down, right, background):
    """A pixel at a time."""
    height, width = image.shape
    result = torch.full_like(image, background)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[row, column] = image[row - down, column - right]
    return result


@given(
    most=st.integers(0, 4),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    count=st.integers(1, 4),
    seed=st.integers(0, 2**64 - 1),
    generation=st.integers(0, 10**6),
)
def test_every_pixel_is_where_the_offset_says(most, height, width, count, seed, generation):
    images = torch.arange(1.0, count * height * width + 1).view(count, 1, height, width)
    shifts = Shifts(most, seed)
    offsets = shifts.offsets(generation, count)
    assert offsets.shape == (count, 2)
    assert offsets.abs().max() <= most
    moved = shifts.moved(images, offsets, background=-7.0)
    for image, (down, right), result in zip(
        images[:, 0], offsets.tolist(), moved[:, 0], strict=True
    ):
        assert torch.equal(result, moved_by_hand(image, down, right, -7.0))


def test_offsets_are_a_function_of_seed_generation_and_place():
    shifts = Shifts(2, seed=5)
    assert torch.equal(shifts.offsets(3, 10), Shifts(2, seed=5).offsets(3, 20)[:10])
    assert not torch.equal(shifts.offsets(3, 10), shifts.offsets(4, 10))
    assert not torch.equal(shifts.offsets(3, 10), Shifts(2, seed=6).offsets(3, 10))


def test_every_offset_is_as_likely_as_another():
    offsets = Shifts(2).offsets(0, 50_000) + 2
    cells = (offsets[:, 0] * 5 + offsets[:, 1]).bincount(minlength=25)
    assert len(cells) == 25
    # 2,000 each, with a standard deviation of 44: five of them.
    assert (cells - 2000).abs().max() < 220


def test_background_is_a_black_pixel():
    train = load("mnist5k").train
    assert train.images()[0, 0, 0, 0].item() == pytest.approx(train.background)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1,), "shift: needed an integer of at least 0, got -1."),
        ((1, -1), "seed: needed an integer from 0 to 2**64 - 1, got -1."),
    ],
)
def test_message(arguments, message):
    with pytest.raises(ArgumentError) as caught:
        Shifts(*arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("most", [7, 10**6, 10**12])
def test_a_shift_beyond_the_image_takes_no_more_room(most):
    """The margin of a million pixels round a picture would take terabytes."""
    images = torch.ones(64, 1, 3, 7)
    offsets = Shifts(most).offsets(0, 64)
    for offset in ([most, 0], [0, -most], [-most, most]):
        offsets[0] = torch.tensor(offset)
        assert (Shifts(most).moved(images, offsets, -7.0)[0] == -7).all()
    offsets[0] = torch.tensor([2, -6])
    moved = Shifts(most).moved(images, offsets, -7.0)[0, 0]
    assert moved[2, 0] == 1
    assert (moved == 1).sum() == 1


def test_a_shift_is_visible_up_to_the_longer_side():
    Shifts(7).require_visible(3, 7)
    with pytest.raises(ArgumentError) as caught:
        Shifts(8).require_visible(3, 7)
    assert str(caught.value) == (
        "shift: needed an integer from 0 to 7, the side of an image, got 8."
    )
