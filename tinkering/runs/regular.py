"""Only regular files are read: a named pipe in a folder would be waited for without end."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read its bytes; a link is followed.

    Raises:
        OSError: it cannot be opened, or is something else than a regular file; `strerror` says
            what.
    """
    # What cannot be read at once is not waited for; of a regular file that changes nothing.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        _require(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


@contextlib.contextmanager
def open_by_name(path: Path) -> Iterator[Path]:
    """Give the name of a regular file, for a library that opens it by itself.

    Where the name is no UTF-8, which safetensors does not take, it is another one of the same file.

    Raises:
        OSError: as `open_regular` does.
    """
    with open_regular(path) as file:
        try:
            os.fspath(path).encode()
        except UnicodeEncodeError:
            path = Path("/proc/self/fd", str(file.fileno()))
        yield path


def require_regular_or_new(path: Path) -> None:
    """Refuse to write where something else than a regular file is.

    Raises:
        OSError: as `open_regular` does.
    """
    if path.exists():
        _require(path.stat().st_mode, path)


def _require(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"{kind}, which is no regular file", str(path))
