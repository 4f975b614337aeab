"""Weights that are no numbers are refused before anything is computed with them."""

from __future__ import annotations

from cmath import isnan
from collections.abc import Iterable
from math import isfinite

import torch
from torch import Tensor, nn

from tinkering.errors import ArgumentError
from tinkering.population import Population, StackedPopulation


def require_finite(population: Population) -> None:
    """Refuse a population with a parameter that is NaN or infinite.

    Raises:
        ArgumentError: (a ``ValueError``) it names the parameter, and the member if members have
            weights of their own.

    Example:
        >>> from torch import nn
        >>> from tinkering.population import PerturbedPopulation
        >>> model = nn.Linear(1, 1)
        >>> _ = nn.init.constant_(model.weight, float("nan"))
        >>> require_finite(PerturbedPopulation(model, size=2, sigma=0.1))
        Traceback (most recent call last):
        tinkering.errors.ArgumentError: population: needed finite weights, got nan in 'weight' of
        the centre.
    """
    if population.centre is not None:
        for name, value in population.centre.items():
            bad = _first_bad(value)
            if bad is not None:
                _refuse(f"{bad[1]} in {name!r} of the centre")
    elif isinstance(population, StackedPopulation):
        for name, value in population.params.items():
            bad = _first_bad(value)
            if bad is not None:
                _refuse(f"{bad[1]} in {name!r} of member {bad[0]}")


def require_finite_rest(model: nn.Module, buffers: Iterable[str], population: Population) -> None:
    """Refuse a NaN in what else members compute with. Masks may well hold infinity.

    Args:
        model: has the parameters that the population does not have.
        buffers: names of those that are used.
        population: the members.

    Raises:
        ArgumentError: (a ``ValueError``) it names the parameter or buffer.
    """
    params, held = population.like[0], population.buffers
    for name, parameter in model.named_parameters():
        bad = None if name in params else _first_bad(parameter.detach())
        if bad is not None:
            raise ArgumentError("model", "finite weights", f"{bad[1]} in {name!r}")
    own = dict(model.named_buffers())
    for name in buffers:
        values = held.get(name, own[name])
        # The sum is not a number where one of them is none, and rarely besides.
        if isnan(values.sum().item()) and values.isnan().any():
            argument = "population" if name in held else "model"
            raise ArgumentError(argument, "finite buffers", f"nan in {name!r}")


def _first_bad(values: Tensor) -> tuple[int, float] | None:
    """Return the row and the value of the first number that is not finite."""
    # A sum is one pass without a tensor of its size; only a strange one is looked into.
    if isfinite(values.sum().item()):
        return None
    bad = (~torch.isfinite(values)).nonzero()
    if not len(bad):
        return None
    return int(bad[0, 0]) if values.dim() else 0, values[tuple(bad[0])].item()


def _refuse(came: str) -> None:
    raise ArgumentError("population", "finite weights", came)
