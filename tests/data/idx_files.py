"""IDX files and an archive in EMNIST's layout, written by hand for the tests."""

import gzip
import io
import struct
import zipfile

LETTERS_MAPPING = "".join(f"{i} {64 + i} {96 + i}\r\n" for i in range(1, 27)).encode()
DIGITS_MAPPING = "".join(f"{i} {48 + i}\r\n" for i in range(10)).encode()
BYCLASS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
MERGED = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"


def image_bytes(images):
    """IDX bytes of nested lists [count][row][column]."""
    header = struct.pack(">4I", 2051, len(images), len(images[0]), len(images[0][0]))
    return header + bytes(pixel for image in images for row in image for pixel in row)


def label_bytes(labels):
    return struct.pack(">2I", 2049, len(labels)) + bytes(labels)


def picture(number, height=4, width=4):
    """An image unlike its transpose, different for each number: nested lists [row][column]."""
    return [
        [(number * 7 + row * 50 + column * 3) % 256 for column in range(width)]
        for row in range(height)
    ]


def transposed(images):
    return [[list(column) for column in zip(*image, strict=True)] for image in images]


def mapping_of(characters):
    return "".join(f"{i} {ord(c)}\r\n" for i, c in enumerate(characters)).encode()


def emnist_members(split, train, test, mapping):
    """The five members of one split; `train` and `test` are (upright images, stored labels)."""
    members = {f"gzip/emnist-{split}-mapping.txt": mapping}
    for half, (images, labels) in (("train", train), ("test", test)):
        start = f"gzip/emnist-{split}-{half}"
        members[f"{start}-images-idx3-ubyte.gz"] = gzip.compress(image_bytes(transposed(images)))
        members[f"{start}-labels-idx1-ubyte.gz"] = gzip.compress(label_bytes(labels))
    return members


def zip_bytes(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def letters_members():
    """52 letters to train with, and 26 to test with, sorted by class as in the real file."""
    train = ([picture(i) for i in range(52)], [i % 26 + 1 for i in range(52)])
    test = ([picture(100 + i) for i in range(26)], list(range(1, 27)))
    return emnist_members("letters", train, test, LETTERS_MAPPING)
