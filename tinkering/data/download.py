"""Verified downloads into the user's cache folder: a file is there whole or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from tinkering.data.idx import open_regular, reading
from tinkering.errors import DataError

# A chunk is also what one step of the progress bar stands for.
_CHUNK = 2**18


@runtime_checkable
class Progress(Protocol):
    """What shows how far a download is; see `tinkering.data.progress.DownloadBar`."""

    total: int
    """Bytes to come, 0 if that is unknown; set when the download begins."""

    def update(self, n: int, /) -> object:
        """Count `n` more bytes."""

    def reset(self) -> object:
        """Begin counting anew."""

    def close(self) -> object:
        """The download is complete."""


@dataclass(frozen=True)
class Download:
    """A file on the web, and how to know that it is the right one.

    Args:
        url: its address.
        md5: its MD5 as the publisher's users know it, 32 hexadecimal digits.
        size: its length in bytes, for messages.
    """

    url: str
    md5: str
    size: int


def cache_folder() -> Path:
    """Return where downloads are kept: ``TINKERING_DATA``, or the platform's cache folder."""
    import pooch  # Here, so that data that is at hand needs no downloader.

    chosen = os.environ.get("TINKERING_DATA")
    return Path(chosen).expanduser() if chosen else Path(pooch.os_cache("tinkering"))


def fetch(download: Download, path: Path, progress: Progress | None = None) -> Path:
    """Return `path` once it holds the right file, downloading it if there is none.

    The download goes to a temporary file in the same folder and gets its name only after
    its checksum was found right.

    Args:
        download: what to get.
        path: where to keep it.
        progress: told how far the download is.

    Raises:
        DataError: the download failed or brought something else, or another file is
            already at `path`.
    """
    import pooch

    if path.exists():
        with reading(str(path)):
            open_regular(path).close()
            found = pooch.file_hash(str(path), alg="md5")
        if found != download.md5:
            raise DataError(
                path, f"MD5 {download.md5}", found, "Delete the file, then get it again."
            )
        return path

    def get_and_check(url: str, output_file: str, _pooch: object) -> None:
        pooch.HTTPDownloader(progressbar=progress or False, chunk_size=_CHUNK)(
            url, output_file, None
        )
        # pooch checks again before it moves the file; here the message is ours.
        found = pooch.file_hash(output_file, alg="md5")
        if found != download.md5:
            found = f"{found} ({Path(output_file).stat().st_size} bytes)"
            advice = f"Nothing was kept. Try again, or {_by_hand(download, path)}"
            raise DataError(url, f"MD5 {download.md5}", found, advice)

    with _quiet(pooch.get_logger()), _failures(download, path):
        pooch.retrieve(
            download.url,
            known_hash=f"md5:{download.md5}",
            fname=path.name,
            path=path.parent,
            downloader=get_and_check,
        )
    return path


@contextmanager
def _quiet(log: logging.Logger) -> Iterator[None]:
    """Keep pooch from announcing downloads: what is shown is for `Progress` and its owner."""
    level = log.level
    log.setLevel("WARNING")
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def _failures(download: Download, path: Path) -> Iterator[None]:
    """Turn the faults of network and disk, both of them OSErrors, into a `DataError`."""
    try:
        yield
    except OSError as fault:
        raise DataError(
            download.url,
            f"a download of {download.size:,} bytes to {path}",
            f"a failure ({str(fault).rstrip('.')})",
            f"Try again, or {_by_hand(download, path)}",
        ) from fault


def _by_hand(download: Download, path: Path) -> str:
    """Return how to do without `fetch`."""
    return f"get {download.url} in another way (MD5 {download.md5}) and save it as {path}."
