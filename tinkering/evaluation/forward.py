"""The door to evaluation: checks, and tiles of members that fit the processor's caches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tinkering.errors import ArgumentError
from tinkering.evaluation.capture import capture
from tinkering.evaluation.factored import FactoredForward, Rewriter
from tinkering.evaluation.fitness import Fitness, checked, negative_cross_entropy
from tinkering.evaluation.onednn import bfloat16_is_fast
from tinkering.evaluation.threads import map_in_order
from tinkering.population import PerturbedPopulation

InDims = tuple[int | None, int | None]

_IMAGES_PER_TILE = 256
"""Many images for each call, and still few enough for the processor's caches."""
_MEMBERS_PER_DRAW = 1024
"""Drawing noise costs some calls for every parameter, so a draw serves many tiles."""


@torch.no_grad()
def forward(
    model: nn.Module,
    population: PerturbedPopulation,
    x: Tensor,
    in_dims: InDims = (0, None),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the logits of every member, ``[members, batch, classes]``.

    Args:
        model: the architecture, in eval mode.
        population: the members.
        x: ``[batch, ...]``, handed to every member, with `in_dims` ``(0, None)``;
            ``[members, batch, ...]``, a batch for each, with ``(0, 0)``.
        in_dims: ``(0, None)`` or ``(0, 0)``, as in ``torch.vmap``.
        dtype: of the convolutions; `fastest_dtype` knows whether bfloat16 pays here.

    Raises:
        ArgumentError: (a ``ValueError``) the module is in train mode, or `x` and `in_dims`
            do not fit the population.
        UnsupportedLayerError: the module has a layer whose members cannot be evaluated.

    Example:
        >>> model = nn.Linear(8, 4).eval()
        >>> population = PerturbedPopulation(model, size=6, sigma=0.1)
        >>> forward(model, population, torch.zeros(5, 8)).shape
        torch.Size([6, 5, 4])
    """
    batches = _batch_for_each(model, population, x, in_dims, dtype)
    return torch.cat([logits for _, logits in _tiles(model, population, batches, dtype)])


@torch.no_grad()
def evaluate(
    model: nn.Module,
    population: PerturbedPopulation,
    x: Tensor,
    y: Tensor,
    fitness: Fitness = negative_cross_entropy,
    in_dims: InDims = (0, None),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the fitness of every member, ``[members]``; never holds all logits.

    Args:
        model: the architecture, in eval mode.
        population: the members.
        x: as in `forward`.
        y: labels, ``[batch]`` with `in_dims` ``(0, None)``, ``[members, batch]`` with ``(0, 0)``.
        fitness: ``(logits [members, batch, classes], labels [members, batch]) -> [members]``.
        in_dims: ``(0, None)`` or ``(0, 0)``, as in ``torch.vmap``.
        dtype: of the convolutions; the fitness function is given float32.

    Raises:
        ArgumentError: (a ``ValueError``) as in `forward`; or labels that do not fit `x`; or
            a fitness that is not one number a member.
        UnsupportedLayerError: the module has a layer whose members cannot be evaluated.

    Example:
        >>> model = nn.Linear(8, 4).eval()
        >>> population = PerturbedPopulation(model, size=6, sigma=0.1)
        >>> x, y = torch.zeros(5, 8), torch.zeros(5, dtype=torch.long)
        >>> evaluate(model, population, x, y).shape
        torch.Size([6])
    """
    batches = _batch_for_each(model, population, x, in_dims, dtype)
    labels = y.expand(len(population), -1) if in_dims == (0, None) and y.dim() == 1 else y
    if labels.shape != batches.shape[:2]:
        raise ArgumentError(
            "y",
            f"a label for every image of x, {list(x.shape[: 1 + (in_dims == (0, 0))])}",
            list(y.shape),
        )
    results = [
        checked(fitness, logits, labels[members])
        for members, logits in _tiles(model, population, batches, dtype)
    ]
    return torch.cat(results)


def fastest_dtype() -> torch.dtype:
    """Return bfloat16 on a processor with AMX, float32 elsewhere.

    Example:
        >>> fastest_dtype() in (torch.bfloat16, torch.float32)
        True
    """
    return torch.bfloat16 if bfloat16_is_fast() else torch.float32


def _batch_for_each(
    model: nn.Module,
    population: PerturbedPopulation,
    x: Tensor,
    in_dims: InDims,
    dtype: torch.dtype,
) -> Tensor:
    """Return `x` as ``[members, batch, ...]`` (a view), after checking the arguments."""
    if model.training:
        raise ArgumentError(
            "model", "a module in eval mode", "one in train mode", "Call model.eval()."
        )
    if dtype not in (torch.float32, torch.bfloat16):
        raise ArgumentError("dtype", "torch.float32 or torch.bfloat16", dtype)
    if x.device.type != "cpu":
        raise ArgumentError("x", "a tensor on the CPU", f"one on {x.device}")
    if x.numel() == 0:
        raise ArgumentError("x", "at least one image", list(x.shape))
    if in_dims == (0, None):
        return x.expand(len(population), *x.shape)
    if in_dims != (0, 0):
        raise ArgumentError(
            "in_dims",
            "(0, None) for one batch shared by all members or (0, 0) for a batch each",
            in_dims,
        )
    if x.dim() < 2 or len(x) != len(population):
        raise ArgumentError(
            "x", f"[members, batch, ...] with {len(population)} members", list(x.shape)
        )
    return x


def _tiles(
    model: nn.Module, population: PerturbedPopulation, batches: Tensor, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the logits of some members at a time, and which members they are."""
    captured = capture(model, batches[0])
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state |= population.params | population.buffers
    step = max(1, _IMAGES_PER_TILE // batches.shape[1])
    for start in range(0, len(population), _MEMBERS_PER_DRAW):
        draw = population[start : start + _MEMBERS_PER_DRAW].draw()
        graph = Rewriter(captured, state, draw, population.sigma, dtype).rewrite()
        run = FactoredForward(graph, draw)
        last = start + len(draw.rows)
        tiles = [slice(at, min(at + step, last)) for at in range(start, last, step)]

        def logits(tile: slice, run: FactoredForward = run, start: int = start) -> Tensor:
            return run(batches[tile], slice(tile.start - start, tile.stop - start))

        yield from zip(tiles, map_in_order(logits, tiles), strict=True)
