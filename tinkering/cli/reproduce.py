"""The command that repeats a run, from its settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

_ONLY_ITS_OWN = (
    "out",
    "tensorboard",
    "report",
    "memory",
    "workers",
    "ray_address",
    "threads_per_worker",
    "gpus_per_worker",
    "worker_timeout",
)
"""Flags that say where a run writes and who evaluates, and change nothing about what."""


def command(flags: Mapping[str, Any]) -> str:
    """Return ``tinkering evolve`` with every flag spelt out, so that defaults may change.

    Args:
        flags: the fields of `Evolve` and what each came to; None is a flag not given.

    Example:
        >>> flags = {"data": "idx:my digits", "blocks": (1, 1), "threads": None, "out": "runs/a"}
        >>> command({**flags, "antithetic": True})
        "tinkering evolve --data 'idx:my digits' --blocks 1 1 --antithetic"
    """
    words = ["tinkering", "evolve"]
    for name, value in flags.items():
        if value is None or value is False or name in _ONLY_ITS_OWN:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is True:
            continue
        words += [str(part) for part in (value if isinstance(value, list | tuple) else [value])]
    return shlex.join(words)
