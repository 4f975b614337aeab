"""``tinkering COMMAND``: where the program begins, and how Ctrl-C ends it from then on.

Nothing is imported here that takes time: PyTorch and the commands come with the first call.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: done. 2: something was asked for that cannot be done, and the message says what. 3: a data
    file cannot be used. 4: a run folder, or a file in it. 5: another process works on the run.
    130: ended by Ctrl-C. 143: by SIGTERM.

    Args:
        args: the words after ``tinkering``; those of the process by default.
    """
    with _leaving_on_ctrl_c():
        from tinkering.cli.program import run
    try:
        return run(sys.argv[1:] if args is None else args)
    except KeyboardInterrupt:
        return INTERRUPTED


@contextlib.contextmanager
def _leaving_on_ctrl_c() -> Iterator[None]:
    """Have Ctrl-C end the process at once, with its exit code.

    An exception would not do: one that is raised in the middle of an import is printed and
    forgotten where no code of Python's can catch it, and the program would go on with half of
    a library. Nothing has been opened or written yet that would have to be put in order.
    """
    if threading.current_thread() is not threading.main_thread():  # where no signals arrive
        yield
        return
    # Ignored, as in the background of a shell's script, or with a handler of the caller's.
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    sys.exit(main())
