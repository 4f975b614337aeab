"""The door to evaluation: checks the arguments, makes the plan, hands over to an engine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tinkering.engines.job import Job, Run
from tinkering.engines.look import look
from tinkering.engines.planning import Plan, make_plan
from tinkering.engines.rating import Fitness, rated
from tinkering.engines.table import ENGINES, choose
from tinkering.errors import ArgumentError
from tinkering.evaluation.batchnorm import Policy, Reference, with_batch_statistics
from tinkering.evaluation.finite import require_finite, require_finite_rest
from tinkering.evaluation.fitness import negative_cross_entropy
from tinkering.evaluation.validation import (
    InDims,
    Options,
    check,
    require_second_image,
    with_reference,
)
from tinkering.layers.onednn import bfloat16_is_fast
from tinkering.population import CountedPopulation
from tinkering.required import require_tensor


@torch.no_grad()
def forward(
    model: nn.Module,
    population: CountedPopulation,
    x: Tensor,
    in_dims: InDims = (0, None),
    dtype: torch.dtype = torch.float32,
    *,
    engine: str = "auto",
    norm: Policy = "running",
    randomness: str = "error",
    memory: int | None = None,
) -> Tensor:
    """Return the logits of every member, ``[members, batch, classes]``, in float32.

    Args:
        model: the architecture; parameters that the population does not have are its own.
        population: the members.
        x: ``[batch, ...]``, handed to every member, with `in_dims` ``(0, None)``;
            ``[members, batch, ...]``, a batch for each, with ``(0, 0)``.
        in_dims: ``(0, None)`` or ``(0, 0)``, as in ``torch.vmap``.
        dtype: of the computation: float32 or bfloat16; `fastest_dtype` knows what pays here.
            Where layers are fused, the one whose result is the module's stays float32.
        engine: ``"factored"``, ``"sequential"``, ``"vmapped"``, or ``"auto"`` for the fastest
            that can do it; `plan` says which, and why.
        norm: which statistics BatchNorm layers use: ``"running"``, ``"batch"`` (each member's
            batch) or a `Reference` (the centre's on some images).
        randomness: what active dropout draws: ``"same"`` or ``"different"`` numbers for the
            members; with ``"error"`` it is refused.
        memory: bytes that may be used beside the population and the result; half of what is
            free by default.

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
    options = Options(in_dims, dtype, engine, norm, randomness, memory)
    plan, run, _ = _planned(model, population, x, options, keeps_logits=True)
    return torch.cat([logits for _, logits in run(plan.tiles)])


@torch.no_grad()
def evaluate(
    model: nn.Module,
    population: CountedPopulation,
    x: Tensor,
    y: Tensor,
    fitness: Fitness = negative_cross_entropy,
    in_dims: InDims = (0, None),
    dtype: torch.dtype = torch.float32,
    *,
    engine: str = "auto",
    norm: Policy = "running",
    randomness: str = "error",
    memory: int | None = None,
    planned: Plan | None = None,
) -> Tensor:
    """Return the fitness of every member, ``[members]``; never holds all logits.

    Args:
        model: the architecture.
        population: the members.
        x: as in `forward`.
        y: labels, ``[batch]`` with `in_dims` ``(0, None)``, ``[members, batch]`` with ``(0, 0)``.
        fitness: ``(logits [members, batch, classes], labels [members, batch]) -> [members]``.
            It is called on some members at a time, so it rates each by itself.
        in_dims: ``(0, None)`` or ``(0, 0)``, as in ``torch.vmap``.
        dtype: of the computation; the fitness function is given float32.
        engine: as in `forward`.
        norm: as in `forward`.
        randomness: as in `forward`.
        memory: as in `forward`.
        planned: the plan of a population of which this is a part, so that its members'
            fitness has the bits that it has there; `engine` and `memory` do not count then.
            Decided here by default.

    Raises:
        ArgumentError: (a ``ValueError``) as in `forward`; or labels that do not fit `x`; or
            a fitness that is not one number a member, or not the member's alone.
        UnsupportedLayerError: as in `forward`.

    Example:
        >>> from tinkering import PerturbedPopulation
        >>> model = nn.Linear(8, 4)
        >>> population = PerturbedPopulation(model, size=6, sigma=0.1)
        >>> x, y = torch.zeros(5, 8), torch.zeros(5, dtype=torch.long)
        >>> evaluate(model, population, x, y).shape
        torch.Size([6])
    """
    if planned is not None:
        engine = planned.engine
    options = Options(in_dims, dtype, engine, norm, randomness, memory)
    made, run, job = _planned(model, population, x, options, keeps_logits=False)
    tiles = (planned or made).tiles
    require_tensor("y", y)
    labels = y.expand(len(population), -1) if job.shared and y.dim() == 1 else y
    if labels.shape != job.batches.shape[:2]:
        raise ArgumentError(
            "y",
            f"a label for every image of x, {list(x.shape[: 1 if job.shared else 2])}",
            list(y.shape),
        )
    return rated(fitness, run(tiles), labels)


@torch.no_grad()
def plan(
    model: nn.Module,
    population: CountedPopulation,
    x: Tensor,
    in_dims: InDims = (0, None),
    dtype: torch.dtype = torch.float32,
    *,
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
    options = Options(in_dims, dtype, engine, norm, randomness, memory)
    return _planned(model, population, x, options, keeps_logits=True)[0]


def plan_evaluation(
    model: nn.Module,
    population: CountedPopulation,
    x: Tensor,
    in_dims: InDims = (0, None),
    dtype: torch.dtype = torch.float32,
    *,
    memory: int | None = None,
) -> Plan:
    """Return how `evaluate` would evaluate this: it holds a number a member, and no logits.

    The arguments and the errors are those of `evaluate`.
    """
    options = Options(in_dims, dtype, "auto", "running", "error", memory)
    return _planned(model, population, x, options, keeps_logits=False)[0]


def fastest_dtype() -> torch.dtype:
    """Return bfloat16 where this processor has instructions for it, float32 elsewhere.

    Those are AMX and AVX512-BF16. Nothing is timed, so the same processor and PyTorch always get
    the same answer.

    Example:
        >>> fastest_dtype() in (torch.bfloat16, torch.float32)
        True
    """
    return torch.bfloat16 if bfloat16_is_fast() else torch.float32


def _planned(
    model: nn.Module, population: CountedPopulation, x: Tensor, options: Options, keeps_logits: bool
) -> tuple[Plan, Run, Job]:
    """Return the plan, the prepared engine and the job, after checking the arguments."""
    check(model, population, x, options)
    structure = model
    if isinstance(options.norm, Reference):
        population = with_reference(model, population, options.norm)
    elif options.norm == "batch":
        structure = with_batch_statistics(model)
    require_finite(population)
    require_finite_rest(model, (name for name, _ in structure.named_buffers()), population)
    shared = options.in_dims == (0, None)
    batches = x.expand(len(population), *x.shape) if shared else x
    seen = look(structure, batches[0])
    steps, not_captured = seen.program, seen.reason
    if batches.shape[1] == 1 and seen.coupled:
        require_second_image(structure, batches[0])
        if steps is not None and not seen.serves_one:
            steps, not_captured = None, "an image alone is computed in another way"
    if seen.random and options.randomness == "error":
        raise ArgumentError(
            "randomness",
            '"same" or "different", because the module has active dropout',
            '"error"',
            "For no dropout call model.eval().",
        )
    job = Job(
        model=structure,
        source=model,
        population=population,
        batches=batches,
        shared=shared,
        dtype=options.dtype,
        randomness=options.randomness,
        program=steps,
        not_captured=not_captured,
        random=seen.random,
        result=seen.result,
    )
    if options.engine == "auto":
        name, reason, run = choose(job)
    else:
        name, reason, run = options.engine, "asked for", ENGINES[options.engine](job)
    return make_plan(job, name, reason, options.memory, keeps_logits), run, job
