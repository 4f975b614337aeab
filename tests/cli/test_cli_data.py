"""``tinkering data``: list, get and show."""

from pathlib import Path

import matplotlib.image
import pytest
from commands import refused

from tinkering.cli import main

pytestmark = pytest.mark.usefixtures("same_threads")


class TestData:
    @pytest.mark.parametrize("columns", ["30", "80", "300"])
    def test_list(self, columns, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["data", "list"]) == 0
        printed = capsys.readouterr().out
        names = [line.split()[0] for line in printed.splitlines()]
        assert names[:2] == ["name", "mnist5k"]
        assert "idx:FOLDER" in printed.splitlines()[-1]
        assert len([name for name in names if name.startswith("emnist-")]) == 6
        row = next(line for line in printed.splitlines() if line.startswith("mnist5k")).split()
        assert row[1:4] == ["10", "4,000", "1,000"]
        assert Path(row[4]).is_dir()
        assert "\x1b" not in printed

    def test_get_the_embedded_digits(self, capsys):
        assert main(["data", "get", "mnist5k"]) == 0
        path = Path(capsys.readouterr().out.strip())
        assert path.is_dir()
        assert (path / "README.md").exists()

    def test_get_a_folder(self, digits, capsys):
        assert main(["data", "get", digits]) == 0
        assert capsys.readouterr().out == digits.removeprefix("idx:") + "\n"

    @pytest.mark.parametrize("half", ["train", "test"])
    def test_show(self, tmp_path, capsys, half):
        out = tmp_path / "grid.png"
        words = ["data", "show", "mnist5k", "--out", str(out), "--half", half, "--count", "30"]
        assert main(words) == 0
        assert capsys.readouterr().out == f"{out}\n"
        pixels = matplotlib.image.imread(out)
        assert min(pixels.shape[:2]) >= 3 * 28
        assert pixels.std() > 0.05

    def test_show_refuses_another_half(self, tmp_path, capsys):
        words = ["data", "show", "--half", "both", "--out", tmp_path / "a.png"]
        assert refused(words, capsys).startswith("half: needed ")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", [["evolve", "--data"], ["data", "get"], ["data", "show"]], ids=" ".join
)
def test_an_unknown_data_set(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused([*command, "mnist5"], capsys)
    assert message.startswith("name: needed one of mnist5k, emnist-byclass, ")
    assert message.endswith("got 'mnist5'. Did you mean mnist5k?")
    assert list(tmp_path.iterdir()) == []
