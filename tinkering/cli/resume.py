"""Going on with a run: its settings from its folder, and what may be changed about them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from torch import Tensor

from tinkering.cli import checks, network
from tinkering.cli.flag import facts, types, values, with_values
from tinkering.cli.flags import Flags
from tinkering.errors import ArgumentError, CheckpointError, RunFolderError
from tinkering.runs import folder
from tinkering.runs.checkpoint import Progress
from tinkering.runs.evolve import Limits

Command = TypeVar("Command", bound=Flags)
_FACTS = facts(Flags)
_MAY_CHANGE = frozenset(name for name, known in _FACTS.items() if known.may_change)
_GROWS = ("learned",)
"""Tensors of a state that there are none of at the start; the engine knows their shapes."""


def saved_flags(run: Path, like: Command) -> Command:
    """Return the flags that a run was begun with.

    Args:
        run: the run folder.
        like: any flags, whose class is that of those returned.

    Raises:
        RunFolderError: the folder's ``config.json`` is missing or is none.
    """
    settings = folder.read_json(run / folder.CONFIG)
    names = [name for name, known in _FACTS.items() if known.saved]
    missing = [name for name in names if name not in settings]
    if missing:
        found = f"none for {', '.join(missing)}"
        advice = "The run was begun by another release; begin it again."
        raise RunFolderError(run / folder.CONFIG, "the settings of a run", found, advice)
    saved = {name: settings[name] for name in names}
    for name, hint in types(Flags).items():
        if name not in saved:
            continue
        value = saved[name]
        # A run's settings leave no default open.
        left_open = value is None and _FACTS[name].is_open(str(saved["strategy"]))
        if not _fits(value, hint) or left_open:
            raise RunFolderError(run / folder.CONFIG, f"a usable {name}", repr(value)[:60])
        if type(value) is int and hint is not int and _fits(0.5, hint):
            saved[name] = _as_float(run, name, value)
    # As JSON has them they are a list and a text. The folder may have been moved.
    saved |= {"blocks": tuple(saved["blocks"]), "out": run}
    with values_of(run, may_be_given=()):
        checks.require_in_range(saved)
    own: Command = with_values(like, {**saved, "resume": run, "debug": False})
    return own


def _as_float(run: Path, name: str, value: int) -> float:
    """Return what JSON has as an integer and a flag as a float."""
    try:
        return float(value)
    except OverflowError as error:
        found = f"one of {len(str(value))} digits"
        raise RunFolderError(run / folder.CONFIG, f"a usable {name}", found) from error


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


@contextlib.contextmanager
def values_of(run: Path, may_be_given: Collection[str] = _MAY_CHANGE) -> Iterator[None]:
    """Have what is wrong with a flag be said of the file that it is from.

    Args:
        run: the run folder.
        may_be_given: flags that may be the user's own.

    Raises:
        RunFolderError: the body met a flag out of range that cannot be the user's own.
    """
    try:
        yield
    except ArgumentError as error:
        argument, needed, came, advice = error.args
        if argument in may_be_given:
            raise
        raise RunFolderError(
            run / folder.CONFIG, f"for {argument} {needed}", str(came), advice
        ) from error


def changed(saved: Command, given: Command) -> Command:
    """Return the flags of a run that goes on: its own, with what may change and was given anew.

    Args:
        saved: the flags of the run.
        given: those, but for what the user asked for. Where that is a limit, the other limit
            counts no more.

    Raises:
        ArgumentError: (a ``ValueError``) what was given would make it another run.
    """
    before, now = values(saved), values(given)
    different = [name for name in now if now[name] != before[name]]
    for name in different:
        if name not in _MAY_CHANGE:
            checks.require_of_its_strategy(name, now[name], before["strategy"])
            raise ArgumentError(
                name,
                f"{before[name]}, as the run was begun",
                now[name],
                "A run that is resumed goes on as it was; only limits may change.",
            )
    limits = {"seconds", "generations"}
    over = limits.difference(different) if limits.intersection(different) else ()
    own: Command = with_values(given, dict.fromkeys(over))
    return own


def require_not_passed(before: Mapping[str, Any], limits: Limits, progress: Progress) -> None:
    """Refuse a new limit that a run has passed already.

    Args:
        before: the settings in the run folder. Its own limits may have been reached: a run that
            was killed then still has its end to write.
        limits: that are asked for.
        progress: what the run has behind it.

    Raises:
        ArgumentError: (a ``ValueError``) it has passed one that is not its own.
    """
    for name, limit, done in _limits(limits, progress):
        if limit is not None and limit < done and limit != before.get(name):
            raise _passed(name, limit, done)


def what_would_be_left(limits: Limits, progress: Progress) -> str | None:
    """Return what a run that is where its limits end it came to and could go on to, in words.

    None if there is something left to do.
    """
    for name, limit, done in _limits(limits, progress):
        if limit is not None and limit <= done:
            return (
                f"with {progress.generation:,} generations in {_figure(progress.seconds)} s; "
                f"a new limit, such as {_further(name, done)}, takes it further"
            )
    return None


def _limits(
    limits: Limits, progress: Progress
) -> tuple[tuple[str, int | float | None, int | float], ...]:
    """Return each limit by its flag, with what the run has behind it."""
    return (
        ("generations", limits.generations, progress.generation),
        ("seconds", limits.seconds, progress.seconds),
    )


def _passed(name: str, limit: int | float, done: int | float) -> ArgumentError:
    # Rounded up: of a run of half a second, "more than the 0" would be said otherwise.
    return ArgumentError(
        name,
        f"more than the {_figure(done)} that the run has behind it",
        _figure(limit),
        f"Say how far it shall go on, such as {_further(name, done)}.",
    )


def _further(name: str, done: int | float) -> str:
    return f"--{name} {max(1, math.ceil(2 * done))}"


def _figure(number: int | float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,.1f}"


def notes(config: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what of versions and processor is not what the run was begun with, in words.

    Args:
        config: the file that holds the settings of the run.
        before: those settings.
        now: what `tinkering.cli.settings.made_with` returns.

    Raises:
        RunFolderError: the settings hold something else in these places.
    """
    found = []
    for group in ("versions", "processor"):
        held = before.get(group, {})
        if not isinstance(held, Mapping):
            raise RunFolderError(config, f"{group} as a JSON object", repr(held)[:60])
        for name, value in now[group].items():
            was = held.get(name)
            if was != value:
                found.append(
                    f"{name} was {was} and is {value} since the run was begun; it may not end in "
                    "the same bits"
                )
    return found


def require_of_this_network(start: Any, state: Any, path: Path) -> None:
    """Refuse a checkpoint of a network that the settings do not lead to.

    Args:
        start: the strategy's state before the first generation, with parameters of the shapes
            that they have in the generation of the checkpoint.
        state: that of the checkpoint.
        path: of the checkpoint.

    Raises:
        CheckpointError: it names the first parameter that differs.
    """
    if type(state) is not type(start):
        raise CheckpointError(path, type(start).__name__, type(state).__name__)
    expected = f"the parameters that {folder.CONFIG} leads to"
    for field in fields(start):
        needed, came = getattr(start, field.name), getattr(state, field.name)
        if (
            not isinstance(needed, Mapping)
            or not needed
            or not all(isinstance(value, Tensor) for value in needed.values())
        ):
            continue
        if not isinstance(came, Mapping) or not all(
            isinstance(value, Tensor) for value in came.values()
        ):
            raise CheckpointError(path, f"{expected} as {field.name}", type(came).__name__)
        if field.name in _GROWS:
            continue
        difference = network.first_difference(needed, came)
        if difference is not None:
            said = f"{expected}: {difference[0]}"
            raise CheckpointError(path, said, difference[1], network.NOT_TOGETHER)


@contextlib.contextmanager
def state_of(path: Path) -> Iterator[None]:
    """Have what is wrong with what a strategy learned be said of the checkpoint that it is from.

    Args:
        path: of the checkpoint.

    Raises:
        CheckpointError: the body met something learned that is not of this network.
    """
    try:
        yield
    except ArgumentError as error:
        argument, needed, came, _ = error.args
        if argument not in _GROWS:
            raise
        said = f"as {argument} {needed}"
        raise CheckpointError(path, said, str(came), network.NOT_TOGETHER) from error


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
