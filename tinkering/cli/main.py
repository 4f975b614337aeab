"""``tinkering COMMAND``: reads the flags, runs the command, turns mistakes into one paragraph."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from tinkering.cli.bench import Bench
from tinkering.cli.data import Data
from tinkering.cli.evaluate import Evaluate
from tinkering.cli.evolve import Evolve
from tinkering.cli.report import Report
from tinkering.cli.resume import require_same, saved_flags, with_limits
from tinkering.errors import DataError, RunBusyError, RunFolderError, TinkeringError

Command = (
    Annotated[Evolve, tyro.conf.subcommand("evolve")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: done. 2: something was asked for that cannot be done, and the message says what. 3: a data
    file cannot be used. 4: a run folder, or a file in it. 5: another process works on the run.
    130: ended by Ctrl-C. 143: by SIGTERM.

    Args:
        args: the words after ``tinkering``; those of the process by default.
    """
    words = list(sys.argv[1:] if args is None else args)
    command: Evolve | Evaluate | Report | Data | Bench = tyro.cli(
        Command,
        prog="tinkering",
        description="Evaluate and evolve populations of neural networks.",
        args=words or ["--help"],
    )
    try:
        if isinstance(command, Evolve) and command.resume is not None:
            command = _resumed(command.resume, command, words[1:])
        return command.run(Console(markup=False, highlight=False))
    except (TinkeringError, OSError) as error:
        if "--debug" in words:
            traceback.print_exc()
        # Never wrapped or marked up: a path has to survive copying.
        Console(stderr=True).print(
            f"tinkering: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        return next(code for kind, code in _EXIT_CODES.items() if isinstance(error, kind))
    except KeyboardInterrupt:
        return 130


_EXIT_CODES = {DataError: 3, RunBusyError: 5, RunFolderError: 4, OSError: 4, TinkeringError: 2}
"""By what was met; the first that fits counts."""


def _resumed(run: Path, given: Evolve, words: list[str]) -> Evolve:
    """Return a run's own flags with what the user asked for besides."""
    saved = saved_flags(run, given)
    # Read again with the run's flags in the place of defaults: what differs then was asked for.
    given = tyro.cli(Evolve, prog="tinkering evolve", args=words, default=saved)
    require_same(saved, given)
    command: Evolve = with_limits(saved, given)
    return command


if __name__ == "__main__":
    sys.exit(main())
