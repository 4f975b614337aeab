"""The run folder: what a run leaves on disk.

config.json               the settings, enough to repeat the run
metrics.jsonl             a JSON object a generation
model.safetensors         the centre, parameters and buffers
summary.json              what the run came to
predictions.safetensors   what the centre said of the held-out images
report.html, *.png        the pictures of all that
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tinkering.errors import RunFolderError

CONFIG = "config.json"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"
SUMMARY = "summary.json"


def create(path: Path) -> None:
    """Make a new run folder.

    Raises:
        RunFolderError: it exists and holds something, or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        entries = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise RunFolderError(path, "a folder that can be written", str(error)) from error
    if entries:
        raise RunFolderError(
            path,
            "a new or empty folder",
            f"one that holds {', '.join(entries[:3])}{', ...' if entries[3:] else ''}",
            "Nothing was overwritten; choose another folder with --out.",
        )


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object; the file is complete or, after a crash, as it was before."""
    _replace(path, json.dumps(_plain(values), indent=2) + "\n")


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append a JSON object as one line."""
    with path.open("a") as file:
        file.write(json.dumps(_plain(values)) + "\n")


def save_model(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write parameters and buffers by name as safetensors; complete or as before."""
    beside = path.with_name(path.name + ".part")
    save_file({name: value.contiguous() for name, value in tensors.items()}, beside)
    beside.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        RunFolderError: the file is missing or is something else.
    """
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise RunFolderError(
            path, "a file of a run folder", error.strerror or str(error), "Is this a run folder?"
        ) from error
    except ValueError as error:
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
    try:
        text = path.read_text()
        if unfinished:
            text = text[: text.rfind("\n") + 1]
        records = [json.loads(line) for line in text.splitlines()]
    except OSError as error:
        raise RunFolderError(
            path, "a file of a run folder", error.strerror or str(error), "Is this a run folder?"
        ) from error
    except ValueError as error:
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
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(
            path, "a saved model (safetensors)", str(error), "Did the run come to its end?"
        ) from error


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_text(text)
    beside.replace(path)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with null in place of numbers that JSON has no word for."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
