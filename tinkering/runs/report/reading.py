"""A run folder, read: what is there, and what is not there yet."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from safetensors import SafetensorError, safe_open

from tinkering.errors import RunFolderError
from tinkering.runs import folder
from tinkering.runs.predictions import MOST_CLASSES, PREDICTIONS, Predictions, load_predictions
from tinkering.runs.regular import open_by_name
from tinkering.runs.report.wording import shown

FIRST_LAYER = "conv1.weight"
"""What `SimpleResNet` calls the weight of its first convolution."""


@dataclass(frozen=True, eq=False)
class Run:
    """What a run folder holds; what it does not hold is None or empty."""

    path: Path
    config: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] | None
    """None: the run is still going on, or was cut off."""
    predictions: Predictions | None
    filters: Float[np.ndarray, "filters channels height width"] | None
    faults: Mapping[str, str]
    """Files that are there and cannot be used, and why."""
    silent_for: float
    """Seconds since the last generation was written."""
    _columns: dict[str, Float64[np.ndarray, " generations"]] = field(
        default_factory=dict, init=False, repr=False
    )
    """What `column` returned before: every picture asks for the same few."""

    @property
    def name(self) -> str:
        """The name of the folder, with what is no UTF-8 in it escaped."""
        return shown(self.path.resolve().name or str(self.path.resolve()))

    def column(self, key: str) -> Float64[np.ndarray, " generations"]:
        """Return a value of every generation, NaN where there is none."""
        if key not in self._columns:
            values = [number(record.get(key)) for record in self.records]
            self._columns[key] = np.array(values, dtype=np.float64)
        return self._columns[key]

    def final(self, key: str) -> float:
        """Return a figure at the end, or the last there is yet; NaN where there is none."""
        ended = number((self.summary or {}).get(key))
        if np.isfinite(ended):
            return ended
        # A summary counts generations, a record has its number.
        known = self.column("generation" if key == "generations" else key)
        known = known[np.isfinite(known)]
        return float(known[-1]) if len(known) else float("nan")

    @property
    def rate(self) -> float:
        """Forward passes a second over the whole run."""
        seconds = self.final("seconds")
        return self.final("evaluations") / seconds if seconds > 0 else float("nan")

    @property
    def classes(self) -> list[str]:
        """Names of the classes; their numbers in a run that did not keep the names."""
        named = self.config.get("classes")
        names = [shown(str(name)) for name in named] if isinstance(named, list | tuple) else []
        network = self.config.get("network")
        count = network.get("classes") if isinstance(network, Mapping) else 0
        needed = count if isinstance(count, int) and count <= MOST_CLASSES else 0
        if self.predictions is not None and len(self.predictions):
            both = self.predictions.labels, self.predictions.predicted
            needed = max(needed, *(int(labels.max()) + 1 for labels in both))
        return names + [str(label) for label in range(len(names), needed)]


def read(path: Path) -> Run:
    """Return what a run folder holds.

    Raises:
        RunFolderError: it has no settings, or a file that every run has cannot be read.
    """
    config = folder.read_json(path / folder.CONFIG)
    metrics = path / folder.METRICS
    records = folder.read_metrics(metrics, unfinished=True) if metrics.exists() else []
    last = metrics if metrics.exists() else path / folder.CONFIG
    summary = path / folder.SUMMARY
    faults: dict[str, str] = {}
    return Run(
        path=path,
        config=config,
        records=records,
        summary=folder.read_json(summary) if summary.exists() else None,
        predictions=_predictions(path / PREDICTIONS, faults),
        filters=_filters(path / folder.MODEL, faults),
        faults=faults,
        silent_for=max(time.time() - last.stat().st_mtime, 0.0),
    )


def number(value: object) -> float:
    """Return a number as a float, and NaN for anything else.

    Example:
        >>> number(3), number(None), number("3")
        (3.0, nan, nan)
    """
    try:
        return float(value) if isinstance(value, int | float) else float("nan")
    except OverflowError:  # an integer of hundreds of digits
        return float("nan")


def _predictions(path: Path, faults: dict[str, str]) -> Predictions | None:
    if not path.exists():
        return None
    try:
        return load_predictions(path)
    except RunFolderError as error:
        faults[path.name] = str(error)
        return None


def _filters(path: Path, faults: dict[str, str]) -> np.ndarray | None:
    """Return the weight of the first convolution, and nothing else of the network."""
    if not path.exists():
        return None
    try:
        with open_by_name(path) as name, safe_open(name, framework="numpy") as tensors:
            weight = tensors.get_tensor(FIRST_LAYER) if FIRST_LAYER in tensors.keys() else None  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as error:
        faults[path.name] = f"{path}: expected a saved model (safetensors), found {error}."
        return None
    if weight is None or weight.ndim != 4 or not np.isfinite(weight).all():
        return None
    return np.asarray(weight)
