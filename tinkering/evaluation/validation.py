"""The arguments of the public entry, and what is wrong with them, each in one message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from tinkering.engines.rating import Targets
from tinkering.engines.table import names_for
from tinkering.errors import ArgumentError
from tinkering.evaluation.batchnorm import (
    Policy,
    Reference,
    norms_in_train_mode,
    reference_statistics,
)
from tinkering.evaluation.fit import require_device, require_fit, require_plain_call
from tinkering.graph.copies import first_line, independent_copy
from tinkering.graph.signature import Batch, InDims, Signature, sign, with_members
from tinkering.graph.tree import AS_TENSOR, Path, Tree, tree_of
from tinkering.population import PerturbedPopulation, Population
from tinkering.required import kind_of


@dataclass(frozen=True)
class Options:
    """How a population is to be evaluated: what `bind`, `forward` and the others share."""

    dtype: torch.dtype
    engine: str
    norm: Policy
    randomness: str
    memory: int | None


def with_reference(model: nn.Module, population: Population, norm: Reference) -> Population:
    """Return the population with the centre's statistics on the policy's images."""
    if population.centre is None:
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
        statistics = reference_statistics(model, own | dict(population.centre), norm.images)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ArgumentError(
            "norm",
            f"a Reference to images that {type(model).__name__} takes",
            f"{list(norm.images.shape)} of {norm.images.dtype} ({first_line(error)})",
        ) from error
    return population.with_buffers(statistics)


def require_second_example(structure: nn.Module, batch: Batch) -> None:
    """Refuse one example where a norm would take the variance of one number."""
    tensors = [value.clone() for value in batch.of_member(0)]
    args, kwargs = batch.signature.arguments(tensors)
    try:
        independent_copy(structure, lambda value: value)(*args, **kwargs)
    except ValueError as error:
        raise ArgumentError(
            batch.signature.tree.names()[0],
            "at least two examples a member, for norms that use the statistics of the batch",
            f"one ({first_line(error)})",
        ) from error


def signed(
    args: Any, kwargs: Mapping[str, Any] | None, in_dims: InDims, kwargs_in_dims: Any, root: str
) -> tuple[Signature, list[Tensor]]:
    """Return the signature of a call and its tensors.

    Args:
        args: a tuple of positional arguments, or the only one.
        kwargs: keyword arguments.
        in_dims: of the population and of `args`.
        kwargs_in_dims: of `kwargs`.
        root: what `args` is called in messages.

    Raises:
        ArgumentError: (a ``ValueError``) one of these cannot be used.
    """
    is_one = not isinstance(args, tuple)
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ArgumentError("kwargs", "keyword arguments by name", kind_of(kwargs))
    if not isinstance(in_dims, tuple) or len(in_dims) != 2 or in_dims[0] != 0:
        needed = "(0, None), (0, 0), or (0, tree), the axes of the population and of the inputs"
        raise ArgumentError("in_dims", needed, repr(in_dims))
    signature, tensors = sign((args,) if is_one else args, kwargs or {}, root, is_one)
    of_args = (in_dims[1],) if is_one else in_dims[1]
    return with_members(signature, of_args, kwargs_in_dims), tensors


def check(model: nn.Module, population: Population, tensors: Batch, options: Options) -> None:
    """Refuse arguments that cannot be used."""
    require_plain_call()
    _check_options(options, names_for(population))
    trained = norms_in_train_mode(model)
    if trained and options.norm != "batch":
        raise ArgumentError(
            "model",
            "BatchNorm layers in eval mode, because members cannot train the running statistics "
            "of one module",
            f"{trained[0]!r} in train mode",
            'Call model.eval(), or pass norm="batch" for the statistics of each member\'s batch.',
        )
    if options.engine == "factored" and not isinstance(population, PerturbedPopulation):
        raise ArgumentError(
            "engine",
            '"batched", "sequential" or "vmapped" for members that share no centre',
            f'"factored" for a {type(population).__name__}',
        )
    require_fit(model, population)
    require_device(population, tensors)


def _check_options(options: Options, engines: tuple[str, ...]) -> None:
    if options.norm not in ("running", "batch") and not isinstance(options.norm, Reference):
        raise ArgumentError("norm", '"running", "batch" or a Reference', _said(options.norm))
    if options.engine not in ("auto", *engines):
        raise ArgumentError("engine", f"one of auto, {', '.join(engines)}", repr(options.engine))
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


def targets_of(targets: Any, in_dims: Any, batch: Batch, knows_examples: bool) -> Targets:
    """Return what members are compared with.

    Args:
        targets: a tree.
        in_dims: 0 where each member has its own, or a tree of 0 and None; "inputs" as they have.
        batch: what members see.
        knows_examples: whether that has an axis of examples, as targets must have then.

    Raises:
        ArgumentError: (a ``ValueError``) a tensor does not fit the inputs; it names the leaf.
    """
    tree, tensors = tree_of((targets,), _target_label)
    if any(isinstance(leaf, np.ndarray | list) for leaf in tree.leaves):
        at = next(i for i, leaf in enumerate(tree.leaves) if isinstance(leaf, np.ndarray | list))
        raise ArgumentError(tree.labels()[at], "a tensor", kind_of(tree.leaves[at]), AS_TENSOR)
    if not tensors:
        return Targets(_only(tree), (), ())
    signature, _ = sign((targets,), {}, "targets", is_one=True)
    if in_dims == "inputs":
        in_dims = None if batch.is_shared else 0
    own = tuple(
        axes.members for axes in with_members(signature, (in_dims,), None, "targets_in_dims").axes
    )
    for label, value, is_own in zip(tree.names(), tensors, own, strict=True):
        needed = [batch.members] * is_own + [batch.examples] * knows_examples
        if list(value.shape[: len(needed)]) != needed:
            said = f"a target for every example of the inputs, {needed}"
            raise ArgumentError(label, said, list(value.shape))
    return Targets(_only(tree), tuple(tensors), own)


def _only(tree: Tree) -> Tree:
    """Return the tree of the only element of a tuple."""
    return replace(tree, spec=tree.spec.child(0), label=lambda path: _target_label((None, *path)))


def _target_label(path: Path) -> str:
    return "targets" + _pytree.keystr(tuple(path[1:]))


def _said(value: object) -> str:
    return repr(value) if value is None or isinstance(value, str) else f"a {type(value).__name__}"
