"""Checkpoints: where a run stands, in files that tell whether they are whole.

A checkpoint is a safetensors file. Its header holds, as JSON, everything that is no tensor, and
the SHA-256 of the whole file, computed with zeros in its place: whatever bit of the file changes,
and wherever it ends too early, the sum does not fit. The last few are kept, so that there is an
older one where the newest is damaged.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tinkering.errors import CheckpointError
from tinkering.runs.durable import PART, replace_durably
from tinkering.runs.plain import classes_of, from_plain, to_plain
from tinkering.runs.regular import open_by_name, open_regular

State = TypeVar("State")
FOLDER = "checkpoints"
_ZEROS = "0" * 64
_KEY = "tinkering"
_NAME = re.compile(r"(\d{8,})\.safetensors")
_LAYOUT = 1
"""Of what the files hold. A later layout gets the next number, and says what became of this one."""
_BLOCK = 1 << 20
_LONGEST_HEADER = 100_000_000
"""Bytes; safetensors takes no longer one."""
_NOT_OURS = (
    SafetensorError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What reading a file raises that is whole, and was made by something else."""


@dataclass(frozen=True)
class Progress:
    """What a run had done when it stood somewhere."""

    generation: int = 0
    """Generations that are over."""
    evaluations: int = 0
    """Forward passes for fitness: see `tinkering.runs.evolve.Outcome`."""
    seconds: float = 0.0
    """Time of the loop, measurements included, over all processes that worked on the run."""
    troubles: Mapping[str, int] = field(default_factory=dict)
    """Generations in which something went wrong, by what it was: see `tinkering.runs.watch`."""


@dataclass(frozen=True)
class Checkpoint(Generic[State]):
    """Where a run stands, after a generation and before the next."""

    progress: Progress
    state: State
    """Of the strategy."""


class Checkpoints(Generic[State]):
    """The checkpoints of a run folder.

    Args:
        run: the run folder.
        like: a state of the strategy, such as the one before the first generation: only its
            class, and the classes that its annotations name, are made from files.
        keep: how many to keep, at least 1.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from torch import zeros
        >>> with TemporaryDirectory() as run:
        ...     checkpoints = Checkpoints(Path(run), like={}, keep=2)
        ...     for generation in (1, 2, 3):
        ...         checkpoints.save(Progress(generation), {"centre": zeros(2)})
        ...     checkpoints.generations(), checkpoints.newest().state
        ([2, 3], {'centre': tensor([0., 0.])})
    """

    def __init__(self, run: Path, like: State, keep: int = 3) -> None:
        self._folder = run / FOLDER
        self._classes = classes_of(Checkpoint(Progress(), like)) | classes_of(like)
        self._keep = keep

    def save(self, progress: Progress, state: State) -> None:
        """Write a checkpoint, durably, and remove those that are older than the last few.

        Later ones are removed as well: they were damaged, or the run would stand there.

        Raises:
            OSError: it could not be written; those before are as they were.
        """
        self.prepare(progress, state)()

    def prepare(self, progress: Progress, state: State) -> Callable[[], None]:
        """Copy a state, and return what writes its checkpoint as `save` does, on any thread."""
        packed = _pack(Checkpoint(progress, state))

        def write() -> None:
            self._folder.mkdir(exist_ok=True)
            replace_durably(self.path(progress.generation), _to_bytes(*packed))
            there = self.generations()
            earlier = [generation for generation in there if generation <= progress.generation]
            for generation in {*there} - {*earlier[-self._keep :]}:
                self.path(generation).unlink(missing_ok=True)

        return write

    def generations(self) -> list[int]:
        """Return the generations there is a checkpoint of, ascending; damaged ones too."""
        if not self._folder.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def newest(self, say: Callable[[str], None] = lambda _: None) -> Checkpoint[State] | None:
        """Return the newest checkpoint that is whole, or None where there never was one.

        Args:
            say: is told of each damaged one that is passed over.

        Raises:
            CheckpointError: there are some, and none is whole.
        """
        damaged: CheckpointError | None = None
        for generation in reversed(self.generations()):
            try:
                found: Checkpoint[State] = decode(self.path(generation), self._classes)
                return found
            except CheckpointError as error:
                damaged = error
                say(f"{error} An older one is tried.")
        if damaged is not None:
            raise CheckpointError(
                self._folder,
                "at least one whole checkpoint",
                "damaged ones only",
                "The run cannot be resumed; begin it again with the command in config.json.",
            ) from damaged
        return None

    def tidy(self) -> None:
        """Remove what a process that was killed had not finished writing."""
        for part in self._folder.glob(f"*{PART}"):
            part.unlink(missing_ok=True)

    def path(self, generation: int) -> Path:
        """Return the file that holds, or would hold, the checkpoint of a generation."""
        return self._folder / f"{generation:08d}.safetensors"


def encode(checkpoint: Checkpoint[Any]) -> bytes:
    """Return a checkpoint as the bytes of its file: the same bytes for the same checkpoint."""
    return _to_bytes(*_pack(checkpoint))


def _pack(checkpoint: Checkpoint[Any]) -> tuple[Any, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    return to_plain(checkpoint, tensors), tensors


def _to_bytes(plain: Any, tensors: dict[str, Tensor]) -> bytes:
    said = {"layout": _LAYOUT, "sha256": _ZEROS, "checkpoint": plain}
    # A single entry, since their order in the file is not defined.
    content = save(tensors, {_KEY: json.dumps(said)})
    return content.replace(_ZEROS.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def decode(path: Path, classes: Mapping[str, type]) -> Checkpoint[Any]:
    """Return the checkpoint in a file.

    Args:
        path: the file.
        classes: that may be made: see `tinkering.runs.plain.classes_of`.

    Raises:
        CheckpointError: it cannot be read, is damaged, or holds something else.
    """
    try:
        _require_whole(path)
        with open_by_name(path) as place, safe_open(place, framework="pt") as file:
            said = json.loads(file.metadata()[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if said["layout"] != _LAYOUT:
            raise CheckpointError(path, f"layout {_LAYOUT}", f"layout {said['layout']}")
        checkpoint = from_plain(said["checkpoint"], tensors, classes)
    except OSError as error:
        raise CheckpointError(path, "a checkpoint", error.strerror or str(error)) from error
    except _NOT_OURS as error:
        raise CheckpointError(path, "a checkpoint of this strategy", repr(error)) from error
    if not isinstance(checkpoint, Checkpoint):
        raise CheckpointError(path, "a checkpoint", type(checkpoint).__name__)
    if not _is_usable(checkpoint.progress):
        found = repr(checkpoint.progress)[:200]
        raise CheckpointError(path, "progress in numbers of at least 0", found)
    return checkpoint


def _is_usable(progress: Any) -> bool:
    """Return whether a run can go on from there."""
    return (
        isinstance(progress, Progress)
        and isinstance(progress.generation, int)
        and 0 <= progress.generation < 2**63
        and isinstance(progress.evaluations, int)
        and progress.evaluations >= 0
        and isinstance(progress.seconds, int | float)
        and 0 <= progress.seconds < 2**63
        and isinstance(progress.troubles, Mapping)
        and all(isinstance(times, int) for times in progress.troubles.values())
    )


def _require_whole(path: Path) -> None:
    """Compare a file with the SHA-256 in it, a block at a time."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_LONGEST_HEADER, path.stat().st_size):
            raise CheckpointError(path, "a whole checkpoint", "a damaged header")
        header = file.read(length)
        place = header.find(b'\\"sha256\\": \\"') + len(b'\\"sha256\\": \\"')
        given = header[place : place + len(_ZEROS)]
        zeroed = header[:place] + _ZEROS.encode() + header[place + len(_ZEROS) :]
        digest = hashlib.sha256(length.to_bytes(8, "little") + zeroed)
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest().encode() != given:
        advice = "The file was damaged, or cut off."
        raise CheckpointError(path, "the SHA-256 that the file names", "another", advice)
