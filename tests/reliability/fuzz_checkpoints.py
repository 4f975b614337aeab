"""Run folders with a changed file, read by all that reads run folders.

    python tests/reliability/fuzz_checkpoints.py --files 100000

Checkpoints are changed as they are (the sum no longer fits), and changed and signed anew, as
somebody with bad intentions would. Nothing but the package's own exceptions may come out, memory
stays below twice the largest file plus 64 MiB, and nothing outside the folder is written.
"""

import argparse
import hashlib
import random
import re
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))

import torch
from commands import TINY, quiet, write_digits
from hostile import MIB, Guard, mutate, peak

from tinkering.cli.evolve import Evolve
from tinkering.cli.resume import saved_flags
from tinkering.errors import RunFolderError, TinkeringError
from tinkering.runs import folder
from tinkering.runs.checkpoint import Checkpoints
from tinkering.runs.predictions import load_predictions
from tinkering.runs.report.reading import read
from tinkering.strategies.evolution_strategy import EvolutionState

STATE = EvolutionState(0, {}, {}, {})
CONSTANT = 64 * MIB


def edited(content, chance):
    """A whole checkpoint that says something else in one place of its JSON, signed anew."""
    (length,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + length], content[8 + length :]
    words = list(re.finditer(rb'\\"[^"\\]*\\"|-?\d+(\.\d+)?|null|true|false|[\[\]{}:,]', header))
    for _ in range(chance.randint(1, 3)):
        word, other = chance.choice(words), chance.choice(words)
        new = chance.choice(
            (other[0], b"null", b"[]", b"{}", b"-1", b"9" * 400, b'\\"class\\"', b"")
        )
        header = header[: word.start()] + new + header[word.end() :]
    whole = struct.pack("<Q", len(header)) + header + body
    whole = re.sub(rb'(\\"sha256\\": \\")[0-9a-f]{64}', rb"\g<1>" + b"0" * 64, whole, count=1)
    return whole.replace(b"0" * 64, hashlib.sha256(whole).hexdigest().encode(), 1)


def readers(run):
    """All that reads a run folder, by the file that it reads."""
    flags = Evolve()
    newest = f"checkpoints/{max(Checkpoints(run, STATE).generations()):08d}.safetensors"

    def resume():
        Checkpoints(run, STATE).newest()

    def go_on():
        folder.trim_metrics(run / folder.METRICS, 2)
        folder.read_metrics(run / folder.METRICS)

    return {
        newest: (resume,),
        folder.MODEL: (lambda: folder.load_model(run / folder.MODEL), lambda: read(run)),
        folder.CONFIG: (lambda: saved_flags(run, flags), lambda: read(run).classes),
        folder.METRICS: (lambda: read(run).final("seconds"), go_on),
        folder.SUMMARY: (lambda: read(run).rate,),
        "predictions.safetensors": (
            lambda: load_predictions(run / "predictions.safetensors"),
            lambda: read(run).classes,
        ),
    }


def fuzz(files, seed=0):
    """Change so many files; return how many of each were refused, and the memory it took."""
    chance, refused, tried = random.Random(seed), Counter(), Counter()
    with tempfile.TemporaryDirectory() as where:
        run = Path(where) / "run"
        digits = write_digits(Path(where) / "digits")
        assert quiet(["evolve", "--data", digits, *TINY, "--out", run])[0] == 0
        for path in sorted((run / "checkpoints").iterdir())[:-1]:
            path.unlink()
        table = readers(run)
        whole = {name: (run / name).read_bytes() for name in table}
        names = [max(whole, key=lambda name: name.startswith("checkpoints")), *whole]
        for functions in table.values():
            for function in functions:
                function()
        for name, content in whole.items():
            (run / name).write_bytes(content)
        guard, before = Guard(run), peak()
        for _ in range(files):
            name = chance.choice(names)
            kind = name
            if name.startswith("checkpoints"):
                kind = chance.choice(("checkpoint", "checkpoint, signed anew"))
            change = edited if kind.endswith("anew") else mutate
            content = change(whole[name], chance)
            (run / name).write_bytes(content)
            tried[kind] += 1
            met = False
            for function in table[name]:
                try:
                    with guard.watching():
                        function()
                except TinkeringError as error:
                    met = True
                    assert isinstance(error, RunFolderError), repr(error)  # noqa: PT017
                except BaseException:
                    sys.stderr.write(f"{kind}: {content!r}\n"[:3000])
                    raise
            if kind == "checkpoint" and content != whole[name]:
                assert met, f"a damaged checkpoint was taken for a whole one: {content!r}"
            refused[kind] += met
            (run / name).write_bytes(whole[name])
        memory, most = peak() - before, max(map(len, whole.values()))
    assert memory < 2 * most + CONSTANT, f"{memory / MIB:.0f} MiB"
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
    print(f"other exceptions: 0, outside the folder: 0, memory: {memory / MIB:.0f} MiB more")  # noqa: T201
