"""From four IDX files and perhaps a mapping to a checked `Dataset`, wherever they lie."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from tinkering.data.dataset import Dataset, make_dataset
from tinkering.data.idx import ByteStream, read_images, read_labels, reading
from tinkering.errors import DataError

_LARGEST_MAPPING = 2**16


@dataclass(frozen=True)
class File:
    """A file that can be opened: on disk, in an archive, or in memory.

    Args:
        where: what messages call it.
        open: opens it for reading in binary.
    """

    where: str
    open: Callable[[], AbstractContextManager[ByteStream]]


@dataclass(frozen=True)
class Files:
    """The files of a data set.

    Args:
        train_images: IDX images to train with.
        train_labels: their labels.
        test_images: IDX images to test with.
        test_labels: their labels.
        mapping: EMNIST's mapping from labels to characters, if there is one.
        transposed: whether images are stored column by column, as EMNIST stores them.
    """

    train_images: File
    train_labels: File
    test_images: File
    test_labels: File
    mapping: File | None
    transposed: bool


def assemble(name: str, files: Files) -> Dataset:
    """Return the data set in `files`: upright images, labels from 0, named classes.

    With a mapping, a label becomes its position in the mapping. Without one, labels must
    be consecutive numbers and each must occur among the training labels; the numbers are
    the names of the classes, and the least becomes 0.

    Args:
        name: what the data set is called.
        files: where it lies.

    Raises:
        DataError: a file cannot be used, or two do not belong together.
    """
    train_labels, test_labels = _labels(files.train_labels), _labels(files.test_labels)
    if files.mapping is None:
        known = _consecutive(train_labels, files.train_labels.where)
        classes = tuple(str(label) for label in known)
        source = "the training labels"
    else:
        mapping = read_mapping(files.mapping)
        known, classes = list(mapping), tuple(mapping.values())
        source = files.mapping.where
    train_y = _positions(train_labels, known, files.train_labels.where, source)
    test_y = _positions(test_labels, known, files.test_labels.where, source)
    train = _images(files.train_images, len(train_y), files)
    test = _images(files.test_images, len(test_y), files)
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            files.test_images.where,
            f"images of {train.shape[1]} x {train.shape[2]} pixels, like the training images",
            f"{test.shape[1]} x {test.shape[2]}",
        )
    return make_dataset(
        name,
        (torch.from_numpy(train), torch.from_numpy(train_y)),
        (torch.from_numpy(test), torch.from_numpy(test_y)),
        classes,
    )


def read_mapping(file: File) -> dict[int, str]:
    r"""Return the names of the classes by label, in the order of the file.

    A line of EMNIST's mapping files is a label and the code point of its character. In
    the letters' file it is a label and two code points, capital and small, and the class
    is called ``"A/a"``.

    Args:
        file: the mapping file.

    Raises:
        DataError: a line is something else, a label or a name occurs twice, or there is
            no line.

    Example:
        >>> import io
        >>> read_mapping(File("example", lambda: io.BytesIO(b"1 65 97\r\n2 66 98\r\n")))
        {1: 'A/a', 2: 'B/b'}
    """
    with reading(file.where), file.open() as stream:
        content = stream.read(_LARGEST_MAPPING + 1)
    if len(content) > _LARGEST_MAPPING:
        raise DataError(file.where, f"a mapping of at most {_LARGEST_MAPPING} bytes", "more")
    mapping: dict[int, str] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        entry = _mapping_line(fields)
        if entry is None or entry[0] in mapping or entry[1] in mapping.values():
            raise DataError(
                file.where,
                "lines of a label from 0 to 255 and its code points, none of them twice",
                f"{line[:40]!r} in line {number}",
            )
        mapping[entry[0]] = entry[1]
    if not mapping:
        raise DataError(file.where, "a line for each class", "no line")
    return mapping


def _mapping_line(fields: list[bytes]) -> tuple[int, str] | None:
    """Return the label and the class's name, or None if this is no such line."""
    # isdigit: int() would also take signs and underscores.
    if len(fields) < 2 or not all(field.isdigit() and len(field) <= 7 for field in fields):
        return None
    label, *points = map(int, fields)
    if label > 255 or not all(point < 0x110000 and chr(point).isprintable() for point in points):
        return None
    return label, "/".join(map(chr, points))


def _consecutive(labels: UInt8[np.ndarray, " n"], where: str) -> list[int]:
    """Return the numbers from the least label to the greatest, if all of them occur."""
    present = np.unique(labels).tolist()
    known = list(range(present[0], present[-1] + 1))
    missing = sorted(set(known) - set(present))
    if missing:
        raise DataError(
            where,
            f"each label from {known[0]} to {known[-1]} at least once, as there is no mapping file",
            f"no {missing[0]}",
        )
    return known


def _positions(
    labels: UInt8[np.ndarray, " n"], known: list[int], where: str, source: str
) -> Int64[np.ndarray, " n"]:
    """Return each label's position among the known ones."""
    position_of = np.full(256, -1, dtype=np.int64)
    position_of[known] = np.arange(len(known))
    positions: Int64[np.ndarray, " n"] = position_of[labels]
    strangers = np.flatnonzero(positions < 0)
    if len(strangers):
        raise DataError(
            where,
            f"only the {len(known)} labels of {source}, {min(known)} to {max(known)}",
            f"{labels[strangers[0]]} at position {strangers[0]}",
        )
    return positions


def _labels(file: File) -> UInt8[np.ndarray, " n"]:
    """Return the labels as stored."""
    with reading(file.where), file.open() as stream:
        return read_labels(stream, file.where)


def _images(file: File, labels: int, files: Files) -> UInt8[np.ndarray, "n height width"]:
    """Return the images upright, as many as there are labels."""
    with reading(file.where), file.open() as stream:
        images = read_images(stream, file.where)
    if len(images) != labels:
        raise DataError(file.where, f"{labels} images, one for each label", f"{len(images)} images")
    return np.ascontiguousarray(images.transpose(0, 2, 1)) if files.transposed else images
