import gzip
import hashlib
import re
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from tinkering.data import load
from tinkering.data.embedded import FOLDER, SHA256, load_embedded
from tinkering.errors import DataError

TRAIN_IMAGES = "emnist-mnist5k-train-images-idx3-ubyte.gz"


def test_five_thousand_digits_stratified():
    digits = load("mnist5k")
    assert digits.name == "mnist5k"
    assert digits.classes == tuple("0123456789")
    assert digits.train.pixels.shape == (4000, 28, 28)
    assert digits.test.pixels.shape == (1000, 28, 28)
    assert digits.train.y.bincount().tolist() == [400] * 10
    assert digits.test.y.bincount().tolist() == [100] * 10
    # Shuffled: in a sorted file hardly any neighbours would differ.
    assert (digits.train.y[1:] != digits.train.y[:-1]).float().mean() > 0.8


def test_no_image_is_in_both_halves():
    digits = load()
    train = {image.numpy().tobytes() for image in digits.train.pixels}
    assert not any(image.numpy().tobytes() in train for image in digits.test.pixels)


def test_digits_stand_upright():
    digits = load()
    ones = digits.train.pixels[digits.train.y == 1].float().mean(0)
    # A one is higher than it is wide.
    rows, columns = (ones.sum(1) > 200).sum(), (ones.sum(0) > 200).sum()
    assert rows > columns + 4
    sevens = digits.train.pixels[digits.train.y == 7].float().mean(0)
    # Wide at the top, where its bar is; narrow at the foot.
    top, foot = ((sevens[rows] > 50).any(0).sum() for rows in (slice(6, 11), slice(18, 23)))
    assert top > foot + 4


def test_files_store_images_transposed():
    raw = gzip.decompress((FOLDER / TRAIN_IMAGES).read_bytes())
    assert struct.unpack(">4I", raw[:16]) == (2051, 4000, 28, 28)
    first = np.frombuffer(raw, np.uint8, 784, 16).reshape(28, 28)
    assert np.array_equal(load().train.pixels[0].numpy(), first.T)
    assert not np.array_equal(first, first.T)


def test_as_a_folder_the_files_read_the_same():
    digits, folder = load(), load(f"idx:{FOLDER}")
    for half in ("train", "test"):
        one, other = getattr(digits, half), getattr(folder, half)
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.labels, other.labels)
    assert folder.classes == digits.classes


def test_gzip_headers_hold_no_name_and_no_time():
    for name in SHA256:
        if name.endswith(".gz"):
            flags, time = struct.unpack("<3xBI", (FOLDER / name).read_bytes()[:8])
            assert (flags, time) == (0, 0)


def test_the_readme_has_the_checksums_of_the_files():
    text = (FOLDER / "README.md").read_text()
    told = {name: digest for digest, name in re.findall(r"`(\w{64})` \| `(emnist\S+)`", text)}
    files = {p.name: p for p in FOLDER.iterdir() if p.name.startswith("emnist-")}
    digests = {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in files.items()}
    assert told == digests == SHA256


@pytest.mark.parametrize("name", sorted(SHA256))
def test_a_changed_file_is_refused(tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(FOLDER, folder)
    assert len(load_embedded(folder).train) == 4000
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(DataError) as caught:
        load_embedded(folder)
    assert str(caught.value) == (
        f"{folder / name}: expected SHA-256 {SHA256[name]}, found {found}. "
        "The file was changed; install tinkering again."
    )


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"emnist-mnist5k-mapping\.txt: expected a complete"):
        load_embedded(tmp_path)


def test_the_conversion_makes_these_files_from_a_table(tmp_path):
    # The table again, from the files: which row was where is lost, so the division
    # differs; what is in the files and what they are called must not.
    digits = load()
    pixels = torch.cat([digits.train.pixels, digits.test.pixels]).reshape(5000, 784)
    labels = torch.cat([digits.train.y, digits.test.y])[:, None]
    table = torch.cat([pixels, labels], dim=1).numpy()
    text = "\n".join(",".join(map(str, row)) for row in table.tolist())
    (tmp_path / "table.csv.gz").write_bytes(gzip.compress(text.encode(), 1))
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, FOLDER / "convert.py", tmp_path / "table.csv.gz", out]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {line.split()[1] for line in result.stdout.splitlines()} == set(SHA256)
    made = load(f"idx:{out}")
    assert made.train.y.bincount().tolist() == [400] * 10
    assert made.test.y.bincount().tolist() == [100] * 10

    def rows(dataset):
        halves = (dataset.train, dataset.test)
        return sorted(
            (image.numpy().tobytes(), int(label))
            for half in halves
            for image, label in zip(half.pixels, half.y, strict=True)
        )

    assert rows(made) == rows(digits)
