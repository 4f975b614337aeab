"""Members as chains of seeds, against the sum of noise that defines them."""

import copy
import pickle
import sys

import pytest
import torch
from small_nets import fitness_of
from torch import nn

from tinkering import forward
from tinkering.evaluation.entry import plan
from tinkering.noise import Dense, LowRank, Separable, Stream, draw
from tinkering.population import Mutation, Population, SeedChainPopulation
from tinkering.population import seed_chains as module

A, B, C, D = (Mutation(g, m, s) for g, m, s in ((0, 5, 0.3), (2, 1, 0.1), (2, 4, 0.1), (7, 0, 0.2)))
CHAINS = [(), (A,), (A, B), (A, C), (A, B, D), (D,), (A, C, B)]
KINDS = [Dense(), LowRank(1), Separable(2)]


def make_model():
    torch.manual_seed(7)
    layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    return nn.Sequential(*layers).eval()


def make(kind=None, model=None, chains=CHAINS):
    return SeedChainPopulation(model or make_model(), chains, kind or Dense(), seed=9)


def by_hand(model, chain, kind):
    """``base + sum_j sigma_j noise_j``, a parameter at a time, in double precision."""
    params = {}
    for name, base in model.named_parameters():
        total = base.detach().double()
        for generation, member, sigma in chain:
            stream = Stream(9, generation)
            noise = draw(kind, stream, {name: base.shape}, range(member, member + 1))[name]
            total = total + sigma * noise.dense()[0].double()
        params[name] = total
    return params


def counted(monkeypatch):
    """Where each draw of a mutation's noise is noted."""
    draws = []

    def draw_counted(kind, stream, shapes, pairs):
        draws.append((stream.generation, pairs.start))
        return draw(kind, stream, shapes, pairs)

    monkeypatch.setattr(module, "draw", draw_counted)
    return draws


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_member_is_the_base_plus_its_mutations(kind):
    model = make_model()
    population = make(kind, model)
    assert isinstance(population, Population)
    for i, chain in enumerate(CHAINS):
        params, buffers = population[i]
        for name, expected in by_hand(model, chain, kind).items():
            torch.testing.assert_close(params[name].double(), expected, rtol=1e-5, atol=1e-6)
        assert all(torch.equal(buffers[name], b) for name, b in model.named_buffers())


@pytest.mark.parametrize(
    "order", [range(7), range(6, -1, -1), (4, 2, 4, 0, 3, 6, 1, 5, 2)], ids=str
)
def test_members_are_the_same_bits_in_any_order(order):
    population = make()
    for i in order:
        alone = make(chains=[CHAINS[i]])
        assert all(torch.equal(p, alone[0][0][name]) for name, p in population[i][0].items())


def test_a_slice_has_the_members_of_the_whole():
    whole = make()
    part = whole[1:6][1:4]
    assert len(part) == 3
    for i in range(3):
        assert all(torch.equal(p, whole[2 + i][0][n]) for n, p in part[i][0].items())
    with pytest.raises(IndexError):
        part[3]
    assert torch.equal(part[-1][0]["4.bias"], whole[4][0]["4.bias"])


def test_changing_a_member_changes_no_other():
    population = make()
    for i in range(7):
        for p in population[i][0].values():
            p.zero_()
    fresh = make()
    for i in range(7):
        assert all(torch.equal(p, fresh[i][0][name]) for name, p in population[i][0].items())


def test_a_parent_is_rebuilt_once_for_children_that_lie_together(monkeypatch):
    parent = tuple(Mutation(g, 3, 0.1) for g in range(10))
    children = [parent, *((*parent, Mutation(10, m, 0.1)) for m in range(1, 20))]
    other = (A, *parent[1:])
    children += [(*other, Mutation(10, m, 0.1)) for m in range(20, 40)]
    draws = counted(monkeypatch)
    population = make(chains=children)
    for part in (population[:13], population[13:]):  # slices share the parent that is kept
        for i in range(len(part)):
            part.member(i)
    # Two parents of ten mutations, one for the elite that is not kept, and 39 children.
    assert len(draws) == 2 * 10 + 1 + 39


def test_copies_and_pickles_are_the_same_members_without_what_is_kept():
    population = make()
    size = len(pickle.dumps(population))
    population.member(4)
    assert len(pickle.dumps(population)) == size
    for twin in (copy.deepcopy(population), pickle.loads(pickle.dumps(population))):
        for i in range(7):
            assert all(torch.equal(p, twin[i][0][n]) for n, p in population[i][0].items())


@pytest.mark.parametrize("engine", ["auto", "batched", "sequential", "vmapped"])
def test_is_evaluated_as_a_loop_over_modules(engine):
    model = make_model()
    population, x = make(model=model), torch.randn(5, 2, 4, 4)
    with torch.no_grad():
        expected = torch.stack([population.materialise(i)(x) for i in range(7)])
    result = forward(model, population, x, engine=engine)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    fitness = fitness_of(model, population, x, torch.tensor([0, 1, 2, 0, 1]), engine=engine)
    assert fitness.shape == (7,)
    assert len(fitness.unique()) == 7
    assert plan(model, population, x).engine == "batched"


def test_materialise_shares_nothing_and_takes_a_module():
    model = make_model()
    made = make(model=model).materialise(0)
    held = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not held & {tensor.data_ptr() for tensor in made.state_dict().values()}
    params = {name: p.detach() for name, p in model.named_parameters()}
    population = SeedChainPopulation(params, CHAINS, Dense(), seed=9)
    assert population.buffers == {}
    expected = make(model=model).materialise(4)
    result = population.materialise(4, model)
    assert torch.equal(result[0].weight, expected[0].weight)
    with pytest.raises(ValueError, match="Call materialise"):
        population.materialise(4)


def test_other_buffers_for_the_same_members():
    population = make()
    buffers = {name: b + 1 for name, b in population.buffers.items()}
    other = population.with_buffers(buffers)[2:]
    assert torch.equal(other[0][1]["1.running_mean"], torch.ones(4))
    assert torch.equal(other[0][0]["4.weight"], population[2][0]["4.weight"])


def test_memory_does_not_grow_with_members_times_parameters():
    """1,000 members of 490,000 parameters: 2 GB as weights."""
    base = {"weight": torch.zeros(690, 700), "bias": torch.zeros(7_000)}
    parents = [tuple(Mutation(g, p, 0.01) for g in range(100)) for p in range(20)]
    chains = [(*parents[i // 50], Mutation(100, i, 0.01)) for i in range(1000)]
    population = SeedChainPopulation(base, chains, LowRank(1))
    assert sum(p.numel() for p in base.values()) == 490_000
    shared = {id(m): m for chain in chains for m in chain}
    held = sum(map(sys.getsizeof, chains)) + sum(map(sys.getsizeof, shared.values()))
    assert held < 2e6  # 0.85 MB of pointers, and 3,000 addresses
    for i in (0, 1, 500, 999):
        population.member(i)
    kept = {t.data_ptr(): t.nbytes for _, params in population._kept for t in params.values()}
    assert sum(kept.values()) == 4 * 490_000  # the latest parent and no more
    assert len(pickle.dumps(population)) < 4 * 490_000 + 1e6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chains": []}, "chains: needed a chain for each of at least one member, got none."),
        ({"seed": -1}, "seed: needed an integer from 0 to 2^64 - 1, got -1."),
    ],
)
def test_message(arguments, message):
    with pytest.raises(ValueError, match="needed") as caught:
        SeedChainPopulation(nn.Linear(2, 2), **{"chains": [()], **arguments})
    assert str(caught.value) == message
