"""The workers of a run: what they are made from, and what a run says of them."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinkering import data
from tinkering.cli import growing, settings
from tinkering.data.folder import PREFIX
from tinkering.distributed.evaluator import RayEvaluator
from tinkering.errors import ArgumentError


@dataclass(frozen=True)
class MakeTask:
    """Makes a run's task in another process: data come by name and checksum.

    Args:
        flags: of the run, with no default left open.
        shape: of the network.
        sha256: of the data.
    """

    flags: Mapping[str, Any]
    shape: Mapping[str, Any]
    sha256: str

    def __call__(self) -> Any:
        """Return the task.

        Raises:
            DataError: the data are not there.
            ArgumentError: (a ``ValueError``) they are others.
        """
        dataset = data.load(self.flags["data"])
        dataset = settings.with_validation(dataset, self.flags["validation"])
        found = dataset.sha256()
        if found != self.sha256:
            needed = f"the images that the run was begun with (SHA-256 {self.sha256})"
            raise ArgumentError("data", needed, f"others on {platform.node()} ({found})")
        return growing.task(self.flags, self.shape, dataset)


def are_asked_for(flags: Mapping[str, Any]) -> bool:
    """Return whether workers are to evaluate, and not this process.

    Raises:
        ArgumentError: (a ``ValueError``) something is said of workers, and there are none.
    """
    if flags["workers"] is not None or flags["ray_address"] is not None:
        return True
    for name in ("gpus_per_worker", "threads_per_worker"):
        if flags[name]:
            raise ArgumentError(name, "workers to give it to", flags[name], "Say --workers N.")
    return False


def evaluator(
    flags: Mapping[str, Any],
    shape: Mapping[str, Any],
    sha256: str,
    task: Any,
    say: Callable[[str], None],
) -> RayEvaluator:
    """Return the evaluator of a run with workers.

    Args:
        flags: of the run.
        shape: of its network.
        sha256: of its data.
        task: of this process.
        say: tells the user something.
    """
    name, threads = flags["data"], flags["threads_per_worker"]
    if name.startswith(PREFIX):  # workers may stand elsewhere
        name = f"{PREFIX}{Path(name.removeprefix(PREFIX)).expanduser().absolute()}"
    return RayEvaluator(
        MakeTask({**flags, "data": name, "memory": _memory(flags)}, shape, sha256),
        flags["workers"],
        _share(flags) if threads is None else threads,
        gpus_per_worker=flags["gpus_per_worker"],
        address=flags["ray_address"],
        timeout=flags["worker_timeout"],
        say=say,
        here=task,
    )


def _memory(flags: Mapping[str, Any]) -> int:
    """Return the bytes of a worker: workers on this machine share what the run may take."""
    here = flags["ray_address"] is None
    return int(flags["memory"] // max(1, flags["workers"]) if here else flags["memory"])


def _share(flags: Mapping[str, Any]) -> int:
    """Return each worker's threads: its share of this machine's, or one of another's."""
    here = flags["ray_address"] is None
    return max(1, flags["threads"] // max(1, flags["workers"])) if here else 1


def summary(exchange: Mapping[str, int], lost: int) -> str:
    """Return what workers took, for the end of a run.

    Args:
        exchange: of the last generation, see `tinkering.distributed.evaluator.Exchange`.
        lost: workers that were lost in the run.
    """
    return (
        f"{exchange['workers']:,} workers, {lost:,} lost; a generation sends "
        f"{exchange['bytes_sent'] / 1000:,.1f} kB to each node and brings "
        f"{exchange['bytes_received'] / 1000:,.1f} kB back"
    )
