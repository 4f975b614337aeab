"""The worker pool: workers are started, given work, replaced where they are lost.

Where a worker runs is Ray's business, as is noticing that one has died and finding a place for
its successor when nodes come and go.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from tinkering.distributed.cluster import import_ray, resources
from tinkering.distributed.division import Task
from tinkering.distributed.worker import Identity, Worker
from tinkering.errors import ClusterError

Say = Callable[[str], None]

_PATIENCE = 15.0
"""Seconds without all workers until the user is told what is waited for."""
_START_TIMEOUT = 300.0
"""Seconds without a single worker until the run ends."""
_MOST_FAILED_STARTS = 5
"""Workers in a row that may end while they start."""


@dataclass(frozen=True)
class Resources:
    """What a worker is given, and what is expected of it.

    Args:
        threads: of PyTorch, and processors that Ray reserves.
        gpus: that Ray reserves; a fraction shares one.
        timeout: seconds for one part, after which the worker counts as hung.
    """

    threads: int = 1
    gpus: float = 0.0
    timeout: float = 60.0


@dataclass(eq=False)
class Seat:
    """A worker, as the driver knows it."""

    number: int
    actor: Any = field(repr=False)
    waits_for: Any = field(repr=False)
    """The reference of what it is doing; None where it is free."""
    since: float
    identity: Identity | None = None
    """None while it starts."""
    work: Any = None
    """What the one who gave it work calls that."""


@dataclass(frozen=True)
class Event:
    """What became of a worker's work."""

    seat: Seat
    work: Any
    result: bytes | Exception | None
    """Or what the task raised. None: the worker is lost, and another one starts in its place."""


class WorkerPool:
    """Some workers.

    Args:
        make_task: returns a worker's task, in its process.
        workers: how many.
        given: to each.
        say: tells the user something.
    """

    def __init__(
        self, make_task: Callable[[], Task], workers: int, given: Resources, say: Say
    ) -> None:
        self._ray = import_ray()
        self._given, self._say = given, say
        self._here = Identity.of_this_process()
        self._differences: set[str] = set()
        self._make_task = self._ray.put(make_task)
        self._actor = self._ray.remote(
            num_cpus=given.threads,
            num_gpus=given.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )(Worker)
        self._numbers = count()
        self._failed_starts = 0
        self._short_since: float | None = None
        self._alone_since: float | None = None
        self._told = False
        self.lost = 0
        """Workers that were lost so far."""
        self._seats = [self._start() for _ in range(workers)]

    @property
    def started(self) -> list[Seat]:
        """The workers that are there."""
        return [seat for seat in self._seats if seat.identity is not None]

    def wait_for_one(self) -> None:
        """Return when there is a worker; the others may come later.

        Raises:
            ClusterError: no worker can be started.
            Exception: what making its task raised.
        """
        while not self.started:
            self.events(seconds=1.0)

    def free(self) -> list[Seat]:
        """Return the workers that have nothing to do."""
        return [seat for seat in self._seats if seat.waits_for is None]

    def give(self, seat: Seat, work: Any, *arguments: Any) -> None:
        """Have a free worker evaluate something.

        Args:
            seat: the worker.
            work: what `events` calls it.
            arguments: of `Worker.evaluate`.
        """
        seat.work, seat.since = work, time.monotonic()
        seat.waits_for = seat.actor.evaluate.remote(*arguments)

    def events(self, seconds: float) -> list[Event]:
        """Return what happened, after that long at most.

        Raises:
            ClusterError: no worker can be started.
            Exception: what making a worker's task raised.
        """
        waiting = {seat.waits_for: seat for seat in self._seats if seat.waits_for is not None}
        if not waiting:
            return []
        done, _ = self._ray.wait(list(waiting), num_returns=1, timeout=seconds)
        if done:  # and whatever else is there
            done, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        events = [event for ref in done if (event := self._collect(waiting[ref])) is not None]
        now = time.monotonic()
        for seat in self.started:
            if seat.waits_for is not None and now - seat.since > self._given.timeout:
                self._say(
                    f"worker {seat.number} has not answered for {self._given.timeout:g} s; "
                    "another one starts in its place"
                )
                events.append(self._lose(seat))
        self._watch_start(now)
        return events

    def close(self) -> None:
        """End the workers."""
        for seat in self._seats:
            self._end(seat)
        self._seats = []

    def _start(self) -> Seat:
        actor = self._actor.remote(self._make_task, self._given.threads)
        return Seat(next(self._numbers), actor, actor.begin.remote(), time.monotonic())

    def _collect(self, seat: Seat) -> Event | None:
        """Return the event that a worker's answer is; None where it has only started."""
        errors = self._ray.exceptions
        try:
            result = self._ray.get(seat.waits_for)
        except errors.RayTaskError as error:
            if not isinstance(error.cause, errors.RayError):
                error.cause.__cause__ = error  # with its traceback
                return self._raised(seat, error.cause)
            return self._lose(seat)
        except errors.UnserializableException as error:  # what it raised stands in the text alone
            return self._raised(seat, error)
        except errors.RayError as error:
            if seat.identity is None:
                self._count_failed_start(error)
            return self._lose(seat)
        seat.waits_for = None
        if seat.identity is not None:
            return Event(seat, seat.work, result)
        seat.identity, self._failed_starts = result, 0
        difference = seat.identity.differs_from(self._here)
        if difference and difference not in self._differences:
            self._differences.add(difference)
            self._say(f"a worker {difference}; last bits may differ")
        return None

    def _raised(self, seat: Seat, error: Exception) -> Event:
        if seat.identity is None:
            raise error
        seat.waits_for = None
        return Event(seat, seat.work, error)

    def _lose(self, seat: Seat) -> Event:
        """Start a worker in the place of one."""
        self.lost += 1
        self._end(seat)
        self._seats[self._seats.index(seat)] = self._start()
        return Event(seat, seat.work, None)

    def _end(self, seat: Seat) -> None:
        if not self._ray.is_initialized():  # Ray would start anew to do it
            return
        with contextlib.suppress(Exception):  # it may be gone, and so may the cluster
            self._ray.kill(seat.actor)

    def _count_failed_start(self, error: Exception) -> None:
        self._failed_starts += 1
        if self._failed_starts >= _MOST_FAILED_STARTS:
            found = f"{self._failed_starts} that ended while they did"
            raise ClusterError("a worker that starts", found, f"The last one: {error}") from error

    def _watch_start(self, now: float) -> None:
        """Say which workers are waited for, and give up where there is none for long."""
        there = len(self.started)
        short = there < len(self._seats)
        self._alone_since = None if there else self._alone_since or now
        self._short_since = (self._short_since or now) if short else None
        self._told = self._told and short
        needs = f"CPU {self._given.threads}"
        if self._given.gpus:
            needs += f", GPU {self._given.gpus:g}"
        if self._alone_since is not None and now - self._alone_since > _START_TIMEOUT:
            found = f"none for {now - self._alone_since:.0f} s. Each needs {needs}; the cluster has"
            raise ClusterError("a worker that starts", f"{found} {resources()}")
        if self._short_since is not None and now - self._short_since > _PATIENCE and not self._told:
            self._told = True
            self._say(
                f"{there} of {len(self._seats)} workers have started. Each needs {needs}; the "
                f"cluster has {resources()}"
            )
