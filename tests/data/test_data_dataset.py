import pickle

import numpy as np
import pytest
import torch

from tinkering.data import load, make_dataset
from tinkering.errors import ArgumentError


def uneven():
    """Classes of 50, 30 and 20 images, sorted; pixel (0, 0) is the image's number."""
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    pixels = torch.arange(100, dtype=torch.uint8)[:, None, None].expand(100, 2, 3).contiguous()
    return make_dataset("uneven", (pixels, labels), (pixels[::2], labels[::2]), ("a", "b", "c"))


def test_normalised_with_the_training_half_alone():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (20, 4, 5), dtype=np.uint8)
    test = rng.integers(0, 50, (10, 4, 5), dtype=np.uint8)
    labels = torch.zeros(20, dtype=torch.int64)
    dataset = make_dataset(
        "x",
        (torch.from_numpy(train), labels),
        (torch.from_numpy(test), labels[:10]),
        ("only",),
    )
    scaled = train.astype(np.float64) / 255
    assert dataset.mean == pytest.approx(scaled.mean(), rel=1e-12)
    assert dataset.std == pytest.approx(scaled.std(), rel=1e-12)
    expected = (test / 255 - scaled.mean()) / scaled.std()
    assert dataset.test.x.shape == (10, 1, 4, 5)
    assert dataset.test.x.dtype == torch.float32
    np.testing.assert_allclose(dataset.test.x[:, 0].numpy(), expected, atol=1e-6)


def test_images_by_index_are_those_of_the_whole():
    dataset = uneven()
    indices = torch.tensor([99, 0, 7, 7])
    assert torch.equal(dataset.train.images(indices), dataset.train.x[indices])
    assert torch.equal(dataset.train.y, dataset.train.labels)
    assert len(dataset.train) == 100
    # The bytes are as they were.
    assert dataset.train.pixels[:, 0, 0].tolist() == list(range(100))


def test_images_of_one_grey_stay_finite():
    half = (torch.full((3, 2, 2), 51, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    dataset = make_dataset("grey", half, half, ("grey",))
    assert dataset.mean == pytest.approx(0.2)
    assert dataset.train.x.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        (100, [50, 30, 20]),
        (10, [5, 3, 2]),
        (50, [25, 15, 10]),
        (1, [1, 0, 0]),
        (4, [2, 1, 1]),  # 2.0, 1.2 and 0.8: the fourth goes to the last.
        (7, [4, 2, 1]),  # 3.5, 2.1 and 1.4: the seventh goes to the first.
        (9, [4, 3, 2]),  # 4.5, 2.7 and 1.8: the last two go to the last two.
    ],
)
def test_classes_keep_their_shares(size, counts):
    small = uneven().subset(train=size)
    assert small.train.y.bincount(minlength=3).tolist() == counts


def test_a_subset_is_made_of_different_images_with_their_own_labels():
    whole = uneven()
    small = whole.subset(train=40, seed=4)
    numbers = small.train.pixels[:, 0, 0].tolist()
    assert len(set(numbers)) == 40
    assert small.train.y.tolist() == [int(whole.train.y[n]) for n in numbers]
    # Sorted as the whole is, the subset is not.
    assert small.train.y.tolist() != sorted(small.train.y.tolist())
    assert len(small.test) == 50
    assert (small.mean, small.std, small.classes) == (whole.mean, whole.std, whole.classes)


def test_a_subset_depends_on_its_seed_and_nothing_else():
    whole = uneven()
    once, again, other = (whole.subset(train=40, test=10, seed=s) for s in (1, 1, 2))
    for half in ("train", "test"):
        assert torch.equal(getattr(once, half).pixels, getattr(again, half).pixels)
        assert not torch.equal(getattr(once, half).pixels, getattr(other, half).pixels)


@pytest.mark.parametrize("size", [0, -1, 101])
def test_a_size_out_of_range(size):
    with pytest.raises(ArgumentError) as caught:
        uneven().subset(train=size)
    assert str(caught.value) == f"train: needed an integer from 1 to 100, got {size}."
    with pytest.raises(ArgumentError, match="test: needed an integer from 1 to 50, got"):
        uneven().subset(test=51)


def test_a_seed_out_of_range():
    with pytest.raises(ArgumentError, match="seed: needed"):
        uneven().subset(train=3, seed=-1)


def test_a_data_set_survives_pickling():
    dataset = load("mnist5k").subset(train=10, test=10)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy.test.x, dataset.test.x)
    assert copy.classes == dataset.classes
