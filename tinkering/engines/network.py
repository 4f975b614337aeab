"""What is known of a module's forward: found out once, and kept while the module is as it was."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tinkering.engines.memory import Footprint, footprint
from tinkering.graph.branch import Branch, shared_branch
from tinkering.graph.capture import NotCapturedError, capture
from tinkering.graph.copies import skeleton
from tinkering.graph.fingerprint import digest, fingerprint
from tinkering.graph.probe import LOCK, Result, probe, tried
from tinkering.graph.program import Fused, Program, name_of
from tinkering.graph.runner import Runner
from tinkering.graph.signature import Signature
from tinkering.layers.centre import Values, layer


@dataclass(frozen=True, eq=False)
class Network:
    """What a module's forward does with inputs of some kind."""

    coupled: bool
    """Whether an example's result depends on the examples beside it."""
    random: bool
    """Whether it draws random numbers, as active dropout does."""
    result: Result
    """What it returns."""
    examples: tuple[bool, ...]
    """Which of the tensors that it is called with have an axis of examples."""
    program: Program | None
    """Its steps; None where it cannot be captured."""
    reason: str
    """Why not."""
    serves_one: bool
    """Whether the steps hold for one example alone; they were captured for two."""
    other: nn.Module | None
    """A copy of the module that is to run in its stead, with the same parameters."""

    @cached_property
    def footprint(self) -> Footprint:
        """What an example takes; only where there is a program."""
        return footprint(self.steps("the module"))

    def branch(self, differing: frozenset[str]) -> Branch | None:
        """Return where members part that have values of their own of these names."""
        if differing not in self._branches:
            self._branches[differing] = shared_branch(self.steps("the module"), differing)
        return self._branches[differing]

    @cached_property
    def _branches(self) -> dict[frozenset[str], Branch | None]:
        return {}

    def steps(self, name: str) -> Program:
        """Return the module's steps.

        Raises:
            NotCapturedError: (an `UnsupportedLayerError`) there are none.
        """
        if self.program is None:
            raise NotCapturedError(name, self.reason)
        return self.program


_KEPT = 16
"""Ways in which a module was, and kinds of inputs, that are remembered."""
_Kind = tuple[Hashable, tuple[tuple[Any, ...], ...]]
_known: WeakKeyDictionary[nn.Module, dict[_Kind, Network]] = WeakKeyDictionary()


def look(
    model: nn.Module,
    signature: Signature,
    tensors: Sequence[Tensor],
    of_batch: bool = False,
) -> Network:
    """Return what a module does with inputs of a kind, for any number of examples.

    It is found out once for the module as it is (see `fingerprint`) and the shapes of an example,
    by running a copy. Several threads may ask at a time.

    Args:
        model: the module.
        signature: of the call.
        tensors: what a single member sees; as in `probe`.
        of_batch: whether BatchNorm layers are to use the batch that they see.

    Raises:
        ArgumentError: (a ``ValueError``) as `probe` does.
    """
    leaves = tuple(digest(leaf) for leaf in signature.tree.leaves)
    kind = (str(signature.tree.spec), leaves, of_batch, fingerprint(model))
    of_each = [(value.dtype, value.device, tuple(value.shape)) for value in tensors]
    with LOCK:
        kept = _known.setdefault(model, {})
        for (other, seen), network in kept.items():
            if other == kind and _are_of_a_kind(seen, of_each, network.examples):
                return network
        while len(kept) >= _KEPT:  # one that is changed all the time must not fill the memory
            del kept[next(iter(kept))]
        instead = _with_batch_statistics(model) if of_batch else None
        found = _found(instead or model, signature, tensors, instead)
        kept[kind, tuple(of_each)] = found
        return found


def _are_of_a_kind(
    seen: Sequence[tuple[Any, ...]], given: Sequence[tuple[Any, ...]], examples: Sequence[bool]
) -> bool:
    """Return whether inputs differ in nothing but the number of examples."""
    if len(seen) != len(given):
        return False
    return all(
        (dtype, device) == others[:2] and shape[skip:] == others[2][skip:]
        for (dtype, device, shape), others, skip in zip(seen, given, examples, strict=True)
    )


def _with_batch_statistics(model: nn.Module) -> nn.Module:
    """Return a copy of a module whose BatchNorm layers use the batch they see, and keep nothing."""
    module = skeleton(model)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return module


def _found(
    model: nn.Module, signature: Signature, tensors: Sequence[Tensor], other: nn.Module | None
) -> Network:
    found = probe(model, signature, tensors)
    examples = tuple(axes.examples for axes in found.signature.axes)
    known = found.result, examples
    try:
        steps = Program(capture(model, signature, tensors, found))
    except NotCapturedError as error:  # kept as well: the next try would take as long
        reason = str(error.args[1])
        return Network(found.coupled, found.random, *known, None, reason, False, other)
    coupled, random = steps.captured.coupled, steps.captured.random
    alone = not coupled or random or _serves_one(steps, model, found.signature, tensors)
    return Network(coupled, random, *known, steps, "", alone, other)


def _computed(
    values: Values, step: Fused, tile: object, x: Tensor, residual: Tensor | None
) -> Tensor:
    del tile
    return layer(step, values, torch.float32)(x, residual, False)


@torch.no_grad()
def _serves_one(
    steps: Program, model: nn.Module, signature: Signature, tensors: Sequence[Tensor]
) -> bool:
    """Return whether steps make of one example what the module makes of it."""
    copied, given = tried(model, signature, tensors)
    values = steps.captured.values(dict(copied.named_parameters()) | dict(copied.named_buffers()))
    fused = {name_of(step): partial(_computed, values, step) for step in steps.fused}
    pairs = zip(given, signature.axes, strict=True)
    one = [value[:1] if axes.examples else value for value, axes in pairs]
    args, kwargs = signature.arguments([value.clone() for value in one])
    try:
        expected = copied(*args, **kwargs)
        results = Runner(steps, values, fused).run(one)
    except (RuntimeError, ValueError):
        return False
    wanted = [
        leaf for leaf in torch.utils._pytree.tree_leaves(expected) if isinstance(leaf, Tensor)
    ]
    return len(wanted) == len(results) and all(map(_is_close, results, wanted))


def _is_close(result: Tensor, wanted: Tensor) -> bool:
    if result.numel() != wanted.numel():
        return False
    result = result.reshape(wanted.shape).to(wanted)
    return torch.allclose(result, wanted, rtol=1e-3, atol=1e-4)
