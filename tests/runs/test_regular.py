"""Only regular files are opened, and none is waited for."""

import os
import socket
from pathlib import Path

import pytest

from tinkering.runs.regular import open_by_name, open_regular, require_regular_or_new


def make(kind, path):
    if kind == "a named pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["a named pipe", "a device"])
@pytest.mark.parametrize("linked", [False, True])
def test_anything_else_is_refused_at_once(tmp_path, kind, linked):
    path = tmp_path / "file"
    make(kind, path)
    if linked:
        path = tmp_path / "link"
        path.symlink_to("file")
    for read in (open_regular, require_regular_or_new, lambda path: open_by_name(path).__enter__()):
        with pytest.raises(OSError, match="which is no regular file") as caught:
            read(path)
        assert caught.value.strerror == f"{kind}, which is no regular file"


def test_a_folder_is_said_as_ever(tmp_path):
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        open_regular(tmp_path)


def test_a_socket_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket has to be short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("s")
        with pytest.raises(OSError, match="s"):
            open_regular(Path("s"))


def test_a_file_and_a_link_to_one_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"
        with open_by_name(tmp_path / name) as known:
            assert known == tmp_path / name


def test_a_name_that_is_no_utf_8_has_another(tmp_path):
    path = tmp_path / os.fsdecode(b"\xe9")
    try:
        path.write_bytes(b"content")
    except OSError:
        pytest.skip("a file system that takes only UTF-8")
    with open_by_name(path) as known:
        assert str(known).isascii()
        assert known.read_bytes() == b"content"


def test_nothing_is_left_open(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(3):
        with pytest.raises(OSError, match="pipe"):
            open_regular(tmp_path / "pipe")
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_what_is_not_there_is_said_as_ever(tmp_path):
    require_regular_or_new(tmp_path / "new")
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "new")
