"""The digits that come with the package: 5,000 of MNIST, ready without a network.

Where they come from and on what terms is told in ``mnist5k/README.md``.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from tinkering.data.assemble import File, Files, assemble
from tinkering.data.dataset import Dataset
from tinkering.data.idx import reading
from tinkering.errors import DataError

FOLDER = Path(__file__).parent / "mnist5k"
"""Where the digits lie."""

SHA256 = {
    "emnist-mnist5k-mapping.txt": (
        "6d157dc46a7b1c80d630f4fed571d9964db37ee1669cac403b6db2c8bb109d94"
    ),
    "emnist-mnist5k-test-images-idx3-ubyte.gz": (
        "f98a78b99395cb159b5536b2336867035de0fedaa574664bbcd08d08884962a6"
    ),
    "emnist-mnist5k-test-labels-idx1-ubyte.gz": (
        "07df80dd02a9e482a7f9e281b8f78da705eb2f27ecf855d8cb5d08fe9b4aa430"
    ),
    "emnist-mnist5k-train-images-idx3-ubyte.gz": (
        "4c60359428407760cff9dcf9c241ed80f5d37f9b21e284cdb5c572be9c83a149"
    ),
    "emnist-mnist5k-train-labels-idx1-ubyte.gz": (
        "3b8f30e53e3cbdfb5fb6007d1b11dcf3d8136d1750363957998565ab9756a01f"
    ),
}
"""What the files must hold, to the byte."""


def load_embedded(folder: Path = FOLDER) -> Dataset:
    """Return the embedded digits, ``mnist5k``: 4,000 to train with, 1,000 to test with.

    Each file is compared with its SHA-256 first.

    Args:
        folder: where the files are.

    Raises:
        DataError: a file is missing or was changed.

    Example:
        >>> digits = load_embedded()
        >>> len(digits.train), len(digits.test), len(digits.classes)
        (4000, 1000, 10)
    """
    verified = {name: _verified(folder / name, digest) for name, digest in SHA256.items()}
    return assemble(
        "mnist5k",
        Files(
            train_images=verified["emnist-mnist5k-train-images-idx3-ubyte.gz"],
            train_labels=verified["emnist-mnist5k-train-labels-idx1-ubyte.gz"],
            test_images=verified["emnist-mnist5k-test-images-idx3-ubyte.gz"],
            test_labels=verified["emnist-mnist5k-test-labels-idx1-ubyte.gz"],
            mapping=verified["emnist-mnist5k-mapping.txt"],
            transposed=True,
        ),
    )


def _verified(path: Path, digest: str) -> File:
    """Return the file as it was when it was compared with `digest`."""
    with reading(str(path)):
        content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise DataError(
            path, f"SHA-256 {digest}", found, "The file was changed; install tinkering again."
        )
    return File(str(path), lambda: io.BytesIO(content))
