"""What a generation that was told came to, as a strategy's state says it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from tinkering.engines.evaluation import Evaluation
from tinkering.errors import ArgumentError
from tinkering.required import require_tensor
from tinkering.strategies.shaping import replace_non_finite

Told = Literal["nothing yet", "moved", "no finite fitness", "update not finite"]
"""What the latest generation came to.

``"nothing yet"``: none was told. ``"moved"``: its fitness was used. ``"no finite fitness"``: all
of it was NaN or infinite. ``"update not finite"``: it would have put such a number into the
parameters or the optimiser. After the latter two the state is what it was before, but for its
counts.
"""


def as_evaluation(told: Evaluation | Tensor) -> Evaluation:
    """Return what a strategy was told, where it may be the fitness alone.

    Example:
        >>> as_evaluation(torch.zeros(3)).fitness
        tensor([0., 0., 0.])
    """
    return told if isinstance(told, Evaluation) else Evaluation(told)


def finite_fitness(evaluation: Evaluation, members: int | None = None) -> Tensor | None:
    """Return fitness in double precision, with the worst finite value for what is not finite.

    Args:
        evaluation: of a population.
        members: how many it has, where that is known.

    Returns:
        One scalar per member, or None where none is finite.

    Raises:
        ArgumentError: (a ``ValueError``) fitness is no tensor, or has another shape.

    Example:
        >>> finite_fitness(Evaluation(torch.tensor([1.0, float("nan"), -2.0])), members=3)
        tensor([ 1., -2., -2.], dtype=torch.float64)
    """
    fitness = evaluation.fitness
    shape = "[members]" if members is None else f"[{members}]"
    require_tensor("fitness", fitness, f"a tensor of shape {shape}")
    if fitness.dim() != 1 or members not in (None, len(fitness)):
        raise ArgumentError("fitness", f"a tensor of shape {shape}", list(fitness.shape))
    return replace_non_finite(fitness.detach().double())


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no tensor holds a NaN or an infinity.

    Example:
        >>> all_finite([torch.zeros(3)]), all_finite([torch.zeros(3), torch.tensor(torch.inf)])
        (True, False)
    """
    # A sum is one pass without a tensor of its size; only a strange one is looked into.
    return all(
        math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())
        for tensor in tensors
    )
