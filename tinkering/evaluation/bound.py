"""A module and a population, bound: what does not depend on a call's numbers is done once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tinkering.engines.evaluation import Evaluation
from tinkering.engines.job import Job
from tinkering.engines.network import Network, look
from tinkering.engines.planning import Plan
from tinkering.engines.rating import Fitness, Rater
from tinkering.engines.table import Engine, prepared
from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.evaluation.batchnorm import Policy, Reference
from tinkering.evaluation.finite import require_finite, require_finite_rest
from tinkering.evaluation.fit import require_kinds
from tinkering.evaluation.fitness import negative_cross_entropy
from tinkering.evaluation.validation import (
    Options,
    check,
    require_second_example,
    signed,
    targets_of,
    with_reference,
)
from tinkering.graph.signature import Axes, Batch, InDims, Signature, batch_of
from tinkering.population import CountedPopulation, Members, Population


@torch.no_grad()
def bind(
    model: nn.Module,
    population: Population,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    in_dims: InDims = (0, None),
    kwargs_in_dims: Any = None,
    dtype: torch.dtype = torch.float32,
    memory: int | None = None,
    engine: str = "auto",
    norm: Policy = "running",
    randomness: str = "error",
) -> Bound:
    """Return a module and a population as one callable, to be called with many inputs.

    What does not depend on the numbers in the inputs is done here: the forward is captured and
    checked, an engine is chosen, weights are folded, cast and packed; and the members' noise, or
    their packed weights, are made with the first call and kept where they fit `memory`.

    Args:
        model: the architecture; parameters that the population does not have are its own.
        population: the members.
        args: examples of the positional arguments, as for ``torch.export.export``: a tuple, or the
            only argument. Trees of tensors are taken (``torch.utils._pytree``).
        kwargs: examples of the keyword arguments.
        in_dims: of the population and of `args`, as in ``torch.vmap``: ``(0, None)`` hands the
            same inputs to every member, ``(0, 0)`` each its own, ``[members, batch, ...]``;
            a tree says so for each argument: ``(0, (None, 0))``.
        kwargs_in_dims: likewise of `kwargs`: None for shared ones, 0, or a dict of these.
        dtype: of the computation: float32 or bfloat16; `fastest_dtype` knows what pays here.
        memory: bytes that may be used beside the population and the outputs; half of what is
            free by default.
        engine: ``"factored"``, ``"batched"``, ``"sequential"``, ``"vmapped"``, or ``"auto"`` for
            the one that is expected to be the fastest.
        norm: which statistics BatchNorm layers use: ``"running"``, ``"batch"`` (each member's
            batch) or a `Reference` (the centre's on some examples).
        randomness: what active dropout draws: ``"same"`` or ``"different"`` numbers for the
            members; with ``"error"`` it is refused.

    Raises:
        ArgumentError: (a ``ValueError``) one of these cannot be used; or a member's weights
            are not finite.
        UnsupportedLayerError: the engine that was asked for cannot evaluate the module.

    Example:
        >>> from tinkering import PerturbedPopulation
        >>> policy = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> population = PerturbedPopulation(policy, size=6, sigma=0.1)
        >>> bound = bind(policy, population, torch.zeros(6, 1, 4), in_dims=(0, 0))
        >>> for step in range(3):  # each member has a state of its own
        ...     actions = bound(torch.randn(6, 1, 4)).argmax(-1)
        >>> actions.shape
        torch.Size([6, 1])
    """
    options = Options(dtype, engine, norm, randomness, memory)
    require_kinds(model, population)
    signature, tensors = signed(args, kwargs, in_dims, kwargs_in_dims, "args")
    return bound_to(model, population, signature, tensors, options, may_keep=True)


class Bound:
    """A module and a population that can be called with inputs; made by `bind`.

    It has the weights that module and population had when it was bound. It follows no later
    change of either: `rebind` binds again.
    """

    def __init__(
        self, engine: Engine, options: Options, population: Population, may_keep: bool
    ) -> None:
        self._engine, self._options, self._given = engine, options, population
        self._may_keep = may_keep
        self._job = engine.job
        self._plans: dict[tuple[int, bool], Plan] = {}
        self._alone: Engine | None = None

    @property
    def population(self) -> Population:
        """The members."""
        return self._given

    @property
    def plan(self) -> Plan:
        """How a call with a batch of the bound size is evaluated: engine, memory, and why."""
        return self._planned(self._job.batch, keeps_outputs=True)

    @property
    def evaluation_plan(self) -> Plan:
        """How `evaluate` does it, which holds one scalar per member, and not all outputs."""
        return self._planned(self._job.batch, keeps_outputs=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module returns, every tensor with a leading ``[members]``.

        Args:
            *args: inputs of the shapes that were bound; the number of examples may differ.
            **kwargs: likewise.

        Returns:
            The tree that the module returns; floating-point tensors are float32. The caller owns
            them.

        Raises:
            ArgumentError: (a ``ValueError``) the inputs have another structure, shape, dtype or
                device; it names the leaf.
        """
        with torch.no_grad():
            batch = self._batch(self._job.batch.signature.tensors(args, kwargs))
            plan = self._planned(batch, keeps_outputs=True)
            parts = list(self._engine_for(batch).outputs(batch, plan))
            tensors = parts[0][1]
            if len(parts) > 1:
                tensors = [torch.cat(each) for each in zip(*(p for _, p in parts), strict=True)]
            return self._job.network.result.tree.filled(tensors)

    @torch.no_grad()
    def evaluate(
        self,
        inputs: Any,
        targets: Any,
        fitness: Fitness = negative_cross_entropy,
        *,
        kwargs: Mapping[str, Any] | None = None,
        targets_in_dims: Any = "inputs",
        planned: Plan | None = None,
    ) -> Evaluation:
        """Return what the members are worth; never holds all outputs.

        Args:
            inputs: the positional arguments, as `bind` was given them.
            targets: a tree of tensors, ``[batch, ...]``, or ``[members, batch, ...]`` where each
                member has inputs of its own.
            fitness: ``(outputs, targets) -> [members]``, both with a leading ``[members]``. It is
                called on some members at a time, so it rates each by itself.
            kwargs: the keyword arguments.
            targets_in_dims: 0 where each member has targets of its own, None where all share
                them, or a tree of these; as the inputs by default.
            planned: the plan of a population of which this is a part, so that its members'
                fitness has the bits that it has there.

        Raises:
            ArgumentError: (a ``ValueError``) inputs are not those that were bound; targets do not
                fit them; or the fitness is not one scalar per member, or not the member's alone.
        """
        args = inputs if isinstance(inputs, tuple) else (inputs,)
        batch = self._batch(self._job.batch.signature.tensors(args, kwargs or {}))
        knows = any(axes.examples for axes in batch.signature.axes)
        compared = targets_of(targets, targets_in_dims, batch, knows)
        rater = Rater(fitness, self._job.network.result.tree.filled, compared)
        plan = planned or self._planned(batch, keeps_outputs=False)
        return self._engine_for(batch).evaluate(batch, rater, plan)

    @torch.no_grad()
    def rebind(self, population: Population) -> Bound:
        """Return another population bound in the same way: graph, checks and plan are kept.

        The module's own parameters and buffers are read anew as well. A population of another
        size or kind is planned anew.

        Raises:
            ArgumentError: (a ``ValueError``) as `bind` does.
        """
        job, options = self._job, self._options
        require_kinds(job.source, population)
        batch = replace(job.batch, members=_count(population))
        used = _ready(job.source, population, batch, options)
        network = _look(job.source, job.batch.signature, job.batch, options)
        if network is not job.network or population.likeness != self._given.likeness:
            call = job.batch.signature, job.batch.for_members(_count(population))
            return bound_to(job.source, population, *call, options, self._may_keep)
        if isinstance(used, Members):
            used = used.snapshot()
        again = replace(job, population=used)
        try:
            engine = prepared(again, self._engine.name, self._engine.reason)
        except UnsupportedLayerError:  # what tells members apart may be found in some weights only
            engine = prepared(again, options.engine)
        bound = Bound(engine, options, population, self._may_keep)
        if engine.name != self._engine.name:
            return bound
        bound._plans = self._plans
        return bound

    def __repr__(self) -> str:
        kind = type(self._given).__name__
        return f"<{type(self._job.source).__name__} bound to a {kind}>\n{self.plan}"

    def _batch(self, tensors: Any) -> Batch:
        """Return a call's inputs, which have to be of the kind that was bound."""
        bound = self._job.batch
        for at, (value, known, axes) in enumerate(
            zip(tensors, bound.tensors, bound.signature.axes, strict=True)
        ):
            skip = axes.members + axes.examples
            if value.shape[skip:] != known.shape[skip:] or value.dim() != known.dim():
                label = bound.signature.tree.names()[at]
                raise ArgumentError(label, _shape(known, axes), list(value.shape))
            if value.dtype is not known.dtype or value.device != known.device:
                label = bound.signature.tree.names()[at]
                needed = f"{known.dtype} on {known.device}, as it was bound"
                raise ArgumentError(label, needed, f"{value.dtype} on {value.device}")
        return batch_of(bound.signature, tensors, bound.members)

    def _planned(self, batch: Batch, keeps_outputs: bool) -> Plan:
        """Return how a batch of this size is evaluated, found out once for each."""
        key = batch.examples, keeps_outputs
        if key not in self._plans:
            engine, budget = self._engine_for(batch), self._options.memory
            self._plans[key] = engine.plan(batch, budget, keeps_outputs, self._may_keep)
        return self._plans[key]

    def _engine_for(self, batch: Batch) -> Engine:
        """Return what evaluates a batch: one example alone may be computed in another way."""
        if batch.examples == self._job.batch.examples or not self._job.network.coupled:
            return self._engine
        job = _for_examples(self._job, batch)
        if job.program is self._job.program:
            return self._engine
        if self._alone is None:
            self._alone = prepared(job, self._engine.name, self._engine.reason)
        return self._alone


def bound_to(
    model: nn.Module,
    population: Population,
    signature: Signature,
    tensors: Any,
    options: Options,
    may_keep: bool,
) -> Bound:
    """Return what `bind` returns, for a call that has its signature.

    Args:
        model: as in `bind`.
        population: as in `bind`.
        signature: of the call.
        tensors: its examples.
        options: how to evaluate.
        may_keep: whether what is made of members may stay for the next call.
    """
    batch = batch_of(_unread(signature, tensors), tensors, _count(population))
    used = _ready(model, population, batch, options)
    if may_keep and isinstance(used, Members):
        used = used.snapshot()
    network = _look(model, signature, batch, options)
    axes = tuple(
        Axes(given.members, examples)
        for given, examples in zip(signature.axes, network.examples, strict=True)
    )
    batch = batch_of(replace(signature, axes=axes), tensors, _count(population))
    job = Job(
        model=network.other or model,
        source=model,
        population=used,
        batch=batch,
        network=network,
        program=network.program,
        not_captured=network.reason,
        dtype=options.dtype,
        randomness=options.randomness,
        keeps_own=may_keep,
    )
    engine = prepared(_for_examples(job, batch), options.engine)
    return Bound(engine, options, population, may_keep)


def _ready(model: nn.Module, population: Population, batch: Batch, options: Options) -> Population:
    """Return the population with the statistics that its members use; its weights are checked."""
    check(model, population, batch, options)
    if isinstance(options.norm, Reference):
        population = with_reference(model, population, options.norm)
    require_finite(population)
    held = [name for name, _ in model.named_buffers()] if options.norm != "batch" else []
    require_finite_rest(model, held, population)
    return population


def _look(model: nn.Module, signature: Signature, batch: Batch, options: Options) -> Network:
    one = batch.of_member(0)
    return look(model, signature, one, of_batch=options.norm == "batch")


def _for_examples(job: Job, batch: Batch) -> Job:
    """Return the job for a batch: one example alone may be computed in another way."""
    network = job.network
    steps, reason = network.program, network.reason
    if batch.examples == 1 and network.coupled and any(network.examples):
        require_second_example(job.model, batch)
        if steps is not None and not network.serves_one:
            steps, reason = None, "an example alone is computed in another way"
    return replace(job, program=steps, not_captured=reason)


def _unread(signature: Signature, tensors: Sequence[Tensor]) -> Signature:
    """Return a signature of which nothing is known but which tensors are members' own."""
    pairs = list(zip(tensors, signature.axes, strict=True))
    first = next((at for at, (v, axes) in enumerate(pairs) if v.dim() > axes.members), 0)
    axes = tuple(Axes(each.members, at == first) for at, each in enumerate(signature.axes))
    return replace(signature, axes=axes)


def _count(population: Population) -> int:
    """Return how many members see inputs of their own; activations are perturbed on one centre."""
    return len(population) if isinstance(population, CountedPopulation) else 1


def _shape(known: Tensor, axes: Axes) -> str:
    skip = axes.members + axes.examples
    words = [*["members"] * axes.members, *["batch"] * axes.examples]
    return f"[{', '.join([*words, *map(str, known.shape[skip:])])}], as it was bound"
