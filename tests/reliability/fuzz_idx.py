"""Data files with changes, read by all that reads data files.

    python tests/reliability/fuzz_idx.py --files 100000

IDX files plain and gzipped, a folder of them, and an archive in EMNIST's layout. Nothing but
`DataError` may come out, memory stays below twice what the largest file unpacks to plus 64 MiB, and
nothing is written at all.
"""

import argparse
import gzip
import io
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))

import torch
from hostile import MIB, Guard, mutate, peak
from idx_files import image_bytes, label_bytes, letters_members, picture, zip_bytes

from tinkering.data.emnist import load_emnist
from tinkering.data.folder import load_folder
from tinkering.data.idx import read_images, read_labels
from tinkering.errors import DataError

CONSTANT = 64 * MIB
IMAGES = image_bytes([picture(i, 8, 8) for i in range(12)])
LABELS = label_bytes([i % 3 for i in range(12)])


def kinds(place):
    """For each kind of file: what it holds, and what reads it from bytes."""

    def as_folder(name, like):
        folder = place / name
        folder.mkdir()
        for half in ("train", "t10k"):
            (folder / f"{half}-images-idx3-ubyte").write_bytes(IMAGES)
            (folder / f"{half}-labels-idx1-ubyte").write_bytes(LABELS)

        def load(content):
            (folder / like).write_bytes(content)
            return lambda: load_folder(f"idx:{folder}")

        return load

    def as_archive(content):
        path = place / "gzip.zip"
        path.write_bytes(content)
        return lambda: load_emnist("letters", path)

    def as_stream(read):
        return lambda content: lambda: read(io.BytesIO(content), "a file")

    return {
        "IDX images": (IMAGES, as_stream(read_images)),
        "IDX labels": (LABELS, as_stream(read_labels)),
        "IDX images, gzipped": (gzip.compress(IMAGES), as_stream(read_images)),
        "IDX labels, gzipped": (gzip.compress(LABELS), as_stream(read_labels)),
        "a folder's images": (IMAGES, as_folder("a", "train-images-idx3-ubyte")),
        "a folder's labels": (LABELS, as_folder("b", "train-labels-idx1-ubyte")),
        "EMNIST's archive": (zip_bytes(letters_members()), as_archive),
    }


def in_archive(chance):
    """EMNIST's archive with a change in one member, before it was zipped."""
    members = letters_members()
    name = chance.choice(list(members))
    content = members[name]
    if name.endswith(".gz") and chance.random() < 0.5:
        members[name] = gzip.compress(mutate(gzip.decompress(content), chance))
    else:
        members[name] = mutate(content, chance)
    if chance.random() < 0.2:
        other = chance.choice(("../evil", "/tmp/evil", "gzip/../../evil", "gzip\\..\\evil", "\1"))
        members[other] = members.pop(name) if chance.random() < 0.5 else b"evil"
    return zip_bytes(members)


def fuzz(files, seed=0):
    """Change so many files; return how many of each were refused, and the memory it took."""
    chance, refused, tried = random.Random(seed), Counter(), Counter()
    with tempfile.TemporaryDirectory() as where:
        table = kinds(Path(where))
        for content, load in table.values():
            load(content)()
        nowhere = Path(where) / "nowhere"
        guard, before = Guard(nowhere), peak()
        for _ in range(files):
            kind = name = chance.choice([*table, "EMNIST's archive", "EMNIST's members"])
            if name == "EMNIST's members":
                kind, content = "EMNIST's archive", in_archive(chance)
            else:
                content = mutate(table[name][0], chance)
            read = table[kind][1](content)
            tried[name] += 1
            try:
                with guard.watching():
                    read()
            except DataError:
                refused[name] += 1
            except BaseException:
                sys.stderr.write(f"{name}: {content!r}\n"[:3000])
                raise
            if kind.startswith("a folder"):
                table[kind][1](table[kind][0])
        memory = peak() - before
    # The most that a change makes of the largest file, a few thousand bytes, is not much.
    assert memory < CONSTANT, f"{memory / MIB:.0f} MiB"
    return tried, refused, memory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tried, refused, memory = fuzz(given.files, given.seed)
    for name, count in tried.items():
        print(f"{name:<26}{count:>8} tried{refused[name]:>8} refused")  # noqa: T201
    print(f"other exceptions: 0, files written: 0, memory: {memory / MIB:.0f} MiB more")  # noqa: T201
