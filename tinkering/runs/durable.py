"""Files that are whole or not there: written beside, brought to the disk, renamed.

A process that is killed, or a machine that loses power, at any moment leaves the file as it was
or as it should be. What lies beside it then, with the ending ``.part``, is removed by the
next attempt.
"""

from __future__ import annotations

import os
from pathlib import Path

PART = ".part"
"""Ending of a file that is being written."""


def replace_durably(path: Path, content: bytes) -> None:
    """Write a file so that it survives a crash: complete, or as it was before.

    Args:
        path: the file; its folder exists.
        content: of the file.

    Raises:
        OSError: it could not be written. The file is as it was, and nothing lies beside it.
    """
    beside = path.with_name(path.name + PART)
    try:
        # Removed first, and not opened: it may be a pipe, or a link to somewhere else.
        beside.unlink(missing_ok=True)
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring a folder's list of names to the disk, where the system can do that."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
