"""Ctrl-C and SIGTERM as a request: noted the first time, obeyed at once the second time."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """While active, the first Ctrl-C or SIGTERM only sets `signal`; a second one raises.

    Outside the main thread, where Python delivers no signals, it does nothing.

    Example:
        >>> with Interrupt() as interrupt:
        ...     signal.raise_signal(signal.SIGINT)
        ...     interrupt.signal
        <Signals.SIGINT: 2>
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first that came."""
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if self._in_main_thread:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
