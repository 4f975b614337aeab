"""The run folder: what is written comes back, what is there is not overwritten."""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tinkering.errors import RunBusyError, RunFolderError, TinkeringError
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

    def test_what_a_run_left_that_was_killed_as_it_began_is_no_obstacle(self, tmp_path):
        with folder.locked(tmp_path):
            (tmp_path / "config.json.part").write_text("{")
        folder.create(tmp_path)
        (tmp_path / "config.json").write_text("{}")
        assert "holds config.json." in error_of(folder.create, tmp_path)

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
        folder.append_lines(path, [values])
        folder.append_lines(path, [{"next": 1}])
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

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"not json", b'{"a": 1', b"\xff\xfe\x00", b"[" * 100_000]
    )
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


LINES = [{"generation": g, "fitness": g / 3} for g in range(1, 6)]
WRITTEN = [json.dumps(line).encode() + b"\n" for line in LINES]


class TestAppending:
    def test_all_of_them_in_order(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        folder.append_lines(path, LINES[:1])
        folder.append_lines(path, [])
        folder.append_lines(path, LINES[1:])
        assert path.read_bytes() == b"".join(WRITTEN)

    @pytest.mark.parametrize("room", [0, 1, 40, 60])
    def test_all_or_none_where_there_is_no_room(self, tmp_path, monkeypatch, room):
        path = tmp_path / "metrics.jsonl"
        folder.append_lines(path, LINES[:2])
        write, left = os.write, [room]

        def full(descriptor, content):
            if not left[0]:
                raise OSError(28, "No space left on device")
            done = write(descriptor, content[: left[0]])
            left[0] -= done
            return done

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            folder.append_lines(path, LINES[2:])
        monkeypatch.undo()
        assert path.read_bytes() == b"".join(WRITTEN[:2])

    def test_a_disk_that_takes_a_few_bytes_at_a_time(self, tmp_path, monkeypatch):
        write = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, c: write(descriptor, c[:7]))
        folder.append_lines(tmp_path / "metrics.jsonl", LINES)
        assert folder.read_metrics(tmp_path / "metrics.jsonl") == LINES


class TestTrimming:
    def trimmed(self, folder_, content, generation):
        path = folder_ / "metrics.jsonl"
        path.write_bytes(content)
        left = folder.trim_metrics(path, generation)
        return left, path.read_bytes()

    @pytest.mark.parametrize(
        ("content", "kept"),
        [
            (WRITTEN[:3], [1, 2, 3]),
            (WRITTEN[:5], [1, 2, 3]),  # later than the checkpoint
            ([*WRITTEN[:4], WRITTEN[4][:9]], [1, 2, 3]),  # torn
            ([*WRITTEN[:2], WRITTEN[2][:-1]], [1, 2, 3]),  # all of it but the end of the line
            ([*WRITTEN[:3], *WRITTEN[1:4]], [1, 2, 3]),  # doubled
            ([WRITTEN[0], WRITTEN[1][:8], WRITTEN[2]], [1]),  # two in one, as a disk may lose
            ([WRITTEN[0], b"\n", b"\0" * 50, b"\n", WRITTEN[2]], [1, 3]),
            ([b"3\n", b"[]\n", b'{"a": 1}\n', b'{"generation": "1"}\n', WRITTEN[0]], [1]),
            ([b'{"generation": 0}\n', b'{"generation": -1}\n'], []),
            ([b"[" * 100_000, b"\n", WRITTEN[0]], [1]),
            ([], []),
        ],
    )
    def test_what_is_kept(self, tmp_path, content, kept):
        left, after = self.trimmed(tmp_path, b"".join(content), 3)
        assert (left, after) == (len(kept), b"".join(WRITTEN[g - 1] for g in kept))

    @given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 60))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_wherever_it_was_cut_off(self, tmp_path, whole, generation, more):
        torn = b"".join(WRITTEN[whole:])[:more]
        content = b"".join(WRITTEN[:whole]) + torn
        left, after = self.trimmed(tmp_path, content, generation)
        kept = min(generation, content.count(b"\n") + (content[-1:] == b"}"))
        assert (left, after) == (kept, b"".join(WRITTEN[:kept]))

    def test_no_file(self, tmp_path):
        assert folder.trim_metrics(tmp_path / "metrics.jsonl", 3) == 0
        assert list(tmp_path.iterdir()) == []


HOLDS = """
    import sys, time
    from pathlib import Path
    from tinkering.runs.folder import locked

    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(600)
"""


class TestLock:
    def test_keeps_another_process_out_and_dies_with_its_owner(self, tmp_path):
        words = [sys.executable, "-c", textwrap.dedent(HOLDS), str(tmp_path)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as owner:
            try:
                assert owner.stdout.readline() == "held\n"
                with pytest.raises(RunBusyError) as caught, folder.locked(tmp_path):
                    pytest.fail("both have it")
                assert str(caught.value) == (
                    f"{tmp_path}: another process works on this run. Wait for it, or end it."
                )
            finally:
                owner.send_signal(signal.SIGKILL)
        with folder.locked(tmp_path):
            assert (tmp_path / "lock").exists()

    def test_is_given_back(self, tmp_path):
        for _ in range(2):
            with pytest.raises(KeyError), folder.locked(tmp_path):
                raise KeyError

    def test_keeps_another_thread_out(self, tmp_path):
        met = []

        def work():
            try:
                with folder.locked(tmp_path):
                    pass
            except RunBusyError as error:
                met.append(error)

        with folder.locked(tmp_path):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        assert len(met) == 1

    def test_a_folder_that_is_not_there(self, tmp_path):
        path = tmp_path / "file"
        path.write_text("mine")
        needed = "expected a place that can be written"
        with pytest.raises(RunFolderError, match=needed), folder.locked(path):
            pytest.fail("there is none")

    @pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
    def test_a_place_that_cannot_be_written(self, tmp_path):
        tmp_path.chmod(0o500)
        try:
            needed = "Permission denied"
            with pytest.raises(RunFolderError, match=needed), folder.locked(tmp_path):
                pytest.fail("it cannot be had")
        finally:
            tmp_path.chmod(0o700)


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
