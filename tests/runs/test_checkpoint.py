"""Checkpoints: whole or found out, the newest good one is used, the last few are kept."""

import hashlib
import json
import pickle
import struct
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from stands import STRATEGIES, Task, after, begin, same_bits

from tinkering.errors import CheckpointError, RunFolderError
from tinkering.runs.checkpoint import (
    Checkpoint,
    Checkpoints,
    Progress,
    classes_of,
    decode,
    encode,
)

PROGRESS = Progress(7, 56, 1.25, {"constant fitness": 2})
STATE = {"centre": torch.arange(3.0), "step": 7}
CLASSES = classes_of(Checkpoint(PROGRESS, STATE))
SMALL = encode(Checkpoint(PROGRESS, STATE))


def made(run, generations, keep=3):
    checkpoints = Checkpoints(run, {}, keep)
    for generation in generations:
        checkpoints.save(Progress(generation), {"centre": torch.full((2,), float(generation))})
    return checkpoints


def path_of(run, generation):
    return run / "checkpoints" / f"{generation:08d}.safetensors"


def signed(said, tensors=None):
    """A file of anyone's making whose sum is right."""
    text = json.dumps({"sha256": "0" * 64, **said})
    content = save(tensors or {}, {"tinkering": text})
    return content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode(), 1)


class TestRoundTrip:
    @pytest.mark.parametrize("name", STRATEGIES)
    @pytest.mark.parametrize("generations", [0, 1, 3])
    def test_every_strategy_to_the_last_bit(self, tmp_path, name, generations):
        state = after(STRATEGIES[name], generations).state
        checkpoints = Checkpoints(tmp_path, begin(STRATEGIES[name], Task()))
        checkpoints.save(PROGRESS, state)
        found = checkpoints.newest()
        assert found.progress == PROGRESS
        assert same_bits(found.state, state)
        assert type(found.state) is type(state)

    def test_the_same_checkpoint_gives_the_same_bytes(self):
        state = after(STRATEGIES["AdamW"], 2).state
        again = after(STRATEGIES["AdamW"], 2).state
        assert encode(Checkpoint(PROGRESS, state)) == encode(Checkpoint(PROGRESS, again))

    def test_a_state_without_a_tensor(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, 0)
        checkpoints.save(PROGRESS, 12)
        assert checkpoints.newest().state == 12


class TestDamage:
    def test_every_bit_counts(self, tmp_path):
        path = tmp_path / "file"
        whole = bytearray(SMALL)
        for bit in range(8 * len(whole)):
            whole[bit // 8] ^= 1 << bit % 8
            path.write_bytes(whole)
            with pytest.raises(CheckpointError):
                decode(path, CLASSES)
            whole[bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        assert decode(path, CLASSES).progress == PROGRESS

    def test_every_truncation_is_found_out(self, tmp_path):
        path = tmp_path / "file"
        for length in range(len(SMALL)):
            path.write_bytes(SMALL[:length])
            with pytest.raises(CheckpointError):
                decode(path, CLASSES)

    @given(st.data())
    @settings(max_examples=200)
    def test_whatever_is_changed_is_found_out(self, tmp_path_factory, data):
        content = bytearray(SMALL)
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, len(content)))
            end = start + data.draw(st.integers(0, 20))
            content[start:end] = data.draw(st.binary(max_size=20))
        path = tmp_path_factory.getbasetemp() / "changed"
        path.write_bytes(content)
        if content == SMALL:
            return
        with pytest.raises(CheckpointError):
            decode(path, CLASSES)

    def test_message(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(SMALL[:-1])
        with pytest.raises(CheckpointError) as caught:
            decode(path, CLASSES)
        assert str(caught.value) == (
            f"{path}: expected the SHA-256 that the file names, found another. "
            "The file was damaged, or cut off."
        )
        assert isinstance(caught.value, RunFolderError)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    @pytest.mark.parametrize(
        "said",
        [
            {},
            {"layout": 1},
            {"layout": 1, "checkpoint": None},
            {"layout": 1, "checkpoint": {"class": "Progress", "fields": {}}},
            {"layout": 1, "checkpoint": {"class": "Checkpoint", "fields": []}},
            {"layout": 1, "checkpoint": {"class": "Checkpoint", "fields": {"a": 1}}},
            {"layout": 1, "checkpoint": {"float": 10**400}},
            {"layout": 1, "checkpoint": {"tensor": "none"}},
            {"layout": 1, "checkpoint": {"class": "Popen", "fields": {"args": "true"}}},
            {"layout": "1", "checkpoint": None},
        ],
        ids=str,
    )
    def test_a_whole_file_of_something_else(self, tmp_path, said):
        path = tmp_path / "file"
        path.write_bytes(signed(said))
        with pytest.raises(CheckpointError):
            decode(path, CLASSES)

    def test_brackets_without_end(self, tmp_path):
        path = tmp_path / "file"
        text = '{"sha256": "' + "0" * 64 + '", "layout": ' + "[" * 100_000
        content = save({}, {"tinkering": text})
        sum_of = hashlib.sha256(content).hexdigest().encode()
        path.write_bytes(content.replace(b"0" * 64, sum_of, 1))
        with pytest.raises(CheckpointError):
            decode(path, CLASSES)

    def test_a_later_layout_is_named(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(signed({"layout": 2, "checkpoint": None}))
        with pytest.raises(CheckpointError, match="expected layout 1, found layout 2"):
            decode(path, CLASSES)

    def test_a_class_that_is_not_the_strategys_is_not_made(self, tmp_path):
        """Though the file is whole, and the class is one of this package."""
        state = after(STRATEGIES["genetic algorithm"], 1).state
        Checkpoints(tmp_path, state).save(PROGRESS, state)
        other = Checkpoints(tmp_path, begin(STRATEGIES["Adam"], Task()))
        with pytest.raises(CheckpointError, match="damaged ones only"):
            other.newest()

    @pytest.mark.parametrize("length", [2**63, 2**64 - 1, 99_999_999])
    def test_a_header_that_claims_much_takes_no_memory(self, tmp_path, length):
        path = tmp_path / "file"
        path.write_bytes(struct.pack("<Q", length) + SMALL[8:])
        with pytest.raises(CheckpointError, match="a damaged header"):
            decode(path, CLASSES)


class TestNewest:
    def test_none_where_there_never_was_one(self, tmp_path):
        assert Checkpoints(tmp_path, {}).newest() is None
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
        assert Checkpoints(tmp_path, {}).newest() is None

    @pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda _: b"", lambda c: b"x" + c[1:]])
    def test_an_older_one_where_it_is_damaged_and_the_user_is_told(self, tmp_path, damage):
        checkpoints = made(tmp_path, [1, 2, 3])
        for generation in (2, 3):
            path = path_of(tmp_path, generation)
            path.write_bytes(damage(path.read_bytes()))
        said = []
        found = checkpoints.newest(said.append)
        assert found.progress.generation == 1
        assert found.state["centre"].tolist() == [1, 1]
        assert [text.split(":")[0] for text in said] == [
            str(path_of(tmp_path, 3)),
            str(path_of(tmp_path, 2)),
        ]
        assert all(text.endswith("An older one is tried.") for text in said)

    def test_all_damaged(self, tmp_path):
        checkpoints = made(tmp_path, [1, 2])
        for generation in (1, 2):
            path_of(tmp_path, generation).write_bytes(b"")
        with pytest.raises(CheckpointError) as caught:
            checkpoints.newest()
        assert str(caught.value) == (
            f"{tmp_path}/checkpoints: expected at least one whole checkpoint, found damaged ones "
            "only. The run cannot be resumed; begin it again with the command in config.json."
        )

    def test_a_folder_in_its_place(self, tmp_path):
        checkpoints = made(tmp_path, [1])
        path_of(tmp_path, 2).mkdir()
        said = []
        assert checkpoints.newest(said.append).progress.generation == 1
        assert "Is a directory" in said[0]


class TestKeeping:
    @pytest.mark.parametrize("keep", [1, 2, 5])
    def test_the_last_few(self, tmp_path, keep):
        assert made(tmp_path, range(1, 9), keep).generations() == list(range(9 - keep, 9))

    def test_files_of_others_stay(self, tmp_path):
        made(tmp_path, [1])
        others = ["notes.txt", "best.safetensors", "00000001.safetensors.bak"]
        for name in others:
            (tmp_path / "checkpoints" / name).write_text("mine")
        made(tmp_path, [2], keep=1)
        names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
        assert names == {*others, "00000002.safetensors"}

    @pytest.mark.parametrize("keep", [1, 2, 3])
    def test_damaged_later_ones_do_not_push_out_the_good_one(self, tmp_path, keep):
        made(tmp_path, [10, 20, 30])
        path_of(tmp_path, 30).write_bytes(b"")
        checkpoints = made(tmp_path, [25], keep)
        assert checkpoints.newest(pytest.fail).progress.generation == 25
        assert len(checkpoints.generations()) == min(keep, 3)

    def test_many_generations(self, tmp_path):
        """Names have eight digits, until there are more."""
        assert made(tmp_path, [99_999_999, 100_000_000]).generations() == [99_999_999, 100_000_000]

    def test_tidy_removes_what_a_killed_process_left(self, tmp_path):
        checkpoints = made(tmp_path, [1])
        (tmp_path / "checkpoints" / "00000002.safetensors.part").write_bytes(SMALL[:100])
        assert checkpoints.newest(pytest.fail).progress.generation == 1
        checkpoints.tidy()
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
            "00000001.safetensors"
        ]

    def test_a_write_that_fails_leaves_those_before(self, tmp_path, monkeypatch):
        checkpoints = made(tmp_path, [1, 2, 3])

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            checkpoints.save(Progress(4), {})
        monkeypatch.undo()
        assert checkpoints.generations() == [1, 2, 3]
        assert len(list((tmp_path / "checkpoints").iterdir())) == 3


MEMORY = """
    import resource, sys
    from pathlib import Path
    import torch
    from tinkering.runs.checkpoint import Checkpoints, Progress

    run, megabytes = Path(sys.argv[1]), int(sys.argv[2])
    checkpoints = Checkpoints(run, {})
    if megabytes:
        checkpoints.save(Progress(1), {"centre": torch.zeros(megabytes << 18)})
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = checkpoints.newest()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_reading_takes_less_than_twice_the_file(tmp_path):
    megabytes = 80
    for count in (megabytes, 0):
        words = [sys.executable, "-c", textwrap.dedent(MEMORY), tmp_path, count]
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=True)
    assert int(done.stdout) / 1024 < 2 * megabytes + 20
