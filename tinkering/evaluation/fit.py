"""A population has to fit its module; where it does not, it is refused by the name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tinkering.errors import ArgumentError
from tinkering.graph.signature import Batch
from tinkering.population import Population
from tinkering.required import kind_of


def require_kinds(model: object, population: object) -> None:
    """Refuse a model that is no module, and a population that is none.

    Raises:
        ArgumentError: (a ``ValueError``) as it says.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError("model", "a module", kind_of(model))
    if not isinstance(population, Population):
        advice = "StackedPopulation and PerturbedPopulation make one of modules or parameters."
        raise ArgumentError("population", "a Population", kind_of(population), advice)


def require_plain_call() -> None:
    """Refuse to evaluate where PyTorch was told to compute something else than modules say.

    Raises:
        ArgumentError: (a ``ValueError``) under ``torch.autocast`` on the CPU, or under
            ``torch.nn.utils.parametrize.cached``, which keeps one member's weights for all.
    """
    if torch.is_autocast_enabled("cpu"):
        needed, advice = "a call outside torch.autocast", "dtype=torch.bfloat16 is the way here."
        raise ArgumentError("dtype", needed, "one inside", advice)
    if getattr(parametrize, "_cache_enabled", 0):
        raise ArgumentError("model", "a call outside parametrize.cached", "one inside")


def require_fit(model: nn.Module, population: Population) -> None:
    """Refuse a population with a parameter or buffer that the module has not, or not so.

    A parameter that nobody looks up would change nothing: all members would be alike.

    Raises:
        ArgumentError: (a ``ValueError``) it names the parameter or buffer.

    Example:
        >>> from tinkering.population import PerturbedPopulation
        >>> population = PerturbedPopulation(nn.Sequential(nn.Linear(1, 1)), size=2, sigma=0.1)
        >>> require_fit(nn.Linear(1, 1), population)
        Traceback (most recent call last):
        tinkering.errors.ArgumentError: population: needed only parameters that the model has, got
        '0.weight'. The model has 'weight', 'bias'.
    """
    require_state_fits(model, *population.like)


def require_state_fits(
    model: nn.Module, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> None:
    """Refuse parameters or buffers that the module has not, or not so, as `require_fit` does."""
    held: tuple[dict[str, Tensor], ...]
    held = dict(model.named_parameters()), dict(model.named_buffers())
    given = params, buffers
    for kind, member, own in zip(("parameters", "buffers"), given, held, strict=True):
        for name, value in member.items():
            if name not in own:
                raise ArgumentError(
                    "population", f"only {kind} that the model has", repr(name), _names(kind, own)
                )
            if own[name].shape != value.shape:
                needed = f"{name!r} of shape {list(own[name].shape)}, as the model's"
                raise ArgumentError("population", needed, list(value.shape))


def require_device(population: Population, batch: Batch) -> None:
    """Refuse inputs on another device than the members'.

    Raises:
        ArgumentError: (a ``ValueError``) they are.
    """
    value = next(iter(population.like[0].values()), None)
    for at, given in enumerate(batch.tensors):
        if value is not None and given.device != value.device:
            label, needed = batch.signature.tree.names()[at], f"a tensor on {value.device}"
            raise ArgumentError(label, f"{needed}, as the population's", given.device)


def _names(kind: str, own: Mapping[str, object]) -> str:
    names = [*map(repr, list(own)[:3]), *["..."] * (len(own) > 3)]
    return f"The model has {', '.join(names) or f'no {kind}'}."
