"""From a name to a data set: ``mnist5k``, ``emnist-SPLIT``, or ``idx:FOLDER``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from tinkering.data import emnist
from tinkering.data.dataset import Dataset
from tinkering.data.download import Download, Progress, fetch
from tinkering.data.embedded import FOLDER, load_embedded
from tinkering.data.folder import PREFIX, load_folder, locate
from tinkering.errors import ArgumentError

DEFAULT = "mnist5k"
"""The data set that comes with the package."""
_EMNIST = {f"emnist-{split}": split for split in emnist.SPLITS}


@dataclass(frozen=True)
class Listing:
    """What is known of a data set without reading it.

    Args:
        name: what `load` takes.
        classes: how many classes it has.
        train: images to train with.
        test: images to test with.
        place: the folder or file it lies in, or None if it is not downloaded.
    """

    name: str
    classes: int
    train: int
    test: int
    place: Path | None


def names() -> tuple[str, ...]:
    """Return the names of the known data sets; ``idx:FOLDER`` comes on top of them.

    Example:
        >>> names()[:3]
        ('mnist5k', 'emnist-byclass', 'emnist-bymerge')
    """
    return (DEFAULT, *_EMNIST)


def listing() -> tuple[Listing, ...]:
    """Return what is known of each named data set, the embedded one first.

    Example:
        >>> known = listing()[0]
        >>> known.name, known.classes, known.train, known.test
        ('mnist5k', 10, 4000, 1000)
    """
    path = emnist.archive_path()
    place = path if path.exists() else None
    rows = [Listing(DEFAULT, 10, 4000, 1000, FOLDER)]
    for name, split in _EMNIST.items():
        size = emnist.SPLITS[split]
        rows.append(Listing(name, size.classes, size.train, size.test, place))
    return tuple(rows)


def load(name: str = DEFAULT, sha256: str | None = None) -> Dataset:
    """Return a data set. Nothing is downloaded here; that is what `get` is for.

    Args:
        name: one of `names`, or ``idx:FOLDER`` for a folder of IDX files, or
            ``idx:FOLDER#SPLIT`` where it holds several data sets.
        sha256: what `Dataset.sha256` returned elsewhere, where it has to be the same images.

    Raises:
        ArgumentError: (a ``ValueError``) there is no data set of this name, or it holds other
            images than were asked for.
        DataError: its files are missing or cannot be used.

    Example:
        >>> load("mnist5k").train.images().shape
        torch.Size([4000, 1, 28, 28])
    """
    dataset = _loaded(name)
    if sha256 is not None and (found := dataset.sha256()) != sha256:
        raise ArgumentError("sha256", f"images of {name} with SHA-256 {sha256}", found)
    return dataset


def _loaded(name: str) -> Dataset:
    if name.startswith(PREFIX):
        return load_folder(name)
    _check(name)
    if name == DEFAULT:
        return load_embedded()
    return emnist.load_emnist(_EMNIST[name], emnist.archive_path())


def get(name: str, progress: Progress | None = None, archive: Download = emnist.ARCHIVE) -> Path:
    """Return where a data set lies, after downloading it if need be.

    All splits of EMNIST are in one archive of 536 MiB: getting one gets all. An archive
    that is already there is compared with its checksum again.

    Args:
        name: as for `load`.
        progress: told how far the download is.
        archive: what to download for EMNIST.

    Raises:
        ArgumentError: (a ``ValueError``) there is no data set of this name.
        DataError: the download failed or brought something else, or there is no such folder.
    """
    if name.startswith(PREFIX):
        return locate(name)[0]
    _check(name)
    if name == DEFAULT:
        return FOLDER
    return fetch(archive, emnist.archive_path(), progress)


def _check(name: str) -> None:
    """Refuse a name that is not known, with the nearest that is."""
    if name in names():
        return
    nearest = difflib.get_close_matches(name, names(), n=1)
    raise ArgumentError(
        "name",
        f"one of {', '.join(names())} or {PREFIX}FOLDER",
        repr(name),
        f"Did you mean {nearest[0]}?" if nearest else "",
    )
