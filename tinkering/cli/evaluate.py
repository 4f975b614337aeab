"""``tinkering evaluate RUN``."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from rich.console import Console

from tinkering import data
from tinkering.cli import network, resume
from tinkering.cli.flag import documented
from tinkering.cli.settings import made_with
from tinkering.errors import ArgumentError
from tinkering.runs import folder
from tinkering.tasks.classification import measure_split


@documented
@dataclass(frozen=True)
class Evaluate:
    """Measure the network of a run on held-out images."""

    path: tyro.conf.Positional[Path]
    """The run folder."""
    data: str | None = None
    """Data set to measure on: a name from `tinkering data list`, or idx:FOLDER. That of the
    run by default; its pixels are normalised as the run's were."""

    def run(self, console: Console) -> int:
        """Print accuracy and loss."""
        model, settings = network.load(self.path)
        config = self.path / folder.CONFIG
        for note in resume.notes(config, settings, made_with()):
            console.print(f"note: {note}", soft_wrap=True)
        name = self.data or settings["data"]
        with nullcontext() if self.data else resume.values_of(self.path):
            dataset = data.load(name)
        classes = settings["network"]["classes"]
        if len(dataset.classes) > classes:
            raise ArgumentError(
                "data",
                f"a data set of at most {classes} classes, as the network has",
                f"{name} with {len(dataset.classes)}",
            )
        # The network knows pixels as its own training images were normalised.
        pixels = settings["pixels"]
        split = replace(dataset.test, mean=pixels["mean"], std=pixels["std"])
        params, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        accuracy, loss = measure_split(model, params, buffers, split)
        console.print(
            f"{name}: test accuracy {100 * accuracy:.2f} %, test loss {loss:.4f} "
            f"({len(split):,} images)",
            soft_wrap=True,
        )
        return 0
