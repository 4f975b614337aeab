"""The command that repeats a run, from its settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from tinkering.cli.flag import facts
from tinkering.cli.flags import Flags


def command(flags: Mapping[str, Any]) -> str:
    """Return ``tinkering evolve`` with every flag spelt out, so that defaults may change.

    Without those that say where a run writes and who evaluates, and nothing about what.

    Args:
        flags: of `Flags`, and what each came to; None is a flag not given.

    Example:
        >>> flags = {"data": "idx:my digits", "blocks": (1, 1), "threads": None, "out": "runs/a"}
        >>> command({**flags, "antithetic": True})
        "tinkering evolve --data 'idx:my digits' --blocks 1 1 --antithetic"
    """
    known = facts(Flags)
    words = ["tinkering", "evolve"]
    for name, value in flags.items():
        if value is None or value is False or not known[name].repeats:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is True:
            continue
        words += [str(part) for part in (value if isinstance(value, list | tuple) else [value])]
    return shlex.join(words)
