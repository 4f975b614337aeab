"""The made data set: the same from the same flags, whole, read by the package, and legible."""

import pytest
import torch

from benchmarks import glyphs
from tinkering.data import load
from tinkering.errors import ArgumentError


@pytest.mark.parametrize("classes", ["digits", "letters", "all"])
def test_every_class_has_its_share(classes):
    pixels, labels = glyphs.glyphs(130, classes)
    count = len(glyphs.CLASSES[classes])
    assert (pixels.shape, pixels.dtype) == ((130, 28, 28), torch.uint8)
    assert set(labels.bincount(minlength=count).tolist()) <= {130 // count, -(-130 // count)}
    assert (labels[1:] < labels[:-1]).any()  # in no order


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(tmp_path):
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        glyphs.write(tmp_path / name, 40, 40, seed=seed)
    one, again, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "again", "other")
    )
    assert one == again
    assert all(one[name] != other[name] for name in one)


def test_more_images_than_are_distorted_at_a_time_differ_from_each_other():
    pixels, _ = glyphs.glyphs(glyphs._CHUNK + 100, "digits")
    assert len(pixels.flatten(1).unique(dim=0)) == len(pixels)


def test_the_package_reads_what_was_written(tmp_path):
    dataset = load(glyphs.write(tmp_path / "made", 72, 36))
    for split, count, stream in ((dataset.train, 72, 0), (dataset.test, 36, 1)):
        pixels, labels = glyphs.glyphs(count, stream=stream)
        assert torch.equal(split.pixels, pixels)
        assert torch.equal(split.y, labels)
    assert len(dataset.classes) == 36


def test_a_test_image_is_most_like_glyphs_of_its_class():
    train, labels = glyphs.glyphs(1000, "digits")
    test, wanted = glyphs.glyphs(100, "digits", stream=1)
    ours, theirs = (
        torch.nn.functional.normalize(pixels.float().flatten(1)) for pixels in (test, train)
    )
    nearest = labels[(ours @ theirs.T).argmax(1)]
    assert 0.5 < (nearest == wanted).float().mean() < 1


def test_a_picture_is_drawn(tmp_path):
    path = glyphs.picture(tmp_path / "glyphs.png", "digits")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argument", "given"),
    [("count", {"count": 35}), ("seed", {"count": 36, "seed": -1})],
)
def test_what_cannot_be_made_is_refused(argument, given):
    with pytest.raises(ArgumentError, match=f"^{argument}: "):
        glyphs.glyphs(**given)
