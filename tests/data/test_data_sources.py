import subprocess
import sys

import pytest

from tinkering.data import get, listing, load, names
from tinkering.data.embedded import FOLDER
from tinkering.errors import ArgumentError

ALL = (
    "mnist5k",
    "emnist-byclass",
    "emnist-bymerge",
    "emnist-balanced",
    "emnist-letters",
    "emnist-digits",
    "emnist-mnist",
)


def test_the_names():
    assert names() == ALL
    assert load().name == "mnist5k"
    assert get("mnist5k") == FOLDER


@pytest.mark.parametrize("function", [load, get])
@pytest.mark.parametrize(
    ("name", "nearest"),
    [("emnist-leters", "emnist-letters"), ("mnist", "mnist5k"), ("quite another", None)],
)
def test_an_unknown_name(function, name, nearest):
    with pytest.raises(ArgumentError) as caught:
        function(name)
    advice = f" Did you mean {nearest}?" if nearest else ""
    assert str(caught.value) == (
        f"name: needed one of {', '.join(ALL)} or idx:FOLDER, got '{name}'.{advice}"
    )


def test_the_listing(tmp_path, monkeypatch):
    monkeypatch.setenv("TINKERING_DATA", str(tmp_path))
    rows = {row.name: row for row in listing()}
    assert tuple(rows) == ALL
    digits = load("mnist5k")
    told = rows["mnist5k"]
    assert (told.classes, told.train, told.test) == (
        len(digits.classes),
        len(digits.train),
        len(digits.test),
    )
    assert told.place == FOLDER
    assert [rows[name].classes for name in ALL[1:]] == [62, 47, 47, 26, 10, 10]
    assert all(rows[name].place is None for name in ALL[1:])
    path = tmp_path / "emnist" / "gzip.zip"
    path.parent.mkdir()
    path.touch()
    assert {row.place for row in listing()[1:]} == {path}


def test_importing_the_room_is_light_and_drawing_leaves_pyplot_alone(tmp_path):
    program = (
        "import sys; from tinkering.data import load, save_grid; print(*sys.modules);"
        f"save_grid(load(), {str(tmp_path / 'grid.png')!r}, count=1); print(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    at_first, at_last = (set(line.split()) for line in result.stdout.splitlines())
    assert "tinkering.data.sources" in at_first
    assert at_first.isdisjoint({"matplotlib", "pooch", "requests", "ray"})
    assert "matplotlib.figure" in at_last
    assert "matplotlib.pyplot" not in at_last


class TestChecksum:
    SHA256 = load("mnist5k").sha256()

    def test_the_right_one_changes_nothing(self):
        assert load("mnist5k", sha256=self.SHA256).sha256() == self.SHA256

    def test_another_one_is_refused(self):
        with pytest.raises(ArgumentError) as caught:
            load("mnist5k", sha256="0" * 64)
        needed = f"images of mnist5k with SHA-256 {'0' * 64}"
        assert str(caught.value) == f"sha256: needed {needed}, got {self.SHA256}."
