"""The IDX format: a header of big-endian numbers, then one byte a value.

Images are ``2051, count, rows, columns`` and then ``count * rows * columns`` pixels;
labels are ``2049, count`` and then ``count`` labels (LeCun, Cortes, Burges, "The MNIST
database of handwritten digits"). Files are read plain or gzipped, whichever they are.

The reader is strict, since a header is a claim and nothing more: it never allocates on
the strength of one, and hands out either all that was claimed or a `DataError`.
"""

from __future__ import annotations

import gzip
import lzma
import math
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from tinkering.errors import DataError

IMAGES_MAGIC = 2051
"""First number of an image file: two zero bytes, 8 for unsigned bytes, 3 axes."""
LABELS_MAGIC = 2049
"""First number of a label file: two zero bytes, 8 for unsigned bytes, 1 axis."""
LARGEST = 2**31
"""Most bytes one file may hold. A gzip stream can hold a thousand times its own size, so
a header that tells the truth could still fill the memory; the largest file of EMNIST
holds 547 million bytes."""

_KINDS = {IMAGES_MAGIC: "images", LABELS_MAGIC: "labels"}
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 2**20
_FAULTS = (
    OSError,
    EOFError,
    zlib.error,
    zipfile.BadZipFile,
    lzma.LZMAError,
    # zipfile says so of an encrypted member, and of a compression it does not know.
    RuntimeError,
    # A damaged zip directory may hold offsets beyond any file, and names that are no text.
    ValueError,
    OverflowError,
)


@runtime_checkable
class ByteStream(Protocol):
    """What the reader needs of an open file."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes, none at the end."""

    def seek(self, offset: int, /) -> int:
        """Go to an offset from the beginning."""


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn what the standard library raises on a damaged file into a `DataError`.

    Args:
        where: the file, as the message should name it.

    Raises:
        DataError: the body met a file that is cut short, damaged, encrypted, missing
            or may not be read.
    """
    try:
        yield
    except _FAULTS as fault:
        raise DataError(
            where,
            "a complete, undamaged file",
            f"a fault while reading it ({str(fault).rstrip('.') or type(fault).__name__})",
            "Get the file again.",
        ) from fault


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read its bytes; a named pipe would be waited for without end.

    Raises:
        DataError: it is no regular file, nor a link to one.
        OSError: it cannot be opened.
    """
    # What cannot be read at once is not waited for; of a regular file that changes nothing.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise DataError(path, "a regular file", "a pipe, a device or something else")
    return file


def read_images(stream: ByteStream, where: str) -> UInt8[np.ndarray, "count rows columns"]:
    """Return the images of an IDX file, ``uint8 [count, rows, columns]``, as they are stored.

    Args:
        stream: the file, plain or gzipped, open for reading in binary at its beginning;
            it must be able to seek.
        where: the file, as messages should name it.

    Raises:
        DataError: the file is no image file, is damaged, holds no pixel, or holds fewer
            or more bytes than its header says.

    Example:
        >>> import io
        >>> two_images = struct.pack(">4I", 2051, 2, 1, 3) + bytes([1, 2, 3, 4, 5, 6])
        >>> read_images(io.BytesIO(two_images), "example").tolist()
        [[[1, 2, 3]], [[4, 5, 6]]]
    """
    return _read(stream, where, IMAGES_MAGIC, axes=3)


def read_labels(stream: ByteStream, where: str) -> UInt8[np.ndarray, " count"]:
    """Return the labels of an IDX file, ``uint8 [count]``, as they are stored.

    Args:
        stream: the file, plain or gzipped, open for reading in binary at its beginning;
            it must be able to seek.
        where: the file, as messages should name it.

    Raises:
        DataError: the file is no label file, is damaged, holds no label, or holds fewer
            or more bytes than its header says.

    Example:
        >>> import io
        >>> read_labels(io.BytesIO(struct.pack(">2I", 2049, 3) + bytes([7, 0, 7])), "example")
        array([7, 0, 7], dtype=uint8)
    """
    return _read(stream, where, LABELS_MAGIC, axes=1)


def _read(stream: ByteStream, where: str, magic: int, axes: int) -> UInt8[np.ndarray, " ..."]:
    """Return the array of an IDX file with this magic number and so many axes."""
    with reading(where):
        start = stream.read(len(_GZIP_MAGIC))
        stream.seek(0)
    # An IDX file begins with two zero bytes, so the contents tell what the name may not.
    if start != _GZIP_MAGIC:
        return _read_plain(stream, where, magic, axes)
    with gzip.GzipFile(fileobj=stream, mode="rb") as plain:
        return _read_plain(plain, where, magic, axes)


def _read_plain(stream: ByteStream, where: str, magic: int, axes: int) -> UInt8[np.ndarray, " ..."]:
    """Return the array of an uncompressed IDX stream."""
    shape = _read_header(stream, where, magic, axes)
    claimed = math.prod(shape)
    described = f"{claimed} bytes after the header, for {' x '.join(map(str, shape))} values"
    if claimed > LARGEST:
        raise DataError(where, f"at most {LARGEST} bytes", described)
    # The buffer grows with the bytes that are there, never with those that are claimed.
    values = bytearray()
    with reading(where):
        while chunk := stream.read(min(_CHUNK, claimed - len(values))):
            values += chunk
        # Also makes gzip and zip reach the end of their streams, where the checksums are.
        surplus = stream.read(1)
    if len(values) < claimed:
        raise DataError(
            where, described, f"only {len(values)}", "The file is cut short; get it again."
        )
    if surplus:
        raise DataError(where, described, "more", "The file is damaged; get it again.")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def _read_header(stream: ByteStream, where: str, magic: int, axes: int) -> tuple[int, ...]:
    """Return the lengths of the axes, each at least 1."""
    length = 4 * (1 + axes)
    with reading(where):
        header = stream.read(length)
    found = struct.unpack(">I", header[:4])[0] if len(header) >= 4 else None
    if found is not None and found != magic:
        kind = f" ({_KINDS[found]})" if found in _KINDS else ""
        raise DataError(
            where,
            f"magic number {magic} ({_KINDS[magic]})",
            f"{found}{kind}",
            f"Only IDX files of unsigned bytes are read here, {_KINDS[magic]} with {axes} "
            f"{'axes' if axes > 1 else 'axis'}.",
        )
    if len(header) < length:
        raise DataError(where, f"a header of {length} bytes", f"a file of {len(header)} bytes")
    shape: tuple[int, ...] = struct.unpack(f">{axes}I", header[4:])
    if 0 in shape:
        raise DataError(
            where,
            f"at least one of the {_KINDS[magic]}, none without a pixel",
            f"{' x '.join(map(str, shape))} values",
        )
    return shape
