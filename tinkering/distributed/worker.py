"""What runs in a worker process: a task of its own, asked for parts."""

from __future__ import annotations

import os
import pickle
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tinkering.distributed.cluster import import_ray
from tinkering.distributed.division import Divisible, Task, divisible


@dataclass(frozen=True)
class Identity:
    """Who a worker is, and what its numbers may depend on."""

    process: int
    host: str
    torch: str
    processor: str

    @classmethod
    def of_this_process(cls) -> Identity:
        """Return this process's."""
        capability = torch.backends.cpu.get_cpu_capability()
        return cls(os.getpid(), platform.node(), torch.__version__, capability)

    def differs_from(self, other: Identity) -> str:
        """Return what may change the last bits of its numbers, in words; nothing if nothing.

        Example:
            >>> here = Identity(1, "a", "2.13.0", "AVX512")
            >>> Identity(7, "b", "2.13.0", "AVX2").differs_from(here)
            'on b: processor AVX2 where the driver has AVX512'
            >>> Identity(8, "b", "2.13.0", "AVX512").differs_from(here)
            ''
        """
        found = [
            f"{name} {mine} where the driver has {theirs}"
            for name in ("torch", "processor")
            if (mine := getattr(self, name)) != (theirs := getattr(other, name))
        ]
        return f"on {self.host}: {', '.join(found)}" if found else ""


class Worker:
    """Evaluates parts of populations.

    Args:
        make_task: returns the task.
        threads: of PyTorch.
    """

    def __init__(self, make_task: Callable[[], Task], threads: int) -> None:
        torch.set_num_threads(threads)
        self._make_task = make_task
        self._task: Divisible | None = None
        self._address: Any = None
        self._population: Any = None

    def begin(self) -> Identity:
        """Make the task. What this raises reaches the driver as it is."""
        self._task = divisible(self._make_task())
        return Identity.of_this_process()

    def evaluate(self, address: list[Any], generation: int, part: slice) -> bytes:
        """Return the result of a part, as cloudpickle writes it.

        Args:
            address: a list with the reference of the population. In a list it is not fetched
                anew for every part.
            generation: of the population.
            part: which part of it.
        """
        if self._task is None:
            raise RuntimeError("begin() was not called")
        if address != self._address:
            self._population = None  # not two at a time
            self._population = pickle.loads(import_ray().get(address[0]))
            self._address = address
        result = self._task.part(self._population, generation, part)
        message: bytes = import_ray().cloudpickle.dumps(result)
        return message
