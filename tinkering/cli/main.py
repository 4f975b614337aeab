"""``tinkering COMMAND``: reads the flags, runs the command, turns mistakes into one paragraph."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console

from tinkering.cli.bench import Bench
from tinkering.cli.data import Data
from tinkering.cli.evaluate import Evaluate
from tinkering.cli.evolve import Evolve
from tinkering.cli.report import Report
from tinkering.errors import TinkeringError

Command = (
    Annotated[Evolve, tyro.conf.subcommand("evolve")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: done. 2: something was asked for that cannot be done, and the message says what.
    130: ended by Ctrl-C.

    Args:
        args: the words after ``tinkering``; those of the process by default.
    """
    words = sys.argv[1:] if args is None else args
    command: Evolve | Evaluate | Report | Data | Bench = tyro.cli(
        Command,
        prog="tinkering",
        description="Evaluate and evolve populations of neural networks.",
        args=words or ["--help"],
    )
    try:
        return command.run(Console(markup=False, highlight=False))
    except TinkeringError as error:
        # Never wrapped or marked up: a path has to survive copying.
        Console(stderr=True).print(
            f"tinkering: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
