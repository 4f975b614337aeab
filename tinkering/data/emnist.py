"""EMNIST, read from the archive its authors publish without unpacking that to disk.

Cohen, Afshar, Tapson, van Schaik 2017, "EMNIST: an extension of MNIST to handwritten
letters" (arXiv 1702.05373).
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from tinkering.data.assemble import File, Files, assemble
from tinkering.data.dataset import Dataset
from tinkering.data.download import Download, cache_folder
from tinkering.data.idx import open_regular, reading
from tinkering.errors import DataError

ARCHIVE = Download(
    url="https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
    md5="58c8d27c78d21e728a6bc7b3cc06412e",
    size=561_753_746,
)
"""All six splits in one file."""


@dataclass(frozen=True)
class SplitSize:
    """How large one of EMNIST's splits is: numbers of classes and of images."""

    classes: int
    train: int
    test: int


SPLITS = {
    "byclass": SplitSize(62, 697_932, 116_323),
    "bymerge": SplitSize(47, 697_932, 116_323),
    "balanced": SplitSize(47, 112_800, 18_800),
    "letters": SplitSize(26, 124_800, 20_800),
    "digits": SplitSize(10, 240_000, 40_000),
    "mnist": SplitSize(10, 60_000, 10_000),
}
"""The splits as the archive holds them. (The paper gives fewer letters: 88,800 and 14,800.)"""


def archive_path() -> Path:
    """Return where the archive is kept, or will be."""
    return cache_folder() / "emnist" / "gzip.zip"


def load_emnist(split: str, archive: Path) -> Dataset:
    """Return one split of EMNIST, named ``emnist-SPLIT``.

    Images come out upright. Labels are positions in the split's mapping file, so those
    of the letters, stored as 1 to 26, come out as 0 to 25.

    Args:
        split: a key of `SPLITS`.
        archive: the archive ``gzip.zip``.

    Raises:
        DataError: the archive is missing or cannot be used.
    """
    if not archive.exists():
        raise DataError(
            archive,
            f"the EMNIST archive ({ARCHIVE.size:,} bytes)",
            "no such file",
            f"Run: tinkering data get emnist-{split}. Or save {ARCHIVE.url} "
            f"(MD5 {ARCHIVE.md5}) there by hand.",
        )
    # Half a gigabyte was checked when it was downloaded and is not hashed again: zip and
    # gzip each keep a CRC-32 of every member, and both are checked as it is read.
    with reading(str(archive)):
        open_regular(archive).close()  # a pipe is refused, and not waited for
        contents = zipfile.ZipFile(archive)
    with contents:

        def member(end: str) -> File:
            return _member(contents, archive, f"gzip/emnist-{split}-{end}")

        return assemble(
            f"emnist-{split}",
            Files(
                train_images=member("train-images-idx3-ubyte.gz"),
                train_labels=member("train-labels-idx1-ubyte.gz"),
                test_images=member("test-images-idx3-ubyte.gz"),
                test_labels=member("test-labels-idx1-ubyte.gz"),
                mapping=member("mapping.txt"),
                transposed=True,
            ),
        )


def _member(contents: zipfile.ZipFile, archive: Path, name: str) -> File:
    """Return a member of the archive."""
    if name not in contents.NameToInfo:
        raise DataError(
            archive,
            f"a member {name}",
            f"{len(contents.NameToInfo)} members without it",
            f"The right archive is {ARCHIVE.url} (MD5 {ARCHIVE.md5}).",
        )
    return File(f"{archive} ({name})", lambda: contents.open(name))
