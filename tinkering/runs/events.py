"""A run's records as TensorBoard's event files, for those who watch runs there."""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType

from tinkering.errors import ArgumentError
from tinkering.runs.evolve import Record


class EventFile:
    """Writes each record into an event file; ``metrics.jsonl`` stays what counts.

    A record's ``fitness_mean`` is called ``fitness/mean`` there, and so on; the step is the
    generation.

    Args:
        run: the run folder; nothing is written before the first record.

    Raises:
        ArgumentError: (a ``ValueError``) the package ``tensorboard`` is not installed.
    """

    def __init__(self, run: Path) -> None:
        try:
            # An extra of this package, and slow to import.
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ArgumentError(
                "tensorboard",
                "the package tensorboard",
                "a Python without it",
                "pip install 'tinkering[tensorboard]' installs it.",
            ) from error
        self._run = run
        self._new_writer = SummaryWriter
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> EventFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, record: Record) -> None:
        """Write a generation's record."""
        if self._writer is None:
            # Flushed often: who opens TensorBoard wants to see a run while it goes on.
            self._writer = self._new_writer(str(self._run), flush_secs=10)
        step = int(record["generation"])
        for name, value in record.items():
            if name not in ("generation", "troubles") and math.isfinite(value):
                self._writer.add_scalar(name.replace("_", "/", 1), value, step)
