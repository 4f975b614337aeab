"""Forwards over parameter sets as ``torch.func`` holds them: one set, or many at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tinkering.engines import sequential
from tinkering.engines.job import Job
from tinkering.engines.network import look
from tinkering.engines.planning import Chosen, make_plan
from tinkering.errors import ArgumentError
from tinkering.graph.signature import batch_of, sign, with_members
from tinkering.population import StackedPopulation
from tinkering.ranges import require_at_least

ParamsAndBuffers = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
"""A parameter set as ``torch.func`` wants it: ``(parameters by name, buffers by name)``."""

_LARGE = 24 << 20
"""Bytes of all members' largest value, from where vmap's convolutions wait for memory.

Measured on two quiet cores with convolutional networks of 3,000 to 5,000,000 parameters, 4 to 64
members and 1 to 512 images: below it vmap took 0.03 to 1.1 of the time that the engine took, above
it 1.06 to 3.4 times as long. Linear layers took 0.02 to 1.2 of it through vmap, whatever their
size. ``make bench`` compares some of these anew, in the rows ``call-``.
"""


def functional_forward_core(
    model_architecture: nn.Module, params_and_buffers: ParamsAndBuffers, x_batch: Tensor
) -> Tensor:
    """Return ``model_architecture(x_batch)`` as if it held the given parameters and buffers.

    The module's own parameters are neither read nor changed.

    Args:
        model_architecture: a module, for its structure.
        params_and_buffers: ``(parameters by name, buffers by name)``.
        x_batch: what the module takes; for `SimpleResNet` ``[batch, channels, height, width]``.

    Returns:
        What the module returns; for `SimpleResNet` ``[batch, classes]``.

    Example:
        >>> from tinkering.models import ResNet4StageCustom
        >>> model = ResNet4StageCustom().eval()
        >>> state = (dict(model.named_parameters()), dict(model.named_buffers()))
        >>> functional_forward_core(model, state, torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    logits: Tensor = functional_call(
        model_architecture,
        (dict(params_and_buffers[0]), dict(params_and_buffers[1])),
        (x_batch,),
    )
    return logits


def get_parallel_forward_pass_fn(
    model: nn.Module,
    in_dims: tuple[int | None, int | None] = (0, None),
    *,
    chunk_size: int | None = None,
) -> Callable[[ParamsAndBuffers, Tensor], Tensor]:
    """Return a function that runs many parameter sets through `model`.

    What it returns is what ``torch.func.vmap`` returns. On the CPU, in eval mode, where no
    gradient is wanted and convolutions make large values, members run one after the other
    through the module's fused layers, which is faster; everywhere else it is ``vmap`` itself:
    gradients flow through it, and in train mode each member moves its own running statistics.
    Dropout, where the module has any, draws the same mask for every member
    (``randomness="same"``). `x` is not written to, and threads may share the function.

    Args:
        model: a module, for its structure and its train or eval mode.
        in_dims: ``(0, None)`` hands the same batch to every member;
            ``(0, 0)`` hands the i-th batch of ``x`` to the i-th member.
        chunk_size: members at a time through ``vmap``; None for all at once, or the fast way.

    Returns:
        ``forward(params_and_buffers, x) -> [members, batch, classes]``, where
        ``params_and_buffers`` comes from ``torch.func.stack_module_state`` and ``x`` is
        ``[batch, ...]`` for ``(0, None)``, ``[members, batch, ...]`` for ``(0, 0)``.

    Raises:
        ArgumentError: (a ``ValueError``) `in_dims` is neither of the two, or `chunk_size` is
            below 1.

    Example:
        >>> from torch.func import stack_module_state
        >>> from tinkering.models import BasicBlock, SimpleResNet
        >>> models = [SimpleResNet(BasicBlock, [1, 1, 1, 1], width=2) for _ in range(3)]
        >>> forward = get_parallel_forward_pass_fn(models[0])
        >>> forward(stack_module_state(models), torch.zeros(5, 1, 28, 28)).shape
        torch.Size([3, 5, 10])
    """
    if in_dims not in ((0, None), (0, 0)):
        raise ArgumentError(
            "in_dims",
            "(0, None) for one batch shared by all members or (0, 0) for a batch each",
            in_dims,
        )
    require_at_least(1, chunk_size=chunk_size)

    def forward_one(params_and_buffers: ParamsAndBuffers, x: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, params_and_buffers, (x,))  # type: ignore[arg-type]
        return logits

    together: Callable[[ParamsAndBuffers, Tensor], Tensor] = vmap(
        forward_one, in_dims=in_dims, randomness="same", chunk_size=chunk_size
    )

    shared, lock = in_dims == (0, None), _lock_of(model)
    writes: list[bool] = []  # whether the first call wrote into its input

    def forward(params_and_buffers: ParamsAndBuffers, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not isinstance(x, Tensor):
            return together(params_and_buffers, x)
        if chunk_size is None:
            fast = _through_the_engine(model, params_and_buffers, x, shared)
            if fast is not None:
                return fast
        # A module holds its members' tensors for the time of a call.
        with lock:
            given = x.clone() if not writes or writes[0] else x
            result = together(params_and_buffers, given)
            if not writes and not given.is_inference():
                writes.append(given._version > 0)
            return result

    return forward


_locks: WeakKeyDictionary[nn.Module, AbstractContextManager[object]] = WeakKeyDictionary()


def _lock_of(model: nn.Module) -> AbstractContextManager[object]:
    """Return what a thread holds while it runs others' tensors through a module."""
    return _locks.setdefault(model, threading.RLock())


def _through_the_engine(
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
        signature, tensors = sign((x,), {})
        in_dim = None if shared else 0
        batch = batch_of(with_members(signature, (in_dim,), None), tensors, len(population))
        network = look(model, signature, batch.of_member(0))
    except ArgumentError:  # vmap says what is wrong
        return None
    steps = network.program
    if steps is None or network.random or (batch.examples == 1 and not network.serves_one):
        return None
    if network.footprint.largest * 4 * batch.members * batch.examples < _LARGE:
        return None
    if len(steps.outputs) != 1 or steps.outputs[0].meta["val"].dtype != torch.float32:
        return None
    job = Job(
        model=model,
        source=model,
        population=population,
        batch=batch,
        network=network,
        program=steps,
        not_captured="",
        dtype=torch.float32,
        randomness="same",
    )
    try:
        chosen = Chosen("sequential", "explicit members")
        made = make_plan(job, batch, chosen, None, keeps_outputs=True)
    except ArgumentError:  # no room for a tile; vmap has no budget
        return None
    with torch.no_grad():
        run = sequential.prepare(job)
        logits = torch.cat([results[0] for _, results in run(batch, made)])
        result: Tensor = network.result.tree.filled([logits])
        return result


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
