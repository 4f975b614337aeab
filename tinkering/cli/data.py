"""``tinkering data list | get | show``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from tinkering import data
from tinkering.cli.flag import documented
from tinkering.data.progress import DownloadBar


@dataclass(frozen=True)
class List:
    """List the data sets: name, classes, images, and where each lies."""

    def run(self, console: Console) -> int:
        """Print a line for each, in columns; a path is copied, so it is never cut."""
        line = "{:<16} {:>7} {:>9} {:>9}  {}".format
        lines = [line("name", "classes", "train", "test", "where")]
        for row in data.listing():
            where = str(row.place) if row.place else "not downloaded"
            lines.append(line(row.name, row.classes, f"{row.train:,}", f"{row.test:,}", where))
        console.print("\n".join(lines), soft_wrap=True, highlight=False)
        console.print(
            "tinkering data get NAME downloads one; idx:FOLDER is any folder of IDX files.",
            soft_wrap=True,
        )
        return 0


@documented
@dataclass(frozen=True)
class Get:
    """Download a data set, verify its checksum, and say where it lies."""

    name: tyro.conf.Positional[str]
    """A name from `tinkering data list`. All six EMNIST sets come in one archive of 536 MiB."""

    def run(self, console: Console) -> int:
        """Download with a progress bar, and print the path."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        hidden = not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=hidden) as display:
            path = data.get(self.name, DownloadBar(display, self.name))
        console.print(str(path), soft_wrap=True)
        return 0


@documented
@dataclass(frozen=True)
class Show:
    """Draw a grid of labelled images as a PNG, sorted by class."""

    name: tyro.conf.Positional[str] = data.DEFAULT
    """A name from `tinkering data list`, or idx:FOLDER."""
    out: Path = Path("digits.png")
    """Where the picture goes."""
    half: str = "train"
    """Which images: train or test."""
    count: int = 100
    """How many images, ten a row; each class gets its share."""
    seed: int = 0
    """Decides which images."""

    def run(self, console: Console) -> int:
        """Write the picture, and print its path."""
        dataset = data.load(self.name)
        path = data.save_grid(dataset, self.out, half=self.half, count=self.count, seed=self.seed)
        console.print(str(path), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class Data:
    """List, download and look at data sets."""

    command: tyro.conf.OmitSubcommandPrefixes[
        Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Get, tyro.conf.subcommand("get")]
        | Annotated[Show, tyro.conf.subcommand("show")]
    ]

    def run(self, console: Console) -> int:
        """Run the command."""
        return self.command.run(console)
