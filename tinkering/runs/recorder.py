"""What a run writes after every generation: a line of metrics, then a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

from tinkering.errors import RunFolderError
from tinkering.runs import folder
from tinkering.runs.checkpoint import Checkpoints, Progress
from tinkering.runs.evolve import Record

State = TypeVar("State")


class Recorder(Generic[State]):
    """Writes records and checkpoints, and decides what becomes of a run that cannot write.

    A line comes before its checkpoint. So a run that is killed between the two has a line too
    many, which resuming removes, and never one too few. A checkpoint is written while the next
    generation is under way, and is there before that one's line: whenever a run is killed, at
    most one generation that has a line is computed again.

    Args:
        run: the run folder.
        checkpoints: of that folder.
        every: generations between two checkpoints.
        go_on: whether a run goes on where the disk takes nothing; its lines are kept in
            memory, and written as soon as there is room again.
        say: is told once that nothing can be written, and once that it can be again.
    """

    def __init__(
        self,
        run: Path,
        checkpoints: Checkpoints[State],
        every: int = 1,
        go_on: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._run, self._checkpoints, self._every = run, checkpoints, every
        self._go_on, self._say = go_on, say
        self._unwritten: list[Record] = []
        self._latest: tuple[Progress, State] | None = None
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None
        self._saved = 0
        self._failing: set[str] = set()

    def record(self, record: Record) -> None:
        """Append a generation's record to ``metrics.jsonl``."""
        self._settle()
        self._unwritten.append(record)
        self._write("metrics", self._append)

    def keep(self, progress: Progress, state: State) -> None:
        """Begin to write a checkpoint, if it is time for one."""
        self._settle()
        self._latest = progress, state
        if progress.generation % self._every == 0:
            self._begin()

    def finish(self) -> None:
        """Write what is left to write: the last state has a checkpoint, whenever a run ends."""
        self._settle()
        if self._unwritten:
            self._write("metrics", self._append)
        if self._latest is not None and self._latest[0].generation > self._saved:
            self._begin()
            self._settle()

    def close(self) -> None:
        """Wait for what is being written, whatever became of the run."""
        self._writer.shutdown()

    def _begin(self) -> None:
        if self._latest is not None:
            write = self._checkpoints.prepare(*self._latest)
            self._writing = self._writer.submit(write)

    def _settle(self) -> None:
        """Wait for the checkpoint that is being written."""
        writing, self._writing = self._writing, None
        if writing is None or self._latest is None:
            return
        if self._write("checkpoint", writing.result):
            self._saved = self._latest[0].generation

    def _append(self) -> None:
        folder.append_lines(self._run / folder.METRICS, self._unwritten)
        self._unwritten = []

    def _last(self) -> int:
        return max(self._checkpoints.generations(), default=0)

    def _write(self, kind: str, what: Callable[[], Any]) -> bool:
        """Return whether it could be written; there may be room for a line and for no more."""
        try:
            what()
        except OSError as error:
            trouble = RunFolderError(
                self._run,
                "room to write",
                error.strerror or str(error),
                f"The last checkpoint is that of generation {self._last():,}.",
            )
            if not self._go_on:
                raise trouble from error
            if not self._failing:
                self._say(f"{trouble} The run goes on; it is written again when there is room.")
            self._failing.add(kind)
            return False
        if self._failing == {kind}:
            self._say("The run folder can be written again.")
        self._failing.discard(kind)
        return True
