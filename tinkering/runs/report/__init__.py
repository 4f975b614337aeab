"""The report: a page and pictures of one run, or a page of several side by side.

It reads run folders and nothing else: no data set, no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

REPORT = "report.html"
COMPARISON = "comparison.html"


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of one run and return the path of the page.

    Args:
        run: the run folder: finished, interrupted, or of a run still going on.
        out: where the page goes. By default it is ``report.html`` in the run folder, with
            its pictures as PNG files beside it; elsewhere the page comes alone.

    Raises:
        RunFolderError: this is no run folder, or nothing can be written there.
        ArgumentError: (a ``ValueError``) `out` is not the name of a page.
    """
    # Imported here: matplotlib and Jinja take a moment, and most commands draw nothing.
    from tinkering.runs.report import one_run

    return one_run.write(run, out)


def write_comparison(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write a page of several runs side by side and return its path.

    Args:
        runs: run folders, each once.
        out: where the page goes; ``comparison.html`` beside the first run folder by default.

    Raises:
        RunFolderError: one is no run folder, or nothing can be written there.
        ArgumentError: (a ``ValueError``) a run folder is named twice, or `out` is not the
            name of a page.
    """
    from tinkering.runs.report import comparison

    return comparison.write(runs, out)
