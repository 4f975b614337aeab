"""Going on with a run: its settings from its folder, and what may be changed about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tinkering.cli import workers
from tinkering.cli.settings import FRESH
from tinkering.errors import ArgumentError, RunFolderError
from tinkering.runs import folder
from tinkering.runs.checkpoint import Progress
from tinkering.runs.evolve import Limits

Flags = Any
"""An instance of `tinkering.cli.evolve.Evolve`, which imports this module."""
MAY_CHANGE = (
    "seconds",
    "generations",
    "measure_every",
    "checkpoint_every",
    "keep_checkpoints",
    "if_disk_full",
    "tensorboard",
    "report",
    *workers.FLAGS,
    *FRESH,
)
"""Flags that change nothing about what a run computes."""


def saved_flags(run: Path, like: Flags) -> Flags:
    """Return the flags that a run was begun with.

    Args:
        run: the run folder.
        like: any flags.

    Raises:
        RunFolderError: the folder's ``config.json`` is missing or is none.
    """
    settings = folder.read_json(run / folder.CONFIG)
    names = [field.name for field in fields(like) if field.name not in FRESH]
    missing = [name for name in names if name not in settings]
    if missing:
        found = f"none for {', '.join(missing)}"
        advice = "The run was begun by another release; begin it again."
        raise RunFolderError(run / folder.CONFIG, "the settings of a run", found, advice)
    saved = {name: settings[name] for name in names}
    hints = get_type_hints(type(like))
    for name, value in saved.items():
        if not _fits(value, hints[name]):
            raise RunFolderError(run / folder.CONFIG, f"a usable {name}", repr(value)[:60])
    # As JSON has them they are a list and a text. The folder may have been moved.
    saved |= {"blocks": tuple(saved["blocks"]), "out": run}
    return replace(like, **saved, resume=run, debug=False)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value from JSON is what a flag of this type holds."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return any(value == part for part in parts)
    if kind in (UnionType, Union):  # the latter where a Literal is a part
        return any(_fits(value, part) for part in parts)
    if kind is tuple:
        return isinstance(value, list) and [type(part) for part in value] == list(parts)
    as_json = {Path: (str,), float: (float, int), NoneType: (NoneType,)}
    return type(value) in as_json.get(hint, (hint,))


def require_same(saved: Flags, given: Flags) -> None:
    """Refuse flags that would make a resumed run another run.

    Args:
        saved: the flags of the run.
        given: those, but for what the user asked for.

    Raises:
        ArgumentError: (a ``ValueError``) one is different.
    """
    for field in fields(given):
        before, now = getattr(saved, field.name), getattr(given, field.name)
        if before != now and field.name not in MAY_CHANGE:
            raise ArgumentError(
                field.name,
                f"{before}, as the run was begun",
                now,
                "A run that is resumed goes on as it was; only limits may change.",
            )


def with_limits(saved: Flags, given: Flags) -> Flags:
    """Return the flags with the limits that count: the given ones, where any was given."""
    if given.seconds == saved.seconds and given.generations == saved.generations:
        return given
    return replace(
        given,
        seconds=None if given.seconds == saved.seconds else given.seconds,
        generations=None if given.generations == saved.generations else given.generations,
    )


def require_something_left(limits: Limits, progress: Progress) -> None:
    """Refuse to resume a run that is where its limits end it.

    Raises:
        ArgumentError: (a ``ValueError``) it is.
    """
    for name, limit, done in (
        ("generations", limits.generations, progress.generation),
        ("seconds", limits.seconds, progress.seconds),
    ):
        if limit is not None and done >= limit:
            raise ArgumentError(
                name,
                f"more than the {done:,.0f} that the run has behind it",
                f"{limit:,.0f}",
                f"Say how far it shall go on, such as --{name} {2 * done:.0f}.",
            )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what of versions and processor is not what the run was begun with, in words.

    Args:
        before: the settings in the run folder.
        now: those that the run would have if it were begun now.
    """
    found = []
    for group in ("versions", "processor"):
        for name, value in now[group].items():
            was = before.get(group, {}).get(name)
            if was != value:
                found.append(f"{name} was {was} and is {value}")
    return found


def require_same_data(before: Mapping[str, Any], sha256: str) -> None:
    """Refuse images that are not those which the run was begun with.

    Raises:
        ArgumentError: (a ``ValueError``) they are others.
    """
    if before.get("data_sha256") != sha256:
        raise ArgumentError(
            "data",
            f"the images that the run was begun with (SHA-256 {before.get('data_sha256')})",
            f"others ({sha256})",
        )
