import gzip
import io
import os
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from idx_files import image_bytes, label_bytes, picture

from tinkering.data.idx import LARGEST, read_images, read_labels
from tinkering.errors import DataError

IMAGES = image_bytes([picture(i, 3, 5) for i in range(4)])
LABELS = label_bytes([3, 1, 2, 0])


def images_error(content):
    with pytest.raises(DataError) as caught:
        read_images(io.BytesIO(content), "the-file")
    assert str(caught.value).startswith("the-file: expected ")
    return str(caught.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_images_and_labels_come_out_as_written(pack):
    images = [picture(i, 3, 5) for i in range(4)]
    assert read_images(io.BytesIO(pack(image_bytes(images))), "f").tolist() == images
    assert read_labels(io.BytesIO(pack(LABELS)), "f").tolist() == [3, 1, 2, 0]


@settings(deadline=None, max_examples=60)
@given(st.data(), *[st.integers(1, 6)] * 3, st.booleans())
def test_written_then_read_is_the_same(data, count, rows, columns, packed):
    row = st.lists(st.integers(0, 255), min_size=columns, max_size=columns)
    image = st.lists(row, min_size=rows, max_size=rows)
    images = data.draw(st.lists(image, min_size=count, max_size=count))
    content = image_bytes(images)
    stream = io.BytesIO(gzip.compress(content) if packed else content)
    assert read_images(stream, "f").tolist() == images


def test_labels_where_images_belong_and_the_reverse():
    assert images_error(LABELS).startswith(
        "the-file: expected magic number 2051 (images), found 2049 (labels)."
    )
    with pytest.raises(DataError, match=r"expected magic number 2049 \(labels\), found 2051 "):
        read_labels(io.BytesIO(IMAGES), "f")


def test_another_element_type_is_refused():
    floats = struct.pack(">4I", 0x0D03, 1, 1, 1) + bytes(4)
    assert "expected magic number 2051 (images), found 3331." in images_error(floats)


@pytest.mark.parametrize("length", [0, 3, 4, 15])
def test_a_header_cut_short(length):
    message = images_error(IMAGES[:length])
    assert f"expected a header of 16 bytes, found a file of {length} bytes." in message


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_too_few_and_too_many_pixels(pack):
    claim = "expected 60 bytes after the header, for 4 x 3 x 5 values, found"
    assert f"{claim} only 59." in images_error(pack(IMAGES[:-1]))
    assert f"{claim} only 0." in images_error(pack(IMAGES[:16]))
    assert f"{claim} more." in images_error(pack(IMAGES + b"\0"))


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 0, 5), (4, 3, 0)])
def test_nothing_to_see(shape):
    message = images_error(struct.pack(">4I", 2051, *shape))
    assert f"found {' x '.join(map(str, shape))} values." in message
    assert "at least one of the images, none without a pixel" in message


@pytest.mark.parametrize("kept", [5, 10, 30, -9, -8, -1])
def test_a_gzip_stream_cut_short(kept):
    message = images_error(gzip.compress(IMAGES)[:kept])
    assert "a complete, undamaged file, found a fault while reading it" in message


def test_a_damaged_gzip_checksum():
    packed = bytearray(gzip.compress(IMAGES))
    packed[-8] ^= 1  # The first byte of the stored CRC-32.
    assert "CRC check failed" in images_error(bytes(packed))


def test_garbage_after_a_gzip_stream():
    assert "fault while reading it" in images_error(gzip.compress(IMAGES) + b"garbage")


def peak_memory(content):
    tracemalloc.start()
    try:
        images_error(content)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_claim_allocates_nothing(pack):
    # The largest claim that is not refused outright, with 100 bytes behind it.
    claim = struct.pack(">4I", 2051, LARGEST // 4, 2, 2) + bytes(100)
    assert peak_memory(pack(claim)) < 4e6


def test_a_claim_beyond_the_limit_is_refused_before_anything_is_read():
    claim = struct.pack(">4I", 2051, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    assert "expected at most 2147483648 bytes, found" in images_error(claim)
    assert peak_memory(gzip.compress(claim + bytes(10**7))) < 1e6


def test_a_gzip_bomb_is_not_unpacked():
    # 64 MB behind a header that claims four bytes.
    bomb = gzip.compress(struct.pack(">4I", 2051, 1, 2, 2) + bytes(2**26), 6)
    assert len(bomb) < 100_000
    assert peak_memory(bomb) < 1e6


PACKED = gzip.compress(IMAGES, mtime=0)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_changed_gzip_file_gives_an_error_or_the_same_images(data):
    content = bytearray(PACKED)
    kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    position = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        content[position] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[position : position + data.draw(st.integers(1, 20))]
    else:
        content[position:position] = data.draw(st.binary(min_size=1, max_size=20))
    try:
        images = read_images(io.BytesIO(bytes(content)), "f")
    except DataError:
        return
    assert images.tolist() == [picture(i, 3, 5) for i in range(4)]


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=64), st.integers(0, 20))
def test_any_bytes_give_a_data_error_or_exactly_what_they_claim(noise, kept):
    content = IMAGES[:kept] + noise
    try:
        images = read_images(io.BytesIO(content), "f")
    except DataError:
        return
    assert 16 + images.size == len(content)
    assert images.tobytes() == content[16:]


def test_a_missing_file_is_a_data_error(tmp_path):
    from tinkering.data.assemble import File, read_mapping

    path = tmp_path / "missing.txt"
    with pytest.raises(DataError, match=r"missing\.txt: expected a complete.*No such file"):
        read_mapping(File(str(path), lambda: path.open("rb")))
    assert not os.path.lexists(path)
