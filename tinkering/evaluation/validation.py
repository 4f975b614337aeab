"""The arguments of the door, and what is wrong with them, each in one message."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinkering.engines.table import ENGINES
from tinkering.errors import ArgumentError
from tinkering.evaluation.batchnorm import (
    Policy,
    Reference,
    norms_in_train_mode,
    reference_statistics,
)
from tinkering.evaluation.fit import require_device, require_fit, require_kinds, require_plain_call
from tinkering.graph.copies import first_line, independent_copy
from tinkering.population import CountedPopulation, PerturbedPopulation
from tinkering.required import require_tensor

InDims = tuple[int | None, int | None]


@dataclass(frozen=True)
class Options:
    """The keyword arguments that `forward`, `evaluate` and `plan` have in common."""

    in_dims: InDims
    dtype: torch.dtype
    engine: str
    norm: Policy
    randomness: str
    memory: int | None


def with_reference(
    model: nn.Module, population: CountedPopulation, norm: Reference
) -> CountedPopulation:
    """Return the population with the centre's statistics on the policy's images."""
    if not isinstance(population, PerturbedPopulation):
        raise ArgumentError(
            "norm",
            '"running" or "batch" for members that share no centre',
            "a Reference",
            "Give each member buffers of its own: population.with_buffers.",
        )
    own = {name: value.detach() for name, value in model.named_parameters()}
    if len(norm.images) < 2:
        raise ArgumentError(
            "norm", "a Reference to at least two images, for a variance", len(norm.images)
        )
    try:
        statistics = reference_statistics(model, own | population.params, norm.images)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ArgumentError(
            "norm",
            f"a Reference to images that {type(model).__name__} takes",
            f"{list(norm.images.shape)} of {norm.images.dtype} ({first_line(error)})",
        ) from error
    return population.with_buffers(statistics)


def require_second_image(structure: nn.Module, x: Tensor) -> None:
    """Refuse one image where a norm would take the variance of one number."""
    try:
        independent_copy(structure, lambda value: value)(x.clone())
    except ValueError as error:
        raise ArgumentError(
            "x",
            "at least two images a member, for norms that use the statistics of the batch",
            f"one ({first_line(error)})",
        ) from error


def check(model: nn.Module, population: CountedPopulation, x: Tensor, options: Options) -> None:
    """Refuse arguments that cannot be used."""
    require_kinds(model, population)
    require_tensor("x", x)
    require_plain_call()
    if options.norm not in ("running", "batch") and not isinstance(options.norm, Reference):
        raise ArgumentError("norm", '"running", "batch" or a Reference', _said(options.norm))
    trained = norms_in_train_mode(model)
    if trained and options.norm != "batch":
        raise ArgumentError(
            "model",
            "BatchNorm layers in eval mode, because members cannot train the running statistics "
            "of one module",
            f"{trained[0]!r} in train mode",
            'Call model.eval(), or pass norm="batch" for the statistics of each member\'s batch.',
        )
    if options.engine not in ("auto", *ENGINES):
        raise ArgumentError("engine", f"one of auto, {', '.join(ENGINES)}", repr(options.engine))
    if options.randomness not in ("error", "same", "different"):
        raise ArgumentError(
            "randomness", '"error", "same" or "different"', repr(options.randomness)
        )
    if options.dtype not in (torch.float32, torch.bfloat16):
        raise ArgumentError("dtype", "torch.float32 or torch.bfloat16", options.dtype)
    if options.memory is not None and not isinstance(options.memory, int):
        raise ArgumentError("memory", "a number of bytes, an integer", repr(options.memory))
    if options.memory is not None and options.memory < 1:
        raise ArgumentError("memory", "a number of bytes, at least 1", options.memory)
    if options.engine == "factored" and not isinstance(population, PerturbedPopulation):
        raise ArgumentError(
            "engine",
            '"sequential" or "vmapped" for members that share no centre',
            f'"factored" for a {type(population).__name__}',
        )
    if x.numel() == 0:
        raise ArgumentError("x", "at least one image", list(x.shape))
    if options.in_dims not in ((0, None), (0, 0)):
        raise ArgumentError(
            "in_dims",
            "(0, None) for one batch shared by all members or (0, 0) for a batch each",
            options.in_dims,
        )
    if options.in_dims == (0, 0) and (x.dim() < 2 or len(x) != len(population)):
        raise ArgumentError(
            "x", f"[members, batch, ...] with {len(population)} members", list(x.shape)
        )
    if not x.dim():
        raise ArgumentError("x", "[batch, ...]", [])
    require_fit(model, population)
    require_device(population, x)


def _said(value: object) -> str:
    return repr(value) if value is None or isinstance(value, str) else f"a {type(value).__name__}"
