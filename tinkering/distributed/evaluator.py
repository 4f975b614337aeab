"""The evaluator that a run is given in the place of a task: it has workers do it.

In a generation a worker fetches the population once, which is its centre and some numbers, and
is told which part of it to evaluate: noise is drawn again from its seed, and examples are the
worker's own. It answers with an evaluation: one scalar per member, and, where activations are
perturbed, one gradient estimate as large as the centre. They are merged in the order of the
members, whoever they came from, so the bits are those of a single process, if each process has
one thread.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from torch import Tensor

from tinkering.distributed.cluster import amount, connect, import_ray
from tinkering.distributed.division import Task, divisible
from tinkering.distributed.pool import Resources, Say, WorkerPool
from tinkering.distributed.round import Round
from tinkering.engines.evaluation import Evaluation, merged
from tinkering.errors import ArgumentError, ClusterError
from tinkering.ranges import require_at_least, require_not_negative

PARTS_A_WORKER = 4
"""Small enough that another worker can take one over, large enough to be worth the way."""
_TICK = 0.05
"""Seconds between looks at who is slow."""
_MOST_LOSSES = 5
"""Workers that may be lost over the same part."""


@dataclass(frozen=True)
class Exchange:
    """What a generation took besides evaluating."""

    workers: int
    """That were there at its end."""
    bytes_sent: int
    """The population, as every node of the cluster fetches it once."""
    bytes_received: int
    """Results of all parts."""
    parts: int
    parts_repeated: int
    """Parts handed out again, because a worker was lost or slow."""
    workers_lost: int


class RayEvaluator:
    """Evaluates populations on Ray's workers; stands where a task stands.

    Args:
        make_task: returns the task; called here and in every worker, so what it refers to
            travels there once. Data are best loaded by it, by name and checksum:
            ``tinkering.data.load(name, sha256=...)``. A task may have parts of its own
            (`tinkering.distributed.division.Divisible`, as `Classification` has); any other is
            handed slices of the population.
        workers: how many processes; by default as many as there are CPUs for.
        threads: of each, and the CPUs that Ray reserves for it.
        gpus_per_worker: GPUs that Ray reserves for each; whether the task uses them is its own
            business.
        address: of a Ray cluster, ``"auto"`` for one that runs on this machine already; None
            to start one here, for as long as this evaluator is open. A process that has started
            one keeps its token, so connect to another cluster from a new process.
        timeout: seconds that one part may take before its worker counts as hung.
        say: tells the user something; by default nobody is told.
        here: the task for what is computed in this process; ``make_task()`` by default.

    Raises:
        ArgumentError: (a ``ValueError``) a number is out of range, or Ray is not installed.
        ClusterError: there is no cluster at this address, or no worker starts.
        Exception: what `make_task` raises, here or in a worker.

    Example:
        >>> from tinkering import Classification, PerturbedPopulation, SimpleResNet, BasicBlock
        >>> from tinkering.data import load
        >>> model = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=2)
        >>> def make_task():
        ...     return Classification(model, load("mnist5k"))
        >>> population = PerturbedPopulation(model, size=64, sigma=0.1)
        >>> with RayEvaluator(make_task, workers=2) as evaluator:  # doctest: +SKIP
        ...     evaluator.evaluate(population, generation=0).fitness.shape
        torch.Size([64])
    """

    def __init__(
        self,
        make_task: Callable[[], Task],
        workers: int | None = None,
        threads: int = 1,
        *,
        gpus_per_worker: float = 0.0,
        address: str | None = None,
        timeout: float = 60.0,
        say: Say | None = None,
        here: Task | None = None,
    ) -> None:
        require_at_least(1, workers=workers, threads=threads)
        require_not_negative(gpus_per_worker=gpus_per_worker)
        if not 0 < timeout < float("inf"):
            raise ArgumentError("timeout", "a finite number of seconds above 0", timeout)
        self._task = divisible(make_task() if here is None else here)
        cpus = (workers or max(1, (os.cpu_count() or 1) // threads)) * threads
        given = Resources(threads, gpus_per_worker, timeout)
        self._exchange: Exchange | None = None
        self._open = True
        self.threads = threads
        with ExitStack() as closing:
            if connect(address, cpus, gpus_per_worker):
                closing.callback(import_ray().shutdown)
            self._ray = import_ray()
            self.workers = workers or _room(threads, gpus_per_worker)
            self._pool = WorkerPool(make_task, self.workers, given, say or _nobody)
            closing.callback(self._pool.close)
            self._pool.wait_for_one()
            self._closing = closing.pop_all()

    def __enter__(self) -> RayEvaluator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and the cluster where it was started here."""
        self._open = False
        self._closing.close()

    def evaluate(self, population: Any, generation: int) -> Evaluation:
        """Return what the task's ``evaluate`` would.

        Raises:
            ClusterError: no worker can be started, a part has cost several, or the evaluator was
                closed.
            Exception: what the task raises.
        """
        if not self._open:
            raise ClusterError("an evaluator that is open", "one that was closed")
        message = self._ray.cloudpickle.dumps(population)
        reference = self._ray.put(message)
        parts = self._task.parts(population, self.workers * PARTS_A_WORKER)
        round_: Round[bytes] = Round(len(parts))
        lost_before = self._pool.lost
        while not round_.complete:
            for seat in self._pool.free():
                part = round_.next_for(seat.number, time.monotonic())
                if part is not None:
                    self._pool.give(seat, (round_, part), [reference], generation, parts[part])
            for event in self._pool.events(_TICK):
                if event.work is not None and event.work[0] is round_:  # not an earlier one's
                    self._note(round_, event.work[1], event.seat.number, event.result)
        results = round_.results()
        self._exchange = Exchange(
            workers=len(self._pool.started),
            bytes_sent=len(message),
            bytes_received=sum(len(result) for result in results),
            parts=len(parts),
            parts_repeated=round_.repeated,
            workers_lost=self._pool.lost - lost_before,
        )
        return merged([pickle.loads(result) for result in results])

    def measure(self, params: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Return the task's held-out figures of one parameter set; computed here."""
        return self._task.measure(params)

    @property
    def lost(self) -> int:
        """Workers that were lost so far."""
        return self._pool.lost

    def exchange(self) -> dict[str, int]:
        """Return what the latest generation took besides evaluating, by name."""
        return {} if self._exchange is None else asdict(self._exchange)

    def _note(
        self, round_: Round[bytes], part: int, worker: int, result: bytes | Exception | None
    ) -> None:
        """Tell a round what became of a part."""
        if isinstance(result, Exception):
            raise result
        if result is not None:
            round_.returned(worker, part, result, time.monotonic())
        elif round_.lost(worker) >= _MOST_LOSSES and not round_.complete:
            raise ClusterError(
                "workers that survive",
                f"{_MOST_LOSSES} lost over the same part of a generation",
                "Do they run out of memory, or of time (timeout)? Ray's logs on their nodes say "
                "why they ended.",
            )


def _room(threads: int, gpus: float) -> int:
    """Return how many workers the cluster has room for, at least one."""
    room = amount("CPU") // threads
    return max(1, int(min(room, amount("GPU") // gpus) if gpus else room))


def _nobody(what: str) -> None:
    del what
