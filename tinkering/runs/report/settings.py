"""The settings of runs: as rows of a table, what differs between runs, and as a command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from tinkering.runs.report.reading import Run

VERSIONS = "versions"
NOT_COMPARED = "not_compared"
"""Of ``config.json``: names of settings that say where a run writes, who evaluates and with how
much room; what it learns is the same."""
_APART = ("command", "classes", VERSIONS, NOT_COMPARED)
"""What ``config.json`` holds that is not a setting of the run."""


def rows(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by name; one inside another is called by both names.

    What is said twice, once inside another, is returned once.

    Example:
        >>> rows({"width": 8, "network": {"width": 8, "classes": 10}, "command": "..."})
        {'width': 8, 'network.classes': 10}
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name in _APART:
            continue
        if not isinstance(value, Mapping):
            flat[name] = value
            continue
        for inner, what in value.items():
            if inner not in config or config[inner] != what:
                flat[f"{name}.{inner}"] = what
    return flat


def versions(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the versions a run was made with, by what they are of."""
    held = config.get(VERSIONS)
    return dict(held) if isinstance(held, Mapping) else {}


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells one run from another: settings and versions, and not where it wrote."""
    own = config.get(NOT_COMPARED)
    apart = {"plan", *(map(str, own) if isinstance(own, list) else ())}
    named = {name: value for name, value in rows(config).items() if name not in apart}
    return named | {f"versions.{name}": value for name, value in versions(config).items()}


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the settings that are not the same in all, in their order.

    Example:
        >>> differing([{"width": 8, "seed": 0}, {"width": 8, "seed": 1, "rank": 2}])
        ['seed', 'rank']
    """
    tables = [compared(config) for config in configs]
    names = dict.fromkeys(name for table in tables for name in table)
    missing = object()
    return [
        name
        for name in names
        if any(table.get(name, missing) != tables[0].get(name, missing) for table in tables)
    ]


def repeats(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the groups of two or more runs whose settings are the same but for the seed."""
    groups: list[tuple[dict[str, Any], list[Run]]] = []
    for run in runs:
        table = compared(run.config)
        table.pop("seed", None)
        for known, members in groups:
            if known == table:
                members.append(run)
                break
        else:
            groups.append((table, [run]))
    return [members for _, members in groups if len(members) > 1]


def exact_command(command: str, generations: int) -> str:
    """Return a command that ends where a run ended, after so many generations.

    Which generation a time limit falls in depends on the machine and the moment.

    Example:
        >>> exact_command("tinkering evolve --seconds 30.0 --seed 1 --out 'my run'", 512)
        "tinkering evolve --seed 1 --out 'my run' --generations 512"
    """
    kept, words = [], iter(shlex.split(command))
    for word in words:
        if word in ("--seconds", "--generations"):
            next(words, None)
        else:
            kept.append(word)
    return shlex.join([*kept, "--generations", str(generations)])
