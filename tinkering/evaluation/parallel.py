"""The seed's parallel forward on the fast path, for calls that need no more than numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from tinkering.errors import ArgumentError
from tinkering.evaluation import sequential
from tinkering.evaluation.job import Job
from tinkering.evaluation.look import look
from tinkering.evaluation.memory import footprint
from tinkering.evaluation.plan import make_plan
from tinkering.population import StackedPopulation

_LARGE = 24 << 20
"""Bytes of all members' largest value, from where vmap's convolutions wait for memory.

Measured on two quiet cores with convolutional networks of 3,000 to 5,000,000 parameters, 4 to 64
members and 1 to 512 images: below it vmap took 0.03 to 1.1 of the time that the engine took, above
it 1.06 to 3.4 times as long. Linear layers took 0.02 to 1.2 of it through vmap, whatever their
size. ``tinkering bench --rows call-`` compares some of these anew.
"""


def parallel_forward(
    model: nn.Module,
    params_and_buffers: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    x: Tensor,
    shared: bool,
) -> Tensor | None:
    """Return what ``vmap`` would, members one after the other; None where vmap is to do it.

    That is where vmap is the faster one: without convolutions, and with values of all members
    that together fit the processor's caches. And where only vmap will do: where gradients are
    wanted, in train mode, inside another transformation of ``torch.func``, on another device than
    the CPU, in another dtype than float32, and for modules that cannot be captured.

    Args:
        model: the architecture.
        params_and_buffers: stacked, ``[members, ...]`` each.
        x: ``[batch, ...]`` if `shared`, else ``[members, batch, ...]``.
        shared: whether all members see the same batch.
    """
    if not _may_pay(params_and_buffers[0], x, shared):
        return None
    if any(module.training for module in model.modules()):
        return None
    stacked = {**params_and_buffers[0], **params_and_buffers[1]}
    rest = [p for name, p in model.named_parameters() if name not in stacked]
    if not _are_plain([x, *stacked.values(), *rest]):
        return None
    try:
        population = StackedPopulation(*params_and_buffers)
        batches = x.expand(len(population), *x.shape) if shared else x
        if len(batches) != len(population) or batches.numel() == 0:
            return None  # vmap says what is wrong
        seen = look(model, batches[0])
    except ArgumentError:  # vmap says what is wrong
        return None
    steps = seen.program
    if steps is None or seen.random or (batches.shape[1] == 1 and not seen.serves_one):
        return None
    if footprint(steps).largest * 4 * batches.shape[:2].numel() < _LARGE:
        return None
    if steps.output.meta["val"].dtype != torch.float32:
        return None
    job = Job(
        model=model,
        source=model,
        population=population,
        batches=batches,
        shared=shared,
        dtype=torch.float32,
        randomness="same",
        program=steps,
        not_captured="",
        random=False,
        result=seen.result,
    )
    try:
        tiles = make_plan(job, "sequential", "explicit members", None, keeps_logits=True).tiles
    except ArgumentError:  # no room for a tile; vmap has no budget
        return None
    with torch.no_grad():
        return torch.cat([logits for _, logits in sequential.prepare(job)(tiles)])


def _may_pay(params: Mapping[str, Tensor], x: Tensor, shared: bool) -> bool:
    """Return whether values may be large enough, from no more than shapes.

    A call of a small network takes as long as some Python, so this is little of it.
    """
    outputs = max((p.shape[1] for p in params.values() if p.dim() > 3), default=0)
    if not outputs:
        return False
    members = len(next(iter(params.values()))) if shared else 1
    pixels = x.shape[2 if shared else 3 :].numel()
    batch = x.shape[: 1 if shared else 2].numel()
    return outputs * pixels * batch * members * 4 >= _LARGE


def _are_plain(tensors: Iterable[Tensor]) -> bool:
    """Return whether these are numbers in memory, from which no gradient is wanted."""
    gradients = torch.is_grad_enabled()
    for tensor in tensors:
        if (gradients and tensor.requires_grad) or tensor.device.type != "cpu":
            return False
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            return False
        try:
            tensor.data_ptr()
        except RuntimeError:  # a tensor inside a transformation has no memory of its own
            return False
    return True
