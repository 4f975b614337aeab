import matplotlib.image
import numpy as np
import pytest
import torch

from tinkering.data import load, make_dataset, save_grid
from tinkering.errors import ArgumentError, DataError


def test_a_grid_of_digits(tmp_path):
    path = save_grid(load(), tmp_path / "grid.png", half="test", count=25)
    assert path == tmp_path / "grid.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    again = save_grid(load(), tmp_path / "again.png", half="test", count=25)
    other = save_grid(load(), tmp_path / "other.png", half="test", count=25, seed=1)
    assert path.read_bytes() == again.read_bytes() != other.read_bytes()


def test_images_are_drawn_upright_in_order_of_class(tmp_path):
    # Class 0 is bright in the upper left corner, class 1 nowhere.
    pixels = torch.zeros(4, 28, 28, dtype=torch.uint8)
    labels = torch.tensor([1, 0, 1, 0])
    pixels[labels == 0, :14, :14] = 255
    half = (pixels, labels)
    dataset = make_dataset("corners", half, half, ("$a_", "b"))
    drawn = matplotlib.image.imread(save_grid(dataset, tmp_path / "grid.png", count=99))
    assert drawn.shape[:2] == (2 * (28 + 14 + 4), 2 * (10 * 32 + 4))
    dark = drawn[..., :3].max(axis=2) < 0.2
    # Two pixels of the picture for each of an image; 14 of caption, 4 between images.
    expected = np.zeros_like(dark)
    for column in (0, 1):
        left = 2 * (4 + column * 32)
        expected[28 : 28 + 28, left : left + 28] = True
    assert (dark == expected).mean() > 0.99
    assert dark[expected].mean() > 0.95


def test_what_cannot_be_drawn(tmp_path):
    digits = load()
    with pytest.raises(ArgumentError, match="half: needed train or test, got 'both'"):
        save_grid(digits, tmp_path / "x.png", half="both")
    for count in (0, 2001):
        with pytest.raises(ArgumentError, match=f"needed an integer from 1 to 2000, got {count}"):
            save_grid(digits, tmp_path / "x.png", count=count)
    with pytest.raises(DataError, match=r"none/x\.png: expected a place for the picture, found"):
        save_grid(digits, tmp_path / "none" / "x.png")
