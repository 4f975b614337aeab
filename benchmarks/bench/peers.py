"""Experiments with peers, where they are installed: the same members on the same images.

EvoX and EvoTorch are no requirement of this package; ``benchmarks/requirements-peers.txt``
has the releases this was written for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bench.clock import Contender
from benchmarks.bench.experiment import Bench, Comparison, Experiment
from benchmarks.bench.explicit import members, parallel_call
from benchmarks.bench.judge import Row
from benchmarks.bench.networks import images
from benchmarks.bench.settings import Sizes

_Evaluation = Callable[[], object]


def _evox(models: list[nn.Module], x: Tensor, y: Tensor) -> _Evaluation:
    """Return EvoX's evaluation; its data loader is a list, so that loading takes no time."""
    room = import_module("evox.problems.neuroevolution.supervised_learning")
    loss = nn.CrossEntropyLoss(reduction="none")
    problem: Any = room.SupervisedLearningProblem(models[0], [(x, y)], loss, pop_size=len(models))
    params, _ = torch.func.stack_module_state(models)
    held = {name: value.detach() for name, value in params.items()}
    return partial(problem.evaluate, held)


def _evotorch(models: list[nn.Module], x: Tensor, y: Tensor) -> _Evaluation:
    """Return EvoTorch's evaluation, without actors: in this process, as all others are."""
    room: Any = import_module("evotorch")
    for name in ("evotorch", "evotorch.core"):  # it tells of every problem made
        logging.getLogger(name).setLevel(logging.WARNING)
    problem: Any = import_module("evotorch.neuroevolution").SupervisedNE(
        torch.utils.data.TensorDataset(x, y),
        models[0],
        nn.CrossEntropyLoss(),
        minibatch_size=len(x),
    )
    vectors = [nn.utils.parameters_to_vector(model.parameters()).detach() for model in models]
    batch: Any = room.SolutionBatch(problem, len(models), empty=True)
    batch.set_values(torch.stack(vectors))
    return partial(problem.evaluate, batch)


PEERS: dict[str, Callable[[list[nn.Module], Tensor, Tensor], _Evaluation]] = {
    "evox": _evox,
    "evotorch": _evotorch,
}
"""Each prepares an evaluation of some members on one labelled batch."""


def _run(peer: str, bench: Bench) -> Iterator[Row]:
    name = f"peer-{peer}"
    what = f"{peer}, what get_parallel_forward_pass_fn evaluates in row call-vs-vmap"
    try:
        what = f"{peer} {version(peer)}, the members and images of call-vs-vmap"
    except PackageNotFoundError:
        yield Row(name, what, note="not installed")
        return
    models, x = members(bench), images(bench.sizes.small_batch)
    y = torch.arange(len(x)) % 10
    count = len(models) * len(x)
    try:
        theirs = PEERS[peer](models, x, y)
        theirs()
    except Exception as error:  # another release, or something that it needs: not our mistake
        yield Row(name, what, note=f"failed: {type(error).__name__}: {error}")
        return
    contenders = [
        Contender("call", parallel_call(models, x), count),
        Contender(peer, theirs, count),
    ]
    comparisons = [Comparison(name, what, peer, "call", "of our call")]
    yield from bench.compared(contenders, comparisons)[0]


def experiments(sizes: Sizes) -> list[Experiment]:
    """Return the experiments of this file."""
    del sizes
    return [Experiment((f"peer-{peer}",), partial(_run, peer)) for peer in PEERS]
