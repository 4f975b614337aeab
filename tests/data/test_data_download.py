import hashlib
import http.server
import threading

import pooch
import pytest
from idx_files import letters_members, zip_bytes
from rich.console import Console
from rich.progress import Progress

from tinkering.data import Download, get, load
from tinkering.data.download import cache_folder
from tinkering.data.progress import DownloadBar
from tinkering.errors import DataError

CONTENT = zip_bytes(letters_members())
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine: the archive, another file, half the archive, or 404."""
    monkeypatch.setenv("TINKERING_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            bodies = {"/gzip.zip": CONTENT, "/other": b"other", "/half": CONTENT[:1000]}
            body = bodies.get(self.path)
            if body is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) if body == b"other" else len(CONTENT)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()

        def download(path, md5=MD5):
            return Download(f"http://127.0.0.1:{httpd.server_port}{path}", md5, len(CONTENT))

        download.asked = asked
        yield download
        httpd.shutdown()
        thread.join()


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_get_then_load(server, tmp_path, capfd):
    path = get("emnist-letters", archive=server("/gzip.zip"))
    assert path == tmp_path / "cache" / "emnist" / "gzip.zip"
    assert files(tmp_path) == [path]
    assert path.read_bytes() == CONTENT
    assert len(load("emnist-letters").train) == 52
    # The room says nothing by itself, and leaves pooch as talkative as it was.
    assert capfd.readouterr() == ("", "")
    assert pooch.get_logger().level == 0


def test_what_is_there_is_checked_and_not_downloaded_again(server):
    archive = server("/gzip.zip")
    path = get("emnist-mnist", archive=archive)
    assert get("emnist-byclass", archive=archive) == path
    assert server.asked == ["/gzip.zip"]
    path.write_bytes(b"changed")
    with pytest.raises(DataError) as caught:
        get("emnist-letters", archive=archive)
    found = hashlib.md5(b"changed").hexdigest()
    assert str(caught.value) == (
        f"{path}: expected MD5 {MD5}, found {found}. Delete the file, then get it again."
    )
    assert path.read_bytes() == b"changed"


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    archive = server("/other")
    with pytest.raises(DataError) as caught:
        get("emnist-letters", archive=archive)
    found = hashlib.md5(b"other").hexdigest()
    path = tmp_path / "cache" / "emnist" / "gzip.zip"
    assert str(caught.value) == (
        f"{archive.url}: expected MD5 {MD5}, found {found} (5 bytes). Nothing was kept. "
        f"Try again, or get {archive.url} in another way (MD5 {MD5}) and save it as {path}."
    )
    assert files(tmp_path) == []


@pytest.mark.parametrize(("address", "reason"), [("/nowhere", "404"), ("/half", "IncompleteRead")])
def test_a_failed_download_leaves_nothing(server, tmp_path, address, reason):
    archive = server(address)
    with pytest.raises(DataError) as caught:
        get("emnist-letters", archive=archive)
    message = str(caught.value)
    path = tmp_path / "cache" / "emnist" / "gzip.zip"
    assert message.startswith(f"{archive.url}: expected a download of {len(CONTENT):,} bytes")
    assert reason in message
    assert message.endswith(f"get {archive.url} in another way (MD5 {MD5}) and save it as {path}.")
    assert files(tmp_path) == []


def test_no_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TINKERING_DATA", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Port 9 is the discard service; nothing listens there.
    archive = Download("http://127.0.0.1:9/gzip.zip", MD5, 10)
    with pytest.raises(DataError) as caught:
        get("emnist-letters", archive=archive)
    message = str(caught.value)
    assert message.startswith("http://127.0.0.1:9/gzip.zip: expected a download of 10 bytes")
    assert f"(MD5 {MD5}) and save it as {tmp_path / 'emnist' / 'gzip.zip'}." in message


def test_an_interrupted_download_leaves_nothing(server, tmp_path):
    class Interrupted:
        total = 0

        def update(self, _bytes, /):
            raise KeyboardInterrupt

        def reset(self): ...

        def close(self): ...

    with pytest.raises(KeyboardInterrupt):
        get("emnist-letters", Interrupted(), server("/gzip.zip"))
    assert files(tmp_path) == []
    assert pooch.get_logger().level == 0


def test_a_cache_that_cannot_be_made(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TINKERING_DATA", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"expected a download of .* found a failure"):
        get("emnist-letters", archive=server("/gzip.zip"))


def test_the_bar_ends_full(server):
    display = Progress(console=Console(quiet=True))
    get("emnist-letters", DownloadBar(display, "EMNIST"), server("/gzip.zip"))
    (task,) = display.tasks
    assert task.description == "EMNIST"
    assert task.completed == task.total == len(CONTENT)


def test_where_downloads_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("TINKERING_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "platform"))
    assert cache_folder() == tmp_path / "platform" / "tinkering"
    monkeypatch.setenv("TINKERING_DATA", "")
    assert cache_folder() == tmp_path / "platform" / "tinkering"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TINKERING_DATA", "~/mine")
    assert cache_folder() == tmp_path / "mine"
