"""What a run shows while it goes on: a progress bar, or plain lines where there is no terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from tinkering.runs.evolve import Limits, Record


class RunDisplay:
    """Shows generation, fitness, accuracy, forward passes per second and time left.

    Args:
        console: where to show it. If it is no terminal, a line is printed for every
            held-out measurement instead.
        limits: those of the run, for the time left.
    """

    def __init__(self, console: Console, limits: Limits) -> None:
        self._console = console
        self._limits = limits
        self._accuracy: float | None = None
        self._bar = Progress(
            BarColumn(bar_width=7),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("the first generation", total=1.0)

    def __enter__(self) -> RunDisplay:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, record: Record) -> None:
        """Show a generation's record."""
        measured = "test_accuracy" in record
        if measured:
            self._accuracy = float(record["test_accuracy"])
        line = self._line(record)
        self._bar.update(self._task, completed=self._done(record), description=line)
        if measured and not self._console.is_terminal:
            self._console.print(line, soft_wrap=True)

    def _line(self, record: Record) -> str:
        """Return a line that fits a terminal of 80 columns beside the bar."""
        accuracy = "" if self._accuracy is None else f"accuracy {100 * self._accuracy:.1f} %  "
        rate = record["evaluations"] / max(record["seconds"], 1e-9)
        return (
            f"gen {record['generation']:,}  fitness {record['fitness_mean']:.3f}  "
            f"{accuracy}{rate:,.0f} passes/s  {self._time_left(record)} left"
        )

    def _done(self, record: Record) -> float:
        """Return the share of the nearer limit that is used up, 0 to 1."""
        shares = []
        if self._limits.seconds is not None:
            shares.append(record["seconds"] / max(self._limits.seconds, 1e-9))
        if self._limits.generations is not None:
            shares.append(record["generation"] / max(self._limits.generations, 1))
        return float(min(1.0, max(shares)))

    def _time_left(self, record: Record) -> str:
        done = max(self._done(record), 1e-9)
        seconds = round(record["seconds"] * (1 / done - 1))
        return f"{seconds // 60}:{seconds % 60:02d}"
