"""Experiments in processes of their own: memory at its peak, and the time of a cold start."""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.bench.centred import population
from benchmarks.bench.experiment import Bench, Experiment
from benchmarks.bench.judge import Figure, Row, Target
from benchmarks.bench.networks import images, network
from benchmarks.bench.settings import Sizes
from tinkering.evaluation.entry import evaluate, fastest_dtype

_GB = 1e9
_MOST = 1.5
"""GB that an evaluation may take at its peak, with PyTorch and all."""
_GROWTH = 1.10
"""Peak with many members, by the peak with few."""
_COLD, _WARM = 40.0, 5.0
"""Seconds from the imports to the first result: without any cache, and with one."""
_SCRIPT = """
import time, torch, tinkering
imported = time.perf_counter()
model = tinkering.SimpleResNet(tinkering.models.BasicBlock, [1, 1, 1, 1], width={width}).eval()
population = tinkering.PerturbedPopulation(model, size=64, sigma=0.02)
x = torch.zeros(1, 1, 28, 28)
tinkering.forward(model, population, x, dtype=tinkering.fastest_dtype())
print(time.perf_counter() - imported)
"""


def peak_bytes(members: int, width: int, threads: int) -> int:
    """Evaluate members on one shared image; return this process's peak of resident memory."""
    torch.set_num_threads(threads)
    model = network("resnet", width)
    x, y = images(1), torch.zeros(1, dtype=torch.long)
    evaluate(model, population(model, members), x, y, dtype=fastest_dtype())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_of_own_process(members: int, width: int) -> float:
    """Return the peak in GB of a process that does nothing else.

    It comes from a small server process: Linux hands a started program the peak of the
    process that started it, and this one has held many networks.
    """
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, context) as pool:
        done = pool.submit(peak_bytes, members, width, torch.get_num_threads())
        return done.result() / _GB


def first_result(width: int, cache: Path) -> tuple[float, float]:
    """Return the seconds to a new process's first result: from its start, and from its imports.

    Args:
        width: of the network.
        cache: the folder of everything that is compiled.
    """
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(cache),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, "-c", _SCRIPT.format(width=width)]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start, float(done.stdout)


def _memory(bench: Bench) -> Iterator[Row]:
    few, many, width = bench.sizes.few_members, bench.sizes.many_members, bench.sizes.wide
    wanted = [name for name in ("memory-few", "memory-many") if bench.wants(name)]
    if bench.wants("memory-growth"):
        wanted = ["memory-few", "memory-many"]
    peaks = {}
    for name, members in (("memory-few", few), ("memory-many", many)):
        if name in wanted:
            peaks[name] = peak_of_own_process(members, width)
            yield Row(
                name,
                f"peak of a process that evaluates {members:,} members of width {width}",
                judged=Figure(peaks[name], "GB"),
                target=Target(must=_MOST, at_most=True),
            )
    if bench.wants("memory-growth"):
        yield Row(
            "memory-growth",
            f"peak with {many:,} members by the peak with {few:,}",
            judged=Figure(peaks["memory-many"] / peaks["memory-few"], "x few"),
            target=Target(must=_GROWTH, at_most=True),
        )


def _cold_start(bench: Bench) -> Iterator[Row]:
    width = bench.sizes.narrow
    times: dict[str, list[tuple[float, float]]] = {"empty": [], "warm": []}
    for _ in range(min(bench.rounds, bench.sizes.cold_rounds)):
        with tempfile.TemporaryDirectory(prefix="tinkering-bench-") as folder:
            times["empty"].append(first_result(width, Path(folder)))
            times["warm"].append(first_result(width, Path(folder)))
    for kind, must in (("empty", _COLD), ("warm", _WARM)):
        name = f"cold-start-{kind}"
        if bench.wants(name):
            from_start, from_imports = zip(*times[kind], strict=True)
            yield Row(
                name,
                f"a new process's first result, width {width}, {kind} cache: all, after imports",
                Figure(statistics.median(from_start), "s"),
                Figure(statistics.median(from_imports), "s"),
                Target(must=must, at_most=True),
                readings=from_imports,
            )


def experiments(sizes: Sizes) -> list[Experiment]:
    """Return the experiments of this file."""
    del sizes
    return [
        Experiment(("memory-few", "memory-many", "memory-growth"), _memory),
        Experiment(("cold-start-empty", "cold-start-warm"), _cold_start),
    ]
