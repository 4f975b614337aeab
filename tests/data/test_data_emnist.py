import gzip
import os
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from idx_files import (
    BYCLASS,
    DIGITS_MAPPING,
    LETTERS_MAPPING,
    MERGED,
    emnist_members,
    image_bytes,
    label_bytes,
    letters_members,
    mapping_of,
    picture,
    zip_bytes,
)

from tinkering.data import load
from tinkering.data.emnist import ARCHIVE, load_emnist
from tinkering.errors import DataError

LETTER_TRAIN_IMAGES = "gzip/emnist-letters-train-images-idx3-ubyte.gz"
LETTER_TRAIN_LABELS = "gzip/emnist-letters-train-labels-idx1-ubyte.gz"
LETTER_TEST_IMAGES = "gzip/emnist-letters-test-images-idx3-ubyte.gz"
LETTER_TEST_LABELS = "gzip/emnist-letters-test-labels-idx1-ubyte.gz"
LETTER_MAPPING = "gzip/emnist-letters-mapping.txt"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Returns a function that puts an archive where `load` looks for it."""
    monkeypatch.setenv("TINKERING_DATA", str(tmp_path))
    path = tmp_path / "emnist" / "gzip.zip"
    path.parent.mkdir()

    def put(members):
        path.write_bytes(members if isinstance(members, bytes) else zip_bytes(members))
        return path

    return put


def letters_error(path):
    with pytest.raises(DataError) as caught:
        load("emnist-letters")
    message = str(caught.value)
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.mark.parametrize(
    ("split", "characters", "mapping"),
    [
        ("byclass", list(BYCLASS), mapping_of(BYCLASS)),
        ("bymerge", list(MERGED), mapping_of(MERGED)),
        ("balanced", list(MERGED), mapping_of(MERGED)),
        ("letters", [f"{chr(65 + i)}/{chr(97 + i)}" for i in range(26)], LETTERS_MAPPING),
        ("digits", list("0123456789"), DIGITS_MAPPING),
        ("mnist", list("0123456789"), DIGITS_MAPPING),
    ],
)
def test_every_split(cache, split, characters, mapping):
    classes = len(characters)
    first = 1 if split == "letters" else 0
    upright = [picture(i, 28, 28) for i in range(2 * classes)]
    stored = [i % classes + first for i in range(2 * classes)]
    test = ([picture(200 + i, 28, 28) for i in range(classes)], stored[:classes])
    cache(emnist_members(split, (upright, stored), test, mapping))
    dataset = load(f"emnist-{split}")
    assert dataset.name == f"emnist-{split}"
    assert list(dataset.classes) == characters
    assert dataset.train.pixels.tolist() == upright
    assert dataset.train.y.tolist() == [i % classes for i in range(2 * classes)]
    assert dataset.test.pixels.tolist() == test[0]
    assert dataset.test.y.tolist() == list(range(classes))


def test_images_of_unequal_sides_are_turned_too(cache):
    train = ([picture(i, 3, 5) for i in range(26)], list(range(1, 27)))
    cache(emnist_members("letters", train, train, LETTERS_MAPPING))
    assert load("emnist-letters").train.pixels.tolist() == train[0]


def test_letters_are_counted_from_nought_and_named_by_both_cases(cache):
    cache(letters_members())
    letters = load("emnist-letters")
    assert letters.train.y.tolist() == [i % 26 for i in range(52)]
    assert letters.classes[0] == "A/a"
    assert letters.classes[25] == "Z/z"


def test_labels_follow_the_mapping_and_not_the_numbers(cache):
    members = letters_members()
    lines = LETTERS_MAPPING.split(b"\r\n")[:-1]
    members[LETTER_MAPPING] = b"\n".join(reversed(lines))
    cache(members)
    letters = load("emnist-letters")
    assert letters.classes[0] == "Z/z"
    assert letters.test.y.tolist() == list(reversed(range(26)))


def test_a_subset_of_a_sorted_test_half_has_all_classes(cache):
    train = ([picture(i) for i in range(260)], [i // 10 + 1 for i in range(260)])
    cache(emnist_members("letters", train, train, LETTERS_MAPPING))
    small = load("emnist-letters").subset(train=52, test=26)
    assert small.train.y.bincount().tolist() == [2] * 26
    assert small.test.y.bincount().tolist() == [1] * 26


def test_nothing_is_unpacked_to_disk(cache):
    path = cache(letters_members())
    load("emnist-letters")
    assert list(path.parent.iterdir()) == [path]


def test_no_archive(tmp_path, monkeypatch):
    monkeypatch.setenv("TINKERING_DATA", str(tmp_path))
    message = letters_error(tmp_path / "emnist" / "gzip.zip")
    assert message == (
        ": expected the EMNIST archive (561,753,746 bytes), found no such file. "
        "Run: tinkering data get emnist-letters. "
        "Or save https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip "
        "(MD5 58c8d27c78d21e728a6bc7b3cc06412e) there by hand."
    )


def test_no_zip(cache):
    message = letters_error(cache(b"<html>Not found</html>"))
    assert message.startswith(": expected a complete, undamaged file, found a fault")
    assert "not a zip file" in message


def test_a_zip_cut_short(cache):
    whole = zip_bytes(letters_members())
    assert "expected a complete, undamaged file" in letters_error(cache(whole[:-100]))


def test_a_missing_member(cache):
    members = letters_members()
    del members[LETTER_TEST_LABELS]
    message = letters_error(cache(members))
    assert message == (
        f": expected a member {LETTER_TEST_LABELS}, found 4 members without it. "
        f"The right archive is {ARCHIVE.url} (MD5 {ARCHIVE.md5})."
    )


BAD_MEMBERS = [
    (
        LETTER_TRAIN_IMAGES,
        gzip.compress(label_bytes([1])),
        "expected magic number 2051 (images), found 2049 (labels)",
    ),
    (
        LETTER_TRAIN_IMAGES,
        gzip.compress(image_bytes([picture(1)] * 51)),
        "expected 52 images, one for each label, found 51 images.",
    ),
    (
        LETTER_TEST_IMAGES,
        gzip.compress(image_bytes([picture(1, 4, 6)] * 26)),
        "expected images of 4 x 4 pixels, like the training images, found 6 x 4.",
    ),
    (
        LETTER_TRAIN_LABELS,
        gzip.compress(label_bytes([1] * 51 + [27])),
        "emnist-letters-mapping.txt), 1 to 26, found 27 at position 51.",
    ),
    (
        LETTER_TEST_LABELS,
        gzip.compress(label_bytes([0] * 26)),
        "emnist-letters-mapping.txt), 1 to 26, found 0 at position 0.",
    ),
    (LETTER_TRAIN_LABELS, gzip.compress(label_bytes([1] * 52))[:-5], "a complete, undamaged"),
    (
        LETTER_MAPPING,
        b"1 65 97\r\n2 sixty\r\n",
        "none of them twice, found b'2 sixty' in line 2.",
    ),
    (LETTER_MAPPING, b"1 65\n1 66\n", "found b'1 66' in line 2."),
    (LETTER_MAPPING, b"1 65\n2 65\n", "found b'2 65' in line 2."),
    (LETTER_MAPPING, b"1\n", "found b'1' in line 1."),
    (LETTER_MAPPING, b"256 65\n", "found b'256 65' in line 1."),
    (LETTER_MAPPING, b"1 1114112\n", "found b'1 1114112' in line 1."),
    (LETTER_MAPPING, b"1 7\n", "found b'1 7' in line 1."),
    (LETTER_MAPPING, b"-1 65\n", "found b'-1 65' in line 1."),
    (LETTER_MAPPING, b"\r\n", "expected a line for each class, found no line."),
    (LETTER_MAPPING, b" " * 70000, "expected a mapping of at most 65536 bytes, found more."),
]


@pytest.mark.parametrize(
    ("member", "content", "message"), BAD_MEMBERS, ids=[row[2] for row in BAD_MEMBERS]
)
def test_a_bad_member_is_named(cache, member, content, message):
    members = letters_members()
    members[member] = content
    path = cache(members)
    found = letters_error(path)
    assert found.startswith(f" ({member}): expected ")
    assert message in found


def test_a_member_with_a_wrong_checksum(cache):
    # Stored, so that only zip's own CRC can tell.
    path = cache(b"")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in letters_members().items():
            archive.writestr(name, content)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1 65 97\r\n", b"1 66 97\r\n", 1))
    assert "Bad CRC-32" in letters_error(path)


def patch_directory(content, offset, value):
    """Change a 16-bit field of every entry of a zip's central directory and local headers."""
    changed = bytearray(content)
    for mark, shift in ((b"PK\x01\x02", 2), (b"PK\x03\x04", 0)):
        at = changed.find(mark)
        while at >= 0:
            struct.pack_into("<H", changed, at + offset + shift, value)
            at = changed.find(mark, at + 4)
    return bytes(changed)


def test_an_encrypted_member(cache):
    path = cache(patch_directory(zip_bytes(letters_members()), 6, 1))
    assert "is encrypted" in letters_error(path)


def test_an_unknown_compression(cache):
    path = cache(patch_directory(zip_bytes(letters_members()), 8, 99))
    assert "compression method is not supported" in letters_error(path)


def test_a_directory_that_points_beyond_any_file(cache):
    # A zip64 field of the first entry says that its member begins at 2**64 - 1.
    content = zip_bytes(letters_members())
    at, end = content.find(b"PK\x01\x02"), content.rfind(b"PK\x05\x06")
    extra = struct.pack("<HHQ", 1, 8, 2**64 - 1)
    name_end = at + 46 + struct.unpack_from("<H", content, at + 28)[0]
    changed = bytearray(content[:name_end] + extra + content[name_end:])
    struct.pack_into("<H", changed, at + 30, len(extra))
    struct.pack_into("<L", changed, at + 42, 2**32 - 1)
    size = struct.unpack_from("<L", content, end + 12)[0] + len(extra)
    struct.pack_into("<L", changed, end + len(extra) + 12, size)
    assert f"({LETTER_MAPPING}): expected a complete" in letters_error(cache(bytes(changed)))


def test_a_member_whose_name_is_no_text(cache):
    content = bytearray(zip_bytes(letters_members()))
    at = content.find(b"PK\x01\x02")
    struct.pack_into("<H", content, at + 8, 0x800)  # The name is said to be UTF-8.
    content[at + 46] = 0xFF
    assert "can't decode byte 0xff" in letters_error(cache(bytes(content)))


def test_a_folder_in_place_of_the_archive(tmp_path, monkeypatch):
    monkeypatch.setenv("TINKERING_DATA", str(tmp_path))
    (tmp_path / "emnist" / "gzip.zip").mkdir(parents=True)
    assert "Is a directory" in letters_error(tmp_path / "emnist" / "gzip.zip")


WHOLE = zip_bytes(letters_members())


@settings(deadline=None, max_examples=250)
@given(st.data())
def test_a_changed_archive_gives_an_error_or_the_same_data_set(data):
    content = bytearray(WHOLE)
    # Half of the changes where the directory is, which few random places would hit.
    start = content.find(b"PK\x01\x02") if data.draw(st.booleans()) else 0
    position = data.draw(st.integers(start, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= data.draw(st.integers(1, 255))
    else:
        del content[position : position + data.draw(st.integers(1, 60))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gzip.zip"
        path.write_bytes(content)
        try:
            letters = load_emnist("letters", path)
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017
            return
    assert letters.train.pixels.tolist() == [picture(i) for i in range(52)]
    assert torch.equal(letters.test.y, torch.arange(26))
    assert letters.classes[0] == "A/a"


@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_only_a_regular_file_is_an_archive(tmp_path, kind):
    """A named pipe would be waited for without end."""
    kind(tmp_path / "gzip.zip")
    with pytest.raises(DataError) as caught:
        load_emnist("letters", tmp_path / "gzip.zip")
    assert str(caught.value).startswith(f"{tmp_path}/gzip.zip: expected a ")
