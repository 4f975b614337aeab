"""The run folder: what a run leaves on disk.

config.json               the settings, enough to repeat the run
metrics.jsonl             a JSON object a generation
checkpoints/              where the run stands, to resume it
lock                      held by the process that works on the run
model.safetensors         the centre, parameters and buffers
summary.json              what the run came to
predictions.safetensors   what the centre said of the held-out images
report.html, *.png        the pictures of all that
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from tinkering.errors import RunBusyError, RunFolderError
from tinkering.runs.durable import PART, replace_durably
from tinkering.runs.regular import open_by_name, open_regular, require_regular_or_new

CONFIG = "config.json"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"
SUMMARY = "summary.json"
LOCK = "lock"


def create(path: Path) -> None:
    """Make a new run folder.

    Raises:
        RunFolderError: it exists and holds something, or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        # A run that was killed as it began leaves no more than these.
        begun = {LOCK, CONFIG + PART}
        entries = sorted(entry.name for entry in path.iterdir() if entry.name not in begun)
    except OSError as error:
        raise RunFolderError(path, "a folder that can be written", str(error)) from error
    if entries:
        raise RunFolderError(
            path,
            "a new or empty folder",
            f"one that holds {', '.join(entries[:3])}{', ...' if entries[3:] else ''}",
            "Nothing was overwritten; choose another folder with --out.",
        )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from working on a run folder; the lock dies with its owner.

    Raises:
        RunBusyError: another process has it.
        RunFolderError: the folder cannot be written.
    """
    lock = FileLock(path / LOCK, timeout=0)
    try:
        require_regular_or_new(path / LOCK)
        lock.acquire()
    except Timeout as error:
        raise RunBusyError(path) from error
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object; the file is complete or, after a crash, as it was before.

    Raises:
        RunFolderError: it cannot be written.
    """
    _replace(path, (json.dumps(_plain(values), indent=2) + "\n").encode())


def append_lines(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """Append JSON objects, a line each: all of them, or none.

    Raises:
        OSError: they could not be written; the file is as it was.
    """
    require_regular_or_new(path)
    content = "".join(json.dumps(_plain(line)) + "\n" for line in values).encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        before = os.fstat(descriptor).st_size
        try:
            # What is left over is written by a second call, or fails with the reason.
            while content:
                content = content[os.write(descriptor, content) :]
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def trim_metrics(path: Path, generation: int) -> int:
    """Remove what was written after a generation, and a line that was cut off.

    Args:
        path: ``metrics.jsonl``; it may be missing.
        generation: the last one to keep.

    Returns:
        How many lines are left; fewer than `generation` where the disk had lost some.
    """
    kept: dict[int, bytes] = {}
    before = _content(path) if path.exists() else b""
    for line in before.splitlines():
        try:
            number = json.loads(line)["generation"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(number, int) and 1 <= number <= generation:
            kept.setdefault(number, line)
    after = b"".join(kept[number] + b"\n" for number in sorted(kept))
    if after != before:
        _replace(path, after)
    return len(kept)


def save_model(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write parameters and buffers by name as safetensors; complete or as before.

    Raises:
        RunFolderError: it cannot be written.
    """
    _replace(path, save({name: value.contiguous() for name, value in tensors.items()}))


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        RunFolderError: the file is missing or is something else.
    """
    content = _content(path)
    try:
        values = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise RunFolderError(path, "a JSON object", f"something else ({error})") from error
    if not isinstance(values, dict):
        raise RunFolderError(path, "a JSON object", type(values).__name__)
    return values


def read_metrics(path: Path, *, unfinished: bool = False) -> list[dict[str, Any]]:
    """Return the records of ``metrics.jsonl``, in the order of generations.

    Args:
        path: the file.
        unfinished: leave out a last line without its end, as a run may be writing it just
            now, or was when it was cut off.

    Raises:
        RunFolderError: the file is missing, or a line is not a JSON object.
    """
    content = _content(path)
    try:
        text = content.decode()
        if unfinished:
            text = text[: text.rfind("\n") + 1]
        records = [json.loads(line) for line in text.splitlines()]
    except (ValueError, RecursionError) as error:
        raise RunFolderError(path, "a JSON object a line", str(error)) from error
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            found = f"{type(record).__name__} in line {number}"
            raise RunFolderError(path, "a JSON object a line", found)
    return records


def load_model(path: Path) -> dict[str, Tensor]:
    """Return parameters and buffers by name.

    Raises:
        RunFolderError: the file is missing or is no safetensors file.
    """
    try:
        with open_by_name(path) as name:
            return load_file(name)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(
            path, "a saved model (safetensors)", str(error), "Did the run come to its end?"
        ) from error


def _content(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise RunFolderError(
            path, "a file of a run folder", error.strerror or str(error), "Is this a run folder?"
        ) from error


def _replace(path: Path, content: bytes) -> None:
    try:
        replace_durably(path, content)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> RunFolderError:
    found = error.strerror or str(error)
    advice = "Is there room, and is the folder yours?"
    return RunFolderError(path, "a place that can be written", found, advice)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with null in place of numbers that JSON has no word for."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
