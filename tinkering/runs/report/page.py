"""From figures and pictures to one page that needs nothing else."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from tinkering.errors import ArgumentError, RunFolderError
from tinkering.runs.report import wording
from tinkering.runs.report.wording import shown


@dataclass(frozen=True)
class Picture:
    """A picture on the page.

    Args:
        name: what its file is called.
        png: the file.
        alt: what it shows, for those who do not see it.
        caption: what to know when looking at it.
    """

    name: str
    png: bytes
    alt: str
    caption: str = ""

    @property
    def uri(self) -> str:
        """The picture itself, as an address."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return a page: a template of this package, with every text in it escaped.

    What is no character in a text, such as a byte of a path that is no UTF-8, is escaped too.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tinkering.runs.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (wording.count, wording.percent, wording.plain, wording.duration, wording.setting)
    environment.filters.update({word.__name__: word for word in words})
    return shown(environment.get_template(template).render(values))


def check_name(out: Path) -> None:
    """Refuse a place that is not the name of a page.

    Raises:
        ArgumentError: (a ``ValueError``) it does not end as a page does. So no file of a run
            is overwritten by mistake.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise ArgumentError("out", "a file name that ends in .html", out)


def write_file(path: Path, content: bytes) -> None:
    """Write a file; it is complete or as it was before.

    Raises:
        RunFolderError: nothing can be written there.
    """
    beside = path.with_name(path.name + ".part")
    try:
        beside.unlink(missing_ok=True)  # it may be a pipe, or a link to somewhere else
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise RunFolderError(
            path,
            "a place that can be written",
            error.strerror or str(error),
            "Choose another with --out FILE.html; its folder has to exist.",
        ) from error
