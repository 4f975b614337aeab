"""The commands called from a test, the data they are given, and what they leave on disk."""

import contextlib
import io
import json
import struct

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tinkering.cli import main
from tinkering.models import BasicBlock, SimpleResNet

FILES = [
    "checkpoints",
    "config.json",
    "confusion.png",
    "curves-forward-passes.png",
    "curves-generations.png",
    "curves-time.png",
    "curves.png",
    "filters.png",
    "lock",
    "metrics.jsonl",
    "mistakes.png",
    "model.safetensors",
    "predictions.safetensors",
    "report.html",
    "summary.json",
    "throughput.png",
]
WITHOUT_REPORT = [name for name in FILES if not name.endswith((".png", ".html"))]
TINY = ["--width", "2", "--population", "8", "--generations", "3", "--threads", "1", "--no-report"]


def write_digits(folder, classes=3, train=40, test=30, seed=0, brightness=100):
    """A folder in MNIST's naming: a bright row for each class, in noise."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for half, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % classes).astype(np.uint8)
        images = rng.integers(0, brightness, (count, 8, 8), dtype=np.uint8)
        images[np.arange(count), 2 * labels] += 100
        header = struct.pack(">4I", 2051, count, 8, 8)
        (folder / f"{half}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">2I", 2049, count)
        (folder / f"{half}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return f"idx:{folder}"


def quiet(words):
    """Exit code and standard output of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main([str(word) for word in words])
    return code, out.getvalue()


def plain_module(run):
    """The saved network as a user would load it: nothing of ours but the architecture."""
    settings = json.loads((run / "config.json").read_text())["network"]
    model = SimpleResNet(
        BasicBlock, settings["blocks"], settings["classes"], width=settings["width"]
    )
    model.load_state_dict(load_file(run / "model.safetensors"), strict=True)
    return model.eval()


@torch.no_grad()
def measured(model, pixels, labels, mean, std):
    logits = model(((pixels / 255 - mean) / std).float().unsqueeze(1))
    loss = F.cross_entropy(logits.double(), labels).item()
    return (logits.argmax(1) == labels).double().mean().item(), loss


def contents(folder):
    """The files of a folder, and of folders in it, with what they hold."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def refused(words, capsys, code=2):
    """The one paragraph on standard error of a command that ends with this exit code."""
    assert main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("tinkering: ")
    assert captured.err.count("\n") == 1
    assert captured.err[-2:] in (".\n", "?\n")
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert "\x1b" not in captured.err
    return captured.err[len("tinkering: ") : -1]
