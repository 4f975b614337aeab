"""How a run ends: the network and its report on disk, and what is printed."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor, nn

from tinkering.cli import network
from tinkering.data import Dataset, Split
from tinkering.runs import folder, report
from tinkering.runs.evolve import Outcome
from tinkering.runs.predictions import (
    PREDICTIONS,
    Predictions,
    gravest_mistakes,
    save_predictions,
)
from tinkering.tasks.classification import predict_split

_ENDINGS = {
    "seconds": "Ended by --seconds",
    "generations": "Ended by --generations",
    "interrupted": "Ended by Ctrl-C",
    "terminated": "Ended by SIGTERM",
}
_ALSO_IN_THE_SUMMARY = ("plan", "dtype", "threads", "versions", "processor")
_EXIT_CODES = {"interrupted": 130, "terminated": 143}


def conclude(
    console: Console,
    out: Path,
    outcome: Outcome[Any],
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    dataset: Dataset,
    settings: Mapping[str, Any],
) -> int:
    """Write what a run came to, draw the report if asked to, and return the exit code."""
    names = dict(model.named_parameters())
    params = {name: value for name, value in tensors.items() if name in names}
    buffers = {name: value for name, value in tensors.items() if name not in names}
    folder.save_model(out / folder.MODEL, tensors)
    folder.write_json(
        out / folder.SUMMARY,
        {
            **outcome.measured,
            "evaluations": outcome.evaluations,
            "seconds": outcome.seconds,
            "generations": outcome.generations,
            "outcome": outcome.reason,
            "width": network.width_of(params),
            "troubles": dict(outcome.troubles),
            "centre_sha256": sha256(params),
            **{name: settings[name] for name in _ALSO_IN_THE_SUMMARY},
        },
    )
    said = predict_split(model, params, buffers, dataset.test)
    save_predictions(out / PREDICTIONS, _kept(dataset.test, *said))
    drawn = f"report: {report.write_report(out)}\n" if settings["report"] else ""
    cut_short = outcome.reason in _EXIT_CODES
    console.print(
        f"{_ENDINGS[outcome.reason]} after {outcome.generations:,} generations, "
        f"{outcome.evaluations:,} forward passes, {outcome.seconds:.0f} s: "
        f"test accuracy {100 * outcome.measured['test_accuracy']:.2f} %, "
        f"test loss {outcome.measured['test_loss']:.4f}\n"
        f"run folder: {out}\n"
        + drawn
        + (hint(out) if cut_short else f"next: {_command()} evaluate {_word(out)}"),
        soft_wrap=True,
    )
    return _EXIT_CODES.get(outcome.reason, 0)


def hint(out: Path) -> str:
    """Return what to type to go on with a run."""
    return f"to resume: {_command()} evolve --resume {_word(out)}"


def sha256(params: Mapping[str, Tensor]) -> str:
    """Return what identifies a parameter set: the SHA-256 of names and numbers, in hex.

    Example:
        >>> sha256({"bias": Tensor([0.0, 1.0])})[:8]
        'fb365d69'
    """
    digest = hashlib.sha256()
    for name in sorted(params):
        digest.update(name.encode())
        digest.update(params[name].detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _word(path: Path) -> str:
    return shlex.quote(str(path))


def _kept(test: Split, classes: Tensor, confidence: Tensor) -> Predictions:
    """Return what the report needs of the predictions."""
    labels, predicted = test.labels.numpy(), classes.numpy()
    mistakes = gravest_mistakes(labels, predicted, confidence.numpy())
    return Predictions(
        labels=labels.astype("int32"),
        predicted=predicted.astype("int32"),
        confidence=confidence.numpy(),
        mistakes=mistakes,
        images=test.pixels.numpy()[mistakes],
    )


def _command() -> str:
    """Return what to type for this program: its path, where its name alone would not do."""
    if shutil.which("tinkering"):
        return "tinkering"
    return os.path.relpath(Path(sys.executable).with_name("tinkering"))
