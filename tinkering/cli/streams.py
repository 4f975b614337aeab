"""Standard output that takes every text, whatever its encoding has no word for."""

from __future__ import annotations

import codecs
import io
import sys

_ERRORS = "tinkering.raw-or-escaped"


def print_whatever_comes() -> None:
    r"""Have standard output and error write what their encoding cannot, in place of failing.

    A byte of a file's name that is no UTF-8 is written as that byte, so that the name can be
    copied; another character is escaped, as ``\xe9``. Who chose something else, as with
    ``PYTHONIOENCODING=ascii:replace``, keeps it.
    """
    codecs.register_error(_ERRORS, _raw_or_escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "backslashreplace"):
            stream.reconfigure(errors=_ERRORS)


def _raw_or_escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    # A character at a time: some may be bytes of a name, and others none.
    one = error.object[error.start]
    end = error.start + 1
    if 0xDC80 <= ord(one) <= 0xDCFF:  # what `os.fsdecode` makes of a byte
        return bytes([ord(one) - 0xDC00]), end
    return one.encode("ascii", "backslashreplace"), end
