"""The public entry for a single call: binds, and calls once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tinkering.engines.evaluation import Evaluation
from tinkering.engines.planning import Plan
from tinkering.engines.rating import Fitness
from tinkering.engines.table import ENGINES
from tinkering.evaluation.batchnorm import Policy
from tinkering.evaluation.bound import Bound, bound_to
from tinkering.evaluation.fit import require_kinds
from tinkering.evaluation.fitness import negative_cross_entropy
from tinkering.evaluation.validation import Options, signed
from tinkering.graph.signature import InDims
from tinkering.layers.onednn import bfloat16_is_fast
from tinkering.population import Population


def forward(
    model: nn.Module,
    population: Population,
    inputs: Any,
    in_dims: InDims = (0, None),
    dtype: torch.dtype = torch.float32,
    *,
    kwargs: Mapping[str, Any] | None = None,
    kwargs_in_dims: Any = None,
    engine: str = "auto",
    norm: Policy = "running",
    randomness: str = "error",
    memory: int | None = None,
) -> Any:
    """Return what every member returns: the module's outputs with a leading ``[members]``.

    For more than one call of a population, `bind` it.

    Args:
        model: the architecture; parameters that the population does not have are its own.
        population: the members.
        inputs: what the module is called with: a tuple of positional arguments, or the only one;
            ``[batch, ...]`` handed to every member, or ``[members, batch, ...]``, see `in_dims`.
        in_dims: of the population and of `inputs`, as in ``torch.vmap``: ``(0, None)``,
            ``(0, 0)``, or a tree for the inputs, ``(0, (None, 0))``.
        dtype: of the computation: float32 or bfloat16; `fastest_dtype` knows what pays here.
            Where layers are fused, those whose result is the module's stay float32.
        kwargs: keyword arguments of the module.
        kwargs_in_dims: of those, as in `bind`.
        engine: as in `bind`.
        norm: as in `bind`.
        randomness: as in `bind`.
        memory: as in `bind`.

    Returns:
        The tree that the module returns; floating-point tensors are float32.

    Raises:
        ArgumentError: (a ``ValueError``) one of these cannot be used; or a member's weights
            are not finite.
        UnsupportedLayerError: the engine that was asked for cannot evaluate the module.

    Example:
        >>> from tinkering import PerturbedPopulation
        >>> model = nn.Linear(8, 4)
        >>> population = PerturbedPopulation(model, size=6, sigma=0.1)
        >>> forward(model, population, torch.zeros(5, 8)).shape
        torch.Size([6, 5, 4])
    """
    options = Options(dtype, engine, norm, randomness, memory)
    bound = _bound(model, population, inputs, in_dims, kwargs, kwargs_in_dims, options)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    return bound(*args, **(kwargs or {}))


def evaluate(
    model: nn.Module,
    population: Population,
    inputs: Any,
    targets: Any,
    fitness: Fitness = negative_cross_entropy,
    in_dims: InDims = (0, None),
    dtype: torch.dtype = torch.float32,
    *,
    kwargs: Mapping[str, Any] | None = None,
    kwargs_in_dims: Any = None,
    targets_in_dims: Any = "inputs",
    engine: str = "auto",
    norm: Policy = "running",
    randomness: str = "error",
    memory: int | None = None,
    planned: Plan | None = None,
) -> Evaluation:
    """Return what every member is worth; never holds all outputs.

    Args:
        model: the architecture.
        population: the members.
        inputs: as in `forward`.
        targets: what outputs are compared with, any tree of tensors: ``[batch, ...]``, or
            ``[members, batch, ...]`` where members have inputs of their own.
        fitness: ``(outputs, targets) -> [members]``, trees whose tensors are
            ``[members, batch, ...]``. It is called on some members at a time, so it rates each by
            itself.
        in_dims: as in `forward`.
        dtype: of the computation; the fitness function is given float32.
        kwargs: as in `forward`.
        kwargs_in_dims: as in `forward`.
        targets_in_dims: 0 where each member has targets of its own, None where all share them, or
            a tree of these; as the inputs by default.
        engine: as in `forward`.
        norm: as in `forward`.
        randomness: as in `forward`.
        memory: as in `forward`.
        planned: the plan of a population of which this is a part, so that its members'
            fitness has the bits that it has there; `engine` and `memory` do not count then.
            Decided here by default.

    Raises:
        ArgumentError: (a ``ValueError``) as in `forward`; or targets that do not fit the inputs;
            or a fitness that is not one scalar per member, or not the member's alone.
        UnsupportedLayerError: as in `forward`.

    Example:
        >>> from tinkering import PerturbedPopulation
        >>> model = nn.Linear(8, 4)
        >>> population = PerturbedPopulation(model, size=6, sigma=0.1)
        >>> x, y = torch.zeros(5, 8), torch.zeros(5, dtype=torch.long)
        >>> evaluate(model, population, x, y).fitness.shape
        torch.Size([6])
    """
    if planned is not None and planned.engine in ENGINES:
        engine = planned.engine
    options = Options(dtype, engine, norm, randomness, memory)
    bound = _bound(model, population, inputs, in_dims, kwargs, kwargs_in_dims, options)
    return bound.evaluate(
        inputs,
        targets,
        fitness,
        kwargs=kwargs,
        targets_in_dims=targets_in_dims,
        planned=planned,
    )


def plan(
    model: nn.Module,
    population: Population,
    inputs: Any,
    in_dims: InDims = (0, None),
    dtype: torch.dtype = torch.float32,
    *,
    kwargs: Mapping[str, Any] | None = None,
    kwargs_in_dims: Any = None,
    engine: str = "auto",
    norm: Policy = "running",
    randomness: str = "error",
    memory: int | None = None,
) -> Plan:
    """Return how `forward` would evaluate this: engine, tiles, memory, and why.

    The arguments and the errors are those of `forward`.

    Example:
        >>> from tinkering import PerturbedPopulation
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> population = PerturbedPopulation(model, size=6, sigma=0.1)
        >>> plan(model, population, torch.zeros(5, 8)).reason
        'members share a centre, so one pass serves many of them'
    """
    options = Options(dtype, engine, norm, randomness, memory)
    return _bound(model, population, inputs, in_dims, kwargs, kwargs_in_dims, options).plan


def plan_evaluation(
    model: nn.Module,
    population: Population,
    inputs: Any,
    in_dims: InDims = (0, None),
    dtype: torch.dtype = torch.float32,
    *,
    memory: int | None = None,
) -> Plan:
    """Return how `evaluate` would evaluate this: it holds one scalar per member, and no outputs.

    The arguments and the errors are those of `evaluate`.
    """
    options = Options(dtype, "auto", "running", "error", memory)
    return _bound(model, population, inputs, in_dims, None, None, options).evaluation_plan


def fastest_dtype() -> torch.dtype:
    """Return bfloat16 where this processor has instructions for it, float32 elsewhere.

    Those are AMX and AVX512-BF16. Nothing is timed, so the same processor and PyTorch always get
    the same answer.

    Example:
        >>> fastest_dtype() in (torch.bfloat16, torch.float32)
        True
    """
    return torch.bfloat16 if bfloat16_is_fast() else torch.float32


@torch.no_grad()
def _bound(
    model: nn.Module,
    population: Population,
    inputs: Any,
    in_dims: InDims,
    kwargs: Mapping[str, Any] | None,
    kwargs_in_dims: Any,
    options: Options,
) -> Bound:
    """Return the population bound for a single call."""
    require_kinds(model, population)
    signature, tensors = signed(inputs, kwargs, in_dims, kwargs_in_dims, "inputs")
    return bound_to(model, population, signature, tensors, options, may_keep=False)
