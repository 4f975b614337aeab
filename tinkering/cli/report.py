"""``tinkering report RUN [RUN ...]``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from tinkering.cli.flag import documented
from tinkering.errors import ArgumentError
from tinkering.runs import report


@documented
@dataclass(frozen=True)
class Report:
    """Draw a run as one HTML page and as PNG pictures, or several runs side by side."""

    runs: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="")]
    ]
    """The run folders. Of one, the page is RUN/report.html, with its pictures beside it; of
    several, it is comparison.html beside the first of them, with all curves on each other."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.html")] = None
    """Another place for the page, in a folder that exists. Nothing else is written then."""

    def run(self, console: Console) -> int:
        """Write the page, and print its path."""
        if not self.runs:
            raise ArgumentError("runs", "at least one run folder", "none")
        if len(self.runs) == 1:
            path = report.write_report(self.runs[0], self.out)
        else:
            path = report.write_comparison(self.runs, self.out)
        console.print(str(path), soft_wrap=True)
        return 0
