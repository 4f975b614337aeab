"""A step of an optimiser of ``torch.optim``, as a pure function of its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from tinkering.errors import ArgumentError
from tinkering.strategies.told import all_finite

MakeOptimiser = Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]
"""``(params, learning rate) -> optimiser``, where `params` are the optimiser's groups:
``[{"params": [...], "lr": ...}, ...]``. Every class of ``torch.optim`` is one."""


_LEAST_CORRECTION = 2.0**-53
"""What Adam divides a step by at the start is 1 - beta, and that is this or more."""


def require_step(argument: str, step: int | float, dtype: torch.dtype) -> None:
    """Refuse a step that parameters of this type could not take, whatever the optimiser.

    Args:
        argument: its name, for the error.
        step: the learning rate.
        dtype: of the parameters; small ones are moved by a step in float32.

    Raises:
        ArgumentError: (a ``ValueError``) it is too large.

    Example:
        >>> require_step("learning_rate", 1e22, torch.float32)
        >>> require_step("learning_rate", 1e23, torch.float32)
        Traceback (most recent call last):
        tinkering.errors.ArgumentError: learning_rate: needed a number of at most 3.778e+22, as
        steps are taken in float32, got 1e+23.
    """
    held = torch.float32 if dtype.itemsize < torch.float32.itemsize else dtype
    most = torch.finfo(held).max * _LEAST_CORRECTION
    if step > most:
        kind = str(held).removeprefix("torch.")
        needed = f"a number of at most {most:.4g}, as steps are taken in {kind}"
        raise ArgumentError(argument, needed, step)


def fresh_optimiser(
    make: MakeOptimiser, params: Mapping[str, Tensor], rate: float, factors: Mapping[str, float]
) -> torch.optim.Optimizer:
    """Return an optimiser that has not stepped yet.

    Args:
        make: of the optimiser.
        params: what it will move.
        rate: the learning rate.
        factors: on it, of each parameter. Parameters of one factor are a group of the
            optimiser, so that their steps are computed together.

    Raises:
        ArgumentError: (a ``ValueError``) the rate is more than the parameters' type can hold.
    """
    alike: dict[float, list[Tensor]] = {}
    for name, p in params.items():
        require_step("learning_rate", rate * factors[name], p.dtype)
        alike.setdefault(factors[name], []).append(p)
    groups = [{"params": held, "lr": rate * factor} for factor, held in alike.items()]
    return make(groups, rate)


def stepped(
    make: MakeOptimiser,
    params: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    rate: float,
    factors: Mapping[str, float],
    state: Mapping[str, Any],
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return parameters and state after a step, or None where one of them were not finite.

    Args:
        make: of the optimiser.
        params: to start from; they stay as they are.
        gradient: of the fitness; the optimiser is handed its negative.
        rate: the learning rate.
        factors: on it, of each parameter.
        state: ``state_dict`` of the optimiser before the step; it stays as it is.

    Example:
        >>> params, gradient, factors = {"p": torch.zeros(1)}, {"p": torch.ones(1)}, {"p": 2.0}
        >>> state = fresh_optimiser(torch.optim.SGD, params, 0.1, factors).state_dict()
        >>> moved, state = stepped(torch.optim.SGD, params, gradient, 0.1, factors, state)
        >>> moved["p"], params["p"]
        (tensor([0.2000]), tensor([0.]))
    """
    moved = {name: p.clone() for name, p in params.items()}
    optimiser = fresh_optimiser(make, moved, rate, factors)
    rates = [group["lr"] for group in optimiser.param_groups]
    # A step writes into the tensors of the state that it is given.
    slots = {
        of: {key: _copy(value) for key, value in s.items()} for of, s in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": slots})
    # What was loaded has the rates of the step before.
    for group, now in zip(optimiser.param_groups, rates, strict=True):
        group["lr"] = now
    for name, p in moved.items():
        p.grad = -gradient[name].to(p)  # the optimiser descends
    optimiser.step()
    after = optimiser.state_dict()
    moved = {name: p.detach() for name, p in moved.items()}
    if not all_finite([*moved.values(), *_tensors(after["state"])]):
        return None
    return moved, after


def _copy(value: Any) -> Any:
    """Return a copy of a slot's tensors, of which it nearly always is one."""
    if isinstance(value, Tensor):
        return value.clone()
    return tree_map_only(Tensor, torch.clone, value)


def _tensors(slots: Mapping[Any, Mapping[str, Any]]) -> Iterator[Tensor]:
    """Yield what an optimiser has in its slots for each parameter."""
    for slot in slots.values():
        yield from (value for value in slot.values() if isinstance(value, Tensor))
