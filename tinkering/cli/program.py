"""The commands: reads the flags, runs the command, turns mistakes into one paragraph."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from tinkering.cli import streams
from tinkering.cli.data import Data
from tinkering.cli.evaluate import Evaluate
from tinkering.cli.evolve import Evolve
from tinkering.cli.report import Report
from tinkering.cli.resume import changed, saved_flags
from tinkering.cli.room import shortage
from tinkering.errors import DataError, RunBusyError, RunFolderError, TinkeringError

_Evolve = tyro.conf.OmitArgPrefixes[Evolve]
"""Its groups of flags are for ``--help``, and in no flag's name."""
Command = (
    Annotated[_Evolve, tyro.conf.subcommand("evolve")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Data, tyro.conf.subcommand("data")]
)
_EXIT_CODES = {DataError: 3, RunBusyError: 5, RunFolderError: 4, OSError: 4, TinkeringError: 2}
"""By what was met; the first that fits counts."""


def run(args: Sequence[str]) -> int:
    """Run a command and return its exit code: see `tinkering.cli.main.main`."""
    streams.print_whatever_comes()
    words = list(args)
    command: Evolve | Evaluate | Report | Data = tyro.cli(
        Command,
        prog="tinkering",
        description="Evaluate and evolve populations of neural networks.",
        args=words or ["--help"],
    )
    try:
        if isinstance(command, Evolve) and command.output.resume is not None:
            command = _resumed(command.output.resume, command, words[1:])
        return command.run(Console(markup=False, highlight=False))
    except (TinkeringError, OSError) as error:
        return _refuse(error, words)
    except (MemoryError, RuntimeError) as error:
        short = shortage(error)
        if short is None:
            raise
        return _refuse(short, words)


def _refuse(error: TinkeringError | OSError, words: Sequence[str]) -> int:
    """Say what was met, and return the exit code."""
    if "--debug" in words:
        traceback.print_exc()
    # Never wrapped or marked up: a path has to survive copying.
    Console(stderr=True).print(
        f"tinkering: {error}", style="red", markup=False, highlight=False, soft_wrap=True
    )
    return next(code for kind, code in _EXIT_CODES.items() if isinstance(error, kind))


def _resumed(folder: Path, given: Evolve, words: list[str]) -> Evolve:
    """Return a run's own flags with what the user asked for besides."""
    saved = saved_flags(folder, given)
    # Read again with the run's flags in the place of defaults: what differs then was asked for.
    return changed(saved, tyro.cli(_Evolve, prog="tinkering evolve", args=words, default=saved))
