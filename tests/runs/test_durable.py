"""Files that are whole or not there."""

import errno
import os
from pathlib import Path

import pytest

from tinkering.runs.durable import replace_durably

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail(*_, **__):
    raise FULL


class HalfWritten:
    """A file that takes half of what it is given, and then nothing."""

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, content):
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        raise FULL


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    replace_durably(path, b"old")
    return path


def test_the_file_is_replaced_and_nothing_lies_beside_it(path):
    replace_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["write", "os.fsync", "Path.replace"])
def test_a_write_that_fails_leaves_the_file_as_it_was(path, monkeypatch, step):
    if step == "os.fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif step == "Path.replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        opened = Path.open
        monkeypatch.setattr(Path, "open", lambda *words: HalfWritten(opened(*words)))
    with pytest.raises(OSError, match="No space left"):
        replace_durably(path, b"what is new" * 1000)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_process_left_is_written_over(path):
    path.with_name("file.part").write_bytes(b"a longer text than the new one")
    replace_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        replace_durably(tmp_path / "none" / "file", b"new")
    assert list(tmp_path.iterdir()) == []


def test_file_and_folder_are_synced_around_the_rename(path, monkeypatch):
    """The order that a power cut needs: the bytes, the name, the folder's list of names."""
    steps, fsync, replace = [], os.fsync, Path.replace

    def synced(descriptor):
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append(("fsync", place.name))
        fsync(descriptor)

    def renamed(one, other):
        steps.append(("rename", other.name))
        return replace(one, other)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    replace_durably(path, b"new")
    assert steps == [("fsync", "file.part"), ("rename", "file"), ("fsync", path.parent.name)]


@pytest.mark.parametrize("left", ["pipe", "link", "file"])
def test_what_lies_beside_it_is_removed_and_not_written_to(path, tmp_path, left):
    """A pipe would be waited for, and a link leads elsewhere."""
    beside, elsewhere = path.with_name("file.part"), tmp_path / "elsewhere"
    elsewhere.write_bytes(b"kept")
    if left == "pipe":
        os.mkfifo(beside)
        reader = os.open(beside, os.O_RDONLY | os.O_NONBLOCK)  # else opening it would wait
    elif left == "link":
        beside.symlink_to(elsewhere)
    else:
        beside.write_bytes(b"of a run that was killed")
    replace_durably(path, b"new")
    if left == "pipe":
        assert os.read(reader, 10) == b""
        os.close(reader)
    assert (path.is_symlink(), path.is_file(), path.read_bytes()) == (False, True, b"new")
    assert elsewhere.read_bytes() == b"kept"
    assert not beside.exists()
