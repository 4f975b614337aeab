"""A run goes on with what it learned of its layers, and refuses what cannot be that."""

import shutil
from dataclasses import replace

import pytest
import torch

from tests.cli.commands import contents, refused
from tinkering.runs.checkpoint import Checkpoint, Progress, decode, encode
from tinkering.runs.plain import classes_of
from tinkering.strategies.evolution_strategy import EvolutionStrategy
from tinkering.strategies.feedback import Feedback

pytestmark = pytest.mark.usefixtures("same_threads")


@pytest.fixture
def edited(run, tmp_path):
    """A run of three generations, whose newest checkpoint has what was learned changed."""
    copy = tmp_path / "copy"
    shutil.copytree(run[0], copy)
    state = EvolutionStrategy(Feedback()).init({"weight": torch.zeros(1)})
    classes = classes_of(Checkpoint(Progress(), state)) | classes_of(state)
    path = copy / "checkpoints" / "00000003.safetensors"

    def edit(change):
        checkpoint = decode(path, classes)
        learned = {name: change(value) for name, value in checkpoint.state.learned.items()}
        state_of_it = replace(checkpoint.state, learned=learned)
        path.write_bytes(encode(replace(checkpoint, state=state_of_it)))
        return copy

    return edit


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda value: value * torch.nan,
            "finite numbers for 'conv1.weight:result', found others.",
        ),
        (lambda value: value[:-1].clone(), "found float32 of [3, 128]."),
        (lambda value: value.double(), "found float64 of [4, 128]."),
    ],
)
def test_of_another_network_or_no_numbers(edited, change, said, capsys):
    copy = edited(change)
    before = contents(copy)
    words = ["evolve", "--resume", copy, "--generations", "4", "--no-report"]
    message = refused(words, capsys, code=4)
    newest = copy / "checkpoints" / "00000003.safetensors"
    assert message.startswith(f"{newest}: expected as learned ")
    assert f"{said} The file and config.json do not belong together." in message
    assert contents(copy) == before
