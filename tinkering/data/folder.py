"""Any folder of IDX files, in the naming of MNIST or of EMNIST.

MNIST, Fashion-MNIST and KMNIST name their files ``train-images-idx3-ubyte`` and
``t10k-images-idx3-ubyte`` (sometimes with a dot, ``train-images.idx3-ubyte``), and store
images row by row. EMNIST names them ``emnist-SPLIT-train-images-idx3-ubyte``, stores
images column by column, and adds ``emnist-SPLIT-mapping.txt``. Either may end in ``.gz``.
"""

from __future__ import annotations

import re
from pathlib import Path

from tinkering.data.assemble import File, Files, assemble
from tinkering.data.dataset import Dataset
from tinkering.data.idx import open_regular, reading
from tinkering.errors import ArgumentError, DataError

PREFIX = "idx:"
"""What the name of a folder's data set begins with."""
MNIST_NAMING = "train-t10k"
"""What files in MNIST's naming are called where a folder holds several data sets."""

_MNIST_FILE = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(?:\.gz)?")
_EMNIST_FILE = re.compile(
    r"emnist-(?P<split>\w+)-(?:(train|test)-(images|labels)[-.]idx[13]-ubyte(?:\.gz)?|mapping\.txt)"
)

_Roles = dict[tuple[str, str], Path]


def load_folder(name: str) -> Dataset:
    """Return the data set in a folder.

    Where the folder holds several, ``#`` and the split's name choose: ``idx:data#letters``,
    or ``idx:data#train-t10k`` for the files in MNIST's naming. Where a file is there both
    plain and gzipped, the plain one is read.

    Args:
        name: ``idx:FOLDER`` or ``idx:FOLDER#SPLIT``.

    Raises:
        ArgumentError: (a ``ValueError``) `name` says no folder.
        DataError: the folder or a file in it cannot be used.
    """
    folder, chosen = locate(name)
    sets = _sets(folder)
    if not sets:
        raise DataError(
            folder,
            "files such as train-images-idx3-ubyte.gz or emnist-SPLIT-train-images-idx3-ubyte.gz",
            "none",
        )
    if chosen is None and len(sets) > 1:
        raise DataError(
            folder,
            "one data set",
            f"{len(sets)}: {', '.join(sets)}",
            f"Choose one, for example {PREFIX}{folder}#{next(iter(sets))}.",
        )
    split = next(iter(sets)) if chosen is None else chosen
    if split not in sets:
        raise DataError(folder, f"files of {split}", f"those of {', '.join(sets)}")
    return assemble(name, _files(folder, split, sets[split]))


def locate(name: str) -> tuple[Path, str | None]:
    """Return the folder and the chosen split of ``idx:FOLDER`` or ``idx:FOLDER#SPLIT``.

    A folder that exists with ``#`` in its name is taken for what it is.

    Raises:
        ArgumentError: (a ``ValueError``) `name` says no folder.
        DataError: there is no such folder.

    Example:
        >>> locate("idx:.#letters")
        (PosixPath('.'), 'letters')
    """
    place = name.removeprefix(PREFIX)
    folder, mark, split = place.rpartition("#")
    if not mark or Path(place).expanduser().is_dir():
        folder, split = place, ""
    if not folder:
        raise ArgumentError("name", f"{PREFIX}FOLDER or {PREFIX}FOLDER#SPLIT", repr(name))
    path = Path(folder).expanduser()
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing there"
        raise DataError(path, "a folder of IDX files", found)
    return path, split or None


def _sets(folder: Path) -> dict[str, _Roles]:
    """Return the files of each data set in the folder: split, then ``(half, what)``."""
    with reading(str(folder)):
        paths = sorted(folder.iterdir())
    sets: dict[str, _Roles] = {}
    for path in paths:
        if match := _MNIST_FILE.fullmatch(path.name):
            split, half, what = MNIST_NAMING, *match.groups()
        elif match := _EMNIST_FILE.fullmatch(path.name):
            split, half, what = match.groups()
        else:
            continue
        role = ("test" if half == "t10k" else half or "", what or "mapping")
        # Sorted, the plain file comes before the gzipped one of the same name.
        sets.setdefault(split, {}).setdefault(role, path)
    # A mapping alone is no data set.
    return {split: roles for split, roles in sets.items() if set(roles) != {("", "mapping")}}


def _files(folder: Path, split: str, roles: _Roles) -> Files:
    """Return the files of one data set, complete."""

    def file(half: str, what: str) -> File:
        if (half, what) not in roles:
            mnist = split == MNIST_NAMING
            start = {"train": "train", "test": "t10k"}[half] if mnist else f"emnist-{split}-{half}"
            end = {"images": "images-idx3-ubyte", "labels": "labels-idx1-ubyte"}[what]
            raise DataError(folder, f"a file {start}-{end}, plain or .gz", "none")
        return _on_disk(roles[half, what])

    mapping = roles.get(("", "mapping"))
    return Files(
        train_images=file("train", "images"),
        train_labels=file("train", "labels"),
        test_images=file("test", "images"),
        test_labels=file("test", "labels"),
        mapping=None if mapping is None else _on_disk(mapping),
        transposed=split != MNIST_NAMING,
    )


def _on_disk(path: Path) -> File:
    """Return a file that is opened by its path."""
    return File(str(path), lambda: open_regular(path))
