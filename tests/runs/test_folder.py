"""The run folder: what is written comes back, what is there is not overwritten."""

import json
import math
import os
import pickle

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tinkering.errors import RunFolderError, TinkeringError
from tinkering.runs import folder


def error_of(function, *arguments):
    with pytest.raises(RunFolderError) as caught:
        function(*arguments)
    assert isinstance(caught.value, TinkeringError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return str(caught.value)


class TestCreate:
    def test_a_new_folder_with_its_parents(self, tmp_path):
        folder.create(tmp_path / "runs" / "a")
        assert (tmp_path / "runs" / "a").is_dir()

    def test_an_empty_folder_is_taken(self, tmp_path):
        folder.create(tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("names", "listed"),
        [
            (["b"], "b"),
            (["c", "a", "b"], "a, b, c"),
            (["d", "c", "a", "b"], "a, b, c, ..."),
            ([".hidden"], ".hidden"),
        ],
    )
    def test_a_folder_that_holds_something_is_refused(self, tmp_path, names, listed):
        for name in names:
            (tmp_path / name).write_text(name)
        assert error_of(folder.create, tmp_path) == (
            f"{tmp_path}: expected a new or empty folder, found one that holds {listed}. "
            "Nothing was overwritten; choose another folder with --out."
        )
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {n: n for n in names}

    def test_a_file_in_its_place(self, tmp_path):
        path = tmp_path / "file"
        path.write_text("mine")
        message = error_of(folder.create, path)
        assert message.startswith(f"{path}: expected a folder that can be written, found ")
        assert "File exists" in message
        assert path.read_text() == "mine"

    @pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
    def test_a_place_that_cannot_be_written(self, tmp_path):
        tmp_path.chmod(0o500)
        message = error_of(folder.create, tmp_path / "a")
        tmp_path.chmod(0o700)
        assert "Permission denied" in message


PLAIN = st.dictionaries(
    st.text(max_size=5),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    max_size=5,
)


class TestJson:
    @given(PLAIN)
    @example({"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "finite": 1.5})
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_comes_back_with_null_for_what_is_not_finite(self, tmp_path, values):
        expected = {
            name: None if isinstance(v, float) and not math.isfinite(v) else v
            for name, v in values.items()
        }
        path = tmp_path / "values.json"
        folder.write_json(path, values)
        assert folder.read_json(path) == expected
        # Strict JSON: no NaN, no Infinity.
        json.loads(path.read_text(), parse_constant=pytest.fail)
        path.unlink()
        folder.append_line(path, values)
        folder.append_line(path, {"next": 1})
        assert folder.read_metrics(path) == [expected, {"next": 1}]
        json.loads(path.read_text().splitlines()[0], parse_constant=pytest.fail)

    def test_a_write_that_fails_leaves_the_file_as_it_was(self, tmp_path):
        path = tmp_path / "summary.json"
        folder.write_json(path, {"a": 1})
        with pytest.raises(TypeError):
            folder.write_json(path, {"a": object()})
        assert folder.read_json(path) == {"a": 1}

    def test_nothing_else_is_left_beside(self, tmp_path):
        folder.write_json(tmp_path / "a.json", {"a": 1})
        folder.write_json(tmp_path / "a.json", {"a": 2})
        folder.save_model(tmp_path / "model", {"w": torch.zeros(1)})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "model"]
        assert folder.read_json(tmp_path / "a.json") == {"a": 2}

    @pytest.mark.parametrize("read", [folder.read_json, folder.read_metrics])
    def test_missing(self, tmp_path, read):
        path = tmp_path / "none.json"
        assert error_of(read, path) == (
            f"{path}: expected a file of a run folder, found No such file or directory. "
            "Is this a run folder?"
        )
        assert "Is a directory" in error_of(read, tmp_path)

    @pytest.mark.parametrize("content", [b"", b"{", b"not json", b'{"a": 1', b"\xff\xfe\x00"])
    def test_corrupt(self, tmp_path, content):
        path = tmp_path / "values.json"
        path.write_bytes(content)
        message = error_of(folder.read_json, path)
        assert message.startswith(f"{path}: expected a JSON object, found something else (")

    @pytest.mark.parametrize(("content", "kind"), [("[1]", "list"), ("3", "int"), ('"a"', "str")])
    def test_something_else_than_an_object(self, tmp_path, content, kind):
        path = tmp_path / "values.json"
        path.write_text(content)
        assert error_of(folder.read_json, path) == f"{path}: expected a JSON object, found {kind}."

    @pytest.mark.parametrize(
        "content",
        [b'{"a": 1}\n{"a"', b'{"a": 1}\n\n{"a": 2}\n', b"3\n", b'"ab"\n', b"\xff\xfe", b"[]\n"],
    )
    def test_metrics_that_are_corrupt(self, tmp_path, content):
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(content)
        assert error_of(folder.read_metrics, path).startswith(
            f"{path}: expected a JSON object a line, found "
        )

    def test_metrics_that_are_empty(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text("")
        assert folder.read_metrics(path) == []


class TestModel:
    TENSORS = {  # noqa: RUF012
        "weight": torch.randn(3, 4),
        "transposed": torch.randn(3, 4).T,
        "part": torch.randn(4, 4)[1:, 2],
        "number": torch.tensor(7),
        "double": torch.randn(2, dtype=torch.float64),
        "not a number": torch.tensor([math.nan, math.inf]),
    }

    def test_round_trip(self, tmp_path):
        path = tmp_path / "model.safetensors"
        folder.save_model(path, self.TENSORS)
        loaded = folder.load_model(path)
        assert loaded.keys() == self.TENSORS.keys()
        for name, value in self.TENSORS.items():
            assert loaded[name].dtype == value.dtype
            torch.testing.assert_close(loaded[name], value, rtol=0, atol=0, equal_nan=True)
        assert safetensors.torch.load_file(path).keys() == loaded.keys()

    def test_the_same_tensors_give_the_same_bytes(self, tmp_path):
        folder.save_model(tmp_path / "a", self.TENSORS)
        folder.save_model(tmp_path / "b", dict(reversed(self.TENSORS.items())))
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_missing(self, tmp_path):
        path = tmp_path / "model.safetensors"
        message = error_of(folder.load_model, path)
        assert message.startswith(f"{path}: expected a saved model (safetensors), found ")
        assert message.endswith("Did the run come to its end?")
        error_of(folder.load_model, tmp_path)

    @pytest.mark.parametrize("cut", [0, 4, 20, -1])
    def test_corrupt(self, tmp_path, cut):
        path = tmp_path / "model.safetensors"
        folder.save_model(path, self.TENSORS)
        path.write_bytes(path.read_bytes()[:cut])
        assert error_of(folder.load_model, path).endswith("Did the run come to its end?")

    def test_something_else(self, tmp_path):
        path = tmp_path / "model.safetensors"
        torch.save(self.TENSORS, path)
        error_of(folder.load_model, path)
