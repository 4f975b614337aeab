"""The entry to members whose activations are perturbed: checks the arguments, hands them over."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tinkering.engines import activations
from tinkering.engines.activation_plan import ActivationPlan, make_activation_plan
from tinkering.engines.activation_targets import Target, find_targets
from tinkering.engines.evaluation import Evaluation
from tinkering.engines.look import look
from tinkering.engines.rating import Fitness
from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.evaluation.fit import require_kinds, require_state_fits
from tinkering.evaluation.fitness import negative_cross_entropy
from tinkering.graph.program import Program
from tinkering.layers.centre import Values
from tinkering.population import PerturbedActivations
from tinkering.required import require_tensor


@torch.no_grad()
def evaluate_activations(
    model: nn.Module,
    population: PerturbedActivations,
    x: Tensor,
    y: Tensor,
    fitness: Fitness = negative_cross_entropy,
    dtype: torch.dtype = torch.float32,
    memory: int | None = None,
    planned: ActivationPlan | None = None,
) -> Evaluation:
    """Return the fitness of perturbed activations, and the gradient estimate that it makes.

    Fitness is ``[examples, layers, samples]`` as one vector.

    Args:
        model: the architecture, in eval mode; what the population does not have is its own.
        population: the centre, and how it is perturbed.
        x: ``[examples, ...]``.
        y: labels, ``[examples]``.
        fitness: ``(logits [members, readings, classes], labels [members, readings]) ->
            [members]``: a member sees a single example.
        dtype: of the computation: float32 or bfloat16.
        memory: bytes that it may take; half of what is free by default.
        planned: the plan for more examples, of which these are a part, so that theirs has the same
            bits; `memory` does not count then. Decided here by default.

    Raises:
        ArgumentError: (a ``ValueError``) no example, labels that do not fit `x`, a centre that
            does not fit the module, a fitness that is not one number a member, or memory that
            does not suffice for one example.
        UnsupportedLayerError: the module cannot be captured, mixes the examples of a batch, is
            random, or an evolving parameter is something else than the weight or bias of
            convolutions and linear layers, or the shift of norms.

    Example:
        >>> from tinkering.noise import Stream
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
        >>> centre = {name: p.detach() for name, p in model.named_parameters()}
        >>> utilities = lambda fitness: fitness - fitness.mean(1, keepdim=True)
        >>> population = PerturbedActivations(centre, 6, 0.1, Stream(0, 0), utilities)
        >>> x, y = torch.randn(5, 8), torch.zeros(5, dtype=torch.long)
        >>> evaluation = evaluate_activations(model, population, x, y)
        >>> evaluation.fitness.shape, evaluation.gradient["0.weight"].shape
        (torch.Size([60]), torch.Size([4, 8]))
    """
    require_kinds(model, population, PerturbedActivations)
    require_tensor("x", x)
    require_tensor("y", y)
    if x.numel() == 0:
        raise ArgumentError("x", "at least one image", list(x.shape))
    if y.shape != x.shape[:1]:
        raise ArgumentError("y", f"a label for every image of x, [{len(x)}]", list(y.shape))
    if dtype not in (torch.float32, torch.bfloat16):
        raise ArgumentError("dtype", "torch.float32 or torch.bfloat16", dtype)
    require_state_fits(model, *population.like)
    steps, values, targets = _prepared(model, population, x)
    if planned is None:
        planned = make_activation_plan(steps, values, targets, len(x), population, dtype, memory)
    return activations.run(steps, values, targets, population, x, y, fitness, planned)


def plan_activations(
    model: nn.Module,
    population: PerturbedActivations,
    x: Tensor,
    dtype: torch.dtype = torch.float32,
    memory: int | None = None,
) -> ActivationPlan:
    """Return how `evaluate_activations` would evaluate this.

    The arguments and the errors are those of `evaluate_activations`.
    """
    steps, values, targets = _prepared(model, population, x)
    return make_activation_plan(steps, values, targets, len(x), population, dtype, memory)


def _prepared(
    model: nn.Module, population: PerturbedActivations, x: Tensor
) -> tuple[Program, Values, list[Target]]:
    """Return the module's steps, its parameters and buffers, and the layers that are perturbed."""
    name, seen = type(model).__name__, look(model, x)
    # First: what is random differs between examples as well.
    if seen.random:
        raise UnsupportedLayerError(name, "active dropout")
    steps = seen.steps(model)
    if seen.coupled:
        raise UnsupportedLayerError(name, "its forward (the images of a batch are not independent)")
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    own = {name: value.detach() for name, value in state.items()}
    values = steps.captured.values(own | dict(population.params) | dict(population.buffers))
    return steps, values, find_targets(steps, population.params, values)
