"""Every public way in, over modules that it could go wrong on: equal to a loop, and nothing moved.

The loop is over members as modules of their own. What is handed in is compared bit by bit before
and after: inputs, labels, the module with its attributes, and the population.
"""

from functools import cache
from itertools import product

import pytest
import torch
from awkward import REFUSED, TAKEN, with_old_weight_norm
from small_nets import BATCH_NORM, fitness_of, loop
from torch import Tensor, nn
from torch.utils import _pytree

from tinkering import functional as parallel
from tinkering.engines.table import ENGINES
from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.evaluation.entry import evaluate, forward, plan
from tinkering.graph.copies import attributes, independent_copy, skeleton
from tinkering.models import get_parallel_forward_pass_fn
from tinkering.noise import Dense, LowRank, Stream
from tinkering.population import (
    Mutation,
    PerturbedActivations,
    PerturbedPopulation,
    SeedChainPopulation,
    StackedPopulation,
)

SIZE = 4
names = pytest.mark.parametrize("name", TAKEN)


@cache
def module(name):
    """A network in eval mode, whose statistics are not those of a new one."""
    torch.manual_seed(0)
    build, _ = TAKEN[name]
    model = build()
    for layer in model.modules():
        if isinstance(layer, BATCH_NORM):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return model if name == "train mode" else model.eval()


@cache
def population(name, kind):
    model = module(name)
    if kind == "stacked":
        torch.manual_seed(1)
        members = [independent_copy(model, lambda value: value) for _ in range(SIZE)]
        with torch.no_grad():
            for member in members:
                for parameter in member.parameters():
                    parameter.add_(torch.randn_like(parameter) / 2)
        return StackedPopulation.from_modules(members)
    if kind == "chains":
        chains = [tuple(Mutation(g, i, 0.5) for g in range(2)) for i in range(SIZE)]
        return SeedChainPopulation(model, chains)
    if kind == "part":  # what others make of it is each member's own, too
        evolving = {n: p.detach() for n, p in model.named_parameters() if p.numel()}
        first = next(iter(evolving))
        return PerturbedPopulation({first: evolving[first]}, SIZE, 0.5, seed=1)
    noise = {"rank 1": LowRank(1), "dense": Dense()}[kind]
    return PerturbedPopulation(model, SIZE, 0.5, noise, seed=1)


def inputs(name, own, batch):
    generator = torch.Generator().manual_seed(batch)
    _, shape = TAKEN[name]
    return torch.randn(*([SIZE] if own else []), batch, *shape, generator=generator)


@cache
def expected(name, kind, own, batch):
    """What a loop over members gives, ``[members, batch, ...]`` also where it squeezes an axis."""
    x = inputs(name, own, batch)
    members = population(name, kind)
    rows = []
    for i in range(SIZE):
        member = members.materialise(i, module(name))
        with torch.no_grad():
            rows.append(member((x[i] if own else x).clone()))
    result = torch.stack(rows)
    if batch == 1:
        result = result.reshape(SIZE, 1, *expected(name, kind, False, 3).shape[2:])
    return result


def held(thing):
    """Everything in a module or a population, bit by bit: tensors as they are, others as text."""
    if isinstance(thing, nn.Module):
        state = {**dict(thing.named_parameters()), **dict(thing.named_buffers())}
        state |= dict(attributes(thing))
    else:
        # A chain keeps the parent that it came past.
        state = vars(thing) | {"template": None, "_kept": None}
    leaves = _pytree.tree_leaves_with_path(state)
    return [(_pytree.keystr(path), v.clone() if isinstance(v, Tensor) else v) for path, v in leaves]


def same(before, after):
    if isinstance(before, Tensor):
        return torch.equal(before.to_dense(), after.to_dense())
    return before is after or before == after


def hostile(logits, labels):
    """A fitness that writes to whatever it is given."""
    result = logits.flatten(1).sum(1) + labels.sum(1)
    logits.zero_()
    labels.zero_()
    return result


def compared(result, wanted, dtype):
    assert result.shape == wanted.shape
    scale = wanted.abs().max()
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    assert (wanted[0] - wanted[1]).abs().max() > 1e-3 * scale, "members are alike"
    assert (result - wanted).abs().max() <= tolerance * scale


@pytest.mark.filterwarnings("ignore:members share a centre, but")
@names
@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        *product(["rank 1"], ["auto", *ENGINES]),
        *product(["part"], ENGINES),
        *product(["dense"], ["batched", "factored", "sequential"]),
        *product(["stacked"], ["auto", "batched", "sequential", "vmapped"]),
        *product(["chains"], ["batched", "sequential"]),
    ],
)
def test_equal_to_the_loop_and_nothing_is_moved(name, kind, engine):
    model, members = module(name), population(name, kind)
    before = held(model) + held(members)
    served = 0
    for own, batch, dtype in (
        (False, 3, torch.float32),
        (True, 1, torch.float32),
        (True, 2, torch.bfloat16),
    ):
        x, wanted = inputs(name, own, batch), expected(name, kind, own, batch)
        y = torch.arange(batch).expand(SIZE, -1).clone() if own else torch.arange(batch)
        given = x.clone(), y.clone()
        rating = hostile(wanted.clone(), y.clone().expand(SIZE, -1).clone())
        options = {"in_dims": (0, 0) if own else (0, None), "dtype": dtype, "engine": engine}
        try:
            result = forward(model, members, x, **options)
        except UnsupportedLayerError:
            assert engine in ("batched", "factored", "vmapped")
            continue
        served += 1
        compared(result, wanted, dtype)
        rated = fitness_of(model, members, x, y, hostile, **options)
        tolerance = (1e-4 if dtype == torch.float32 else 0.1) * rating.abs().max()
        assert (rated - rating).abs().max() <= tolerance
        assert plan(model, members, x, **options).engine in ENGINES
        assert torch.equal(x, given[0])
        assert torch.equal(y, given[1])
    for (path, old), (_, new) in zip(before, held(model) + held(members), strict=True):
        assert same(old, new), path
    assert served or engine in ("batched", "factored", "vmapped")


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@names
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("large", [0, 24 << 20])
def test_the_parallel_forward_is_what_vmap_is_or_the_loop(monkeypatch, name, own, large):
    """With values of whatever size through an engine, or through vmap where those are small."""
    monkeypatch.setattr(parallel, "_LARGE", large)
    monkeypatch.setattr(parallel, "_may_pay", lambda *_: not large)
    model, members = module(name), population(name, "stacked")
    remembers = name in ("remembered", "memory by number of images")
    if remembers:  # an attribute that a forward assigns under vmap is of no use after it
        model = skeleton(model)
    x = inputs(name, own, 3)
    given = x.clone()
    before = held(members) if remembers else held(members) + held(model)
    state = members.params, members.buffers
    if large:  # vmap writes into what it is given, where the forward does
        state = _pytree.tree_map(torch.clone, state)
    call = get_parallel_forward_pass_fn(model, (0, 0) if own else (0, None))
    try:
        with torch.no_grad():
            copied = _pytree.tree_map(torch.clone, state)
            wanted = plain_vmap(skeleton(module(name)), own)(copied, x.clone())
    except (RuntimeError, ValueError):
        wanted = None
    try:
        with torch.no_grad():
            result = call(state, x)
    except (RuntimeError, ValueError):
        assert wanted is None
    else:
        # What vmap makes of strides, say, is something else than what the members make.
        if large and wanted is not None:
            torch.testing.assert_close(result, wanted)
        else:
            compared(result, expected(name, "stacked", own, 3), torch.float32)
    assert torch.equal(x, given)
    after = held(members) if remembers else held(members) + held(model)
    for (path, old), (_, new) in zip(before, after, strict=True):
        assert same(old, new), path


def plain_vmap(model, own):
    def one(state, x):
        return torch.func.functional_call(model, state, (x,))

    return torch.func.vmap(one, in_dims=(0, 0 if own else None), randomness="same")


@names
def test_perturbed_activations_leave_everything_as_it_was(name):
    """Their numbers are compared with loops in tests/evaluation/test_perturbed_activations.py."""
    model, x, y = module(name), inputs(name, False, 3), torch.arange(3)
    evolving = {n: p.detach().clone() for n, p in model.named_parameters() if p.numel()}
    members = PerturbedActivations(evolving, 2, 0.1, Stream(0, 0), lambda f: f - f.mean(1, True))
    before, given = held(model), (x.clone(), y.clone())
    try:
        scores = evaluate(model, members, x, y, hostile)
    except UnsupportedLayerError:
        pass
    else:
        assert torch.isfinite(scores.fitness).all()
    assert torch.equal(x, given[0])
    assert torch.equal(y, given[1])
    for (path, old), (_, new) in zip(before, held(model), strict=True):
        assert same(old, new), path


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_a_forward_that_changes_its_module_is_refused(name, engine):
    build, said = REFUSED[name]
    torch.manual_seed(0)
    model = build() if name == "spectral norm" else build().eval()
    members = PerturbedPopulation(model, 2, 0.1)
    before = held(model)
    with pytest.raises(ArgumentError) as caught:
        forward(model, members, torch.randn(3, 4), engine=engine)
    assert str(caught.value) == (
        f"model: needed a forward that leaves the module as it was, got {type(model).__name__}, "
        f"which changes {said}. Members share one module, so take its state as an input and return "
        "it: output, state = model(x, state). BatchNorm and spectral_norm: call model.eval()."
    )
    for (path, old), (_, new) in zip(before, held(model), strict=True):
        assert same(old, new), path


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_a_hook_makes_of_others_are_no_state():
    """An attribute is assigned in every forward, and is the same each time."""
    torch.manual_seed(0)
    model = with_old_weight_norm().eval()
    members = PerturbedPopulation(model, SIZE, 0.5)
    x = torch.randn(3, 4)
    compared(forward(model, members, x), loop(members, x), torch.float32)
    assert "aten._weight_norm.default has no form" in str(plan(model, members, x))
