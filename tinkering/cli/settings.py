"""The settings of a run, as ``config.json`` holds them: the flags, and what they came to."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import tinkering
from tinkering.cli import reproduce
from tinkering.cli.flag import facts
from tinkering.cli.flags import Flags
from tinkering.data import Dataset
from tinkering.errors import ArgumentError
from tinkering.evaluation.entry import fastest_dtype
from tinkering.runs.report.settings import NOT_COMPARED

DEFAULT_SECONDS = 120.0
GROW_EVERY = 80


def with_validation(dataset: Dataset, count: int) -> Dataset:
    """Return the data with some training images in the place of the test images.

    Raises:
        ArgumentError: (a ``ValueError``) there are not as many.
    """
    if not count:
        return dataset
    most = len(dataset.train) - 1
    if not 0 < count <= most:
        raise ArgumentError("validation", f"an integer from 0 to {most}", count)
    train = dataset.subset(train=len(dataset.train)).train  # shuffled
    halves = [
        replace(train, pixels=train.pixels[part], labels=train.labels[part])
        for part in (slice(count, None), slice(count))
    ]
    return replace(dataset, train=halves[0], test=halves[1])


def resolve(given: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Return the flags with no default left open, so that a later release repeats the run.

    Args:
        given: the flags by name, None where one was not given.
        dataset: what the run learns from.
    """
    strategy, fitness, width = given["strategy"], given["fitness"], given["width"]
    name = f"{dataset.name}-w{width}-s{given['seed']}-{time.strftime('%Y%m%d-%H%M%S')}"
    dtype = str(fastest_dtype()) if given["dtype"] == "auto" else given["dtype"]
    without_limit = given["seconds"] is None and given["generations"] is None
    every = given["grow_every"]
    if given["grow_from"] is not None and every is None:
        every = GROW_EVERY
    found = dict(given)
    # Defaults that divide another flag come last: its own default may be what they divide.
    for dependent in (False, True):
        for flag, known in facts(Flags).items():
            if given[flag] is None and known.depends(strategy) == dependent:
                found[flag] = known.default(strategy, fitness, width, found)
    return {
        **{flag: found[flag] for flag, known in facts(Flags).items() if known.saved},
        "seconds": DEFAULT_SECONDS if without_limit else given["seconds"],
        "grow_every": every,
        "out": str(given["out"] or Path("runs", re.sub(r"[^\w.-]+", "-", name))),
        "dtype": dtype.removeprefix("torch."),
    }


def described(flags: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Return what ``config.json`` holds.

    Args:
        flags: what `resolve` returned.
        dataset: what the run learns from.
    """
    return {
        **flags,
        "command": reproduce.command(flags),
        NOT_COMPARED: [n for n, known in facts(Flags).items() if known.saved and not known.repeats],
        "data_sha256": dataset.sha256(),
        "classes": dataset.classes,
        "network": {
            "blocks": flags["blocks"],
            "width": flags["width"],
            "classes": len(dataset.classes),
        },
        "pixels": {"mean": dataset.mean, "std": dataset.std},
        **made_with(),
    }


def made_with() -> dict[str, dict[str, Any]]:
    """Return what the numbers of a run may depend on, besides its settings."""
    return {
        "versions": {
            "tinkering": tinkering.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "processor": processor(),
    }


def processor() -> dict[str, Any]:
    """Return what numbers may depend on: the kind of processor, and what it can do."""
    return {
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": str(fastest_dtype()) == "torch.bfloat16",
    }
