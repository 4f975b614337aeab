"""A download's progress on a rich display that belongs to someone else."""

from __future__ import annotations

from rich.progress import Progress


class DownloadBar:
    """One line of a `rich.progress.Progress`, driven by `tinkering.data.get`.

    Args:
        display: where the line is shown; whoever made it starts and stops it.
        description: what the line says.

    Example:
        >>> from rich.console import Console
        >>> display = Progress(console=Console(quiet=True))
        >>> bar = DownloadBar(display, "EMNIST")
        >>> bar.total = 200
        >>> bar.update(50)
        >>> display.tasks[0].percentage
        25.0
    """

    def __init__(self, display: Progress, description: str) -> None:
        self._display = display
        self._task = display.add_task(description, total=None)
        self._total = 0

    @property
    def total(self) -> int:
        """Bytes to come, 0 if that is unknown."""
        return self._total

    @total.setter
    def total(self, total: int) -> None:
        self._total = total
        self._display.update(self._task, total=total or None)

    def update(self, n: int, /) -> None:
        """Count `n` more bytes."""
        self._display.update(self._task, advance=n)

    def reset(self) -> None:
        """Begin counting anew, with the clock running on."""
        self._display.update(self._task, completed=0)

    def close(self) -> None:
        """Do nothing: the display is not ours to stop."""
