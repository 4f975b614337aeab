"""The genetic algorithm: who is chosen, who is mutated, and what a member is stored as."""

import math
import pickle
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinkering import evaluate
from tinkering.errors import TinkeringError
from tinkering.noise import Dense, LowRank, Stream, draw
from tinkering.population import Mutation
from tinkering.strategies.genetic_algorithm import GeneticAlgorithm
from tinkering.strategies.schedules import cosine


def start():
    return {"w": torch.randn(3, 4, generator=torch.Generator().manual_seed(0))}


def made(**changes):
    return GeneticAlgorithm(
        **{"population": 8, "sigma": 0.1, "parents": 3, "elites": 1, "seed": 5, **changes}
    )


def by_hand(chain, seed=5):
    """Base plus mutations, in the order of the chain."""
    total = start()["w"]
    for generation, member, sigma in chain:
        pairs = range(member, member + 1)
        noise = draw(Dense(), Stream(seed, generation), {"w": (3, 4)}, pairs)["w"]
        total = total + sigma * noise.dense()[0]
    return total


def run(strategy, generations, fitness=lambda w: -w.square().sum()):
    state = strategy.init(start())
    for _ in range(generations):
        population = strategy.ask(state)
        members = [population[i][0]["w"] for i in range(len(population))]
        state = strategy.tell(state, torch.stack([fitness(w) for w in members]))
    return state


class TestSelection:
    def test_the_first_generation_is_the_start_and_its_mutants(self):
        strategy = made()
        population = strategy.ask(strategy.init(start()))
        assert population.chains[0] == ()
        assert population.chains[1:] == tuple((Mutation(0, i, 0.1),) for i in range(1, 8))
        assert torch.equal(population[0][0]["w"], start()["w"])

    def test_the_fittest_are_parents_in_order_and_equal_ones_as_they_stand(self):
        strategy = made(parents=4)
        state = strategy.init(start())
        fitness = torch.tensor([1.0, 5.0, 3.0, 5.0, -1.0, 3.0, 3.0, 0.0])
        after = strategy.tell(state, fitness)
        chains = strategy.ask(state).chains
        assert after.parents == tuple(chains[i] for i in (1, 3, 2, 5))
        assert after.fitness == (5.0, 5.0, 3.0, 3.0)

    @pytest.mark.parametrize(
        ("parents", "elites", "children"),
        [(3, 1, [3, 2, 2]), (3, 0, [3, 3, 2]), (1, 1, [7]), (3, 3, [2, 2, 1]), (8, 7, [1])],
    )
    def test_elites_come_first_and_parents_have_as_many_children(self, parents, elites, children):
        strategy = made(parents=parents, elites=elites)
        state = strategy.tell(strategy.init(start()), torch.randn(8))
        chains = strategy.ask(state).chains
        assert chains[:elites] == state.parents[:elites]
        counts = [0] * parents
        for member, chain in enumerate(chains[elites:], elites):
            assert chain[-1] == Mutation(1, member, 0.1)
            counts[state.parents.index(chain[:-1])] += 1
        assert [count for count in counts if count] == children
        assert len(set(chains)) == 8

    def test_a_member_is_the_start_plus_its_mutations(self):
        strategy = made(sigma=cosine(0.3, 5, 0.1))
        state = run(strategy, 4)
        population = strategy.ask(state)
        for i, chain in enumerate(population.chains):
            torch.testing.assert_close(population[i][0]["w"], by_hand(chain))
        generations = [mutation.generation for mutation in population.chains[-1]]
        assert generations == sorted(set(generations))
        sigmas = [mutation.sigma for mutation in population.chains[-1]]
        assert sigmas == [cosine(0.3, 5, 0.1)(generation) for generation in generations]

    def test_the_centre_is_the_fittest_of_the_latest_generation(self):
        strategy = made()
        state = run(strategy, 4)
        population = strategy.ask(state)
        told = strategy.tell(state, torch.arange(8.0))
        assert torch.equal(strategy.centre(told)["w"], population[7][0]["w"])
        assert torch.equal(strategy.centre(strategy.init(start()))["w"], start()["w"])

    def test_with_an_elite_an_exact_fitness_never_falls(self):
        best = [run(made(), generations).fitness[0] for generations in range(1, 12)]
        assert best == sorted(best)
        assert best[-1] > best[0] + 1

    def test_an_elite_is_evaluated_anew(self):
        """So one that was lucky once is not kept for its luck."""
        strategy = made()
        state = strategy.tell(strategy.init(start()), torch.tensor([0.0] * 5 + [9.0, 1.0, 2.0]))
        lucky = state.parents[0]
        assert strategy.ask(state).chains[0] == lucky
        state = strategy.tell(state, torch.tensor([-1.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0]))
        assert lucky not in state.parents


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(NUMBERS, min_size=8, max_size=8), st.integers(1, 8))
def test_a_member_whose_fitness_is_not_finite_is_never_a_parent(fitness, parents):
    strategy = made(parents=parents)
    state = strategy.init(start())
    after = strategy.tell(state, torch.tensor(fitness, dtype=torch.float64))
    finite = [i for i, value in enumerate(fitness) if math.isfinite(value)]
    if not finite:
        assert (after.told, after.lost, after.parents) == ("no finite fitness", 1, state.parents)
        return
    chains = strategy.ask(state).chains
    chosen = [chains.index(chain) for chain in after.parents]
    assert len(chosen) == min(parents, len(finite))
    assert set(chosen) <= set(finite)
    assert [fitness[i] for i in chosen] == sorted((fitness[i] for i in finite), reverse=True)[
        :parents
    ]
    population = strategy.ask(after)
    assert all(torch.isfinite(population[i][0]["w"]).all() for i in range(8))


@pytest.mark.parametrize("noise", [Dense(), LowRank(1)], ids=str)
def test_is_evaluated_with_the_engine_for_members_one_by_one(noise):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x, y = torch.randn(60, 4, 4), torch.randint(3, (60,))
    strategy = GeneticAlgorithm(16, 0.1, parents=3, elites=1, noise=noise)
    state = strategy.init(dict(model.named_parameters()))
    fitness = [evaluate(model, strategy.ask(state), x, y, engine="sequential").fitness]
    for _ in range(6):
        state = strategy.tell(state, fitness[-1])
        fitness.append(evaluate(model, strategy.ask(state), x, y, engine="sequential").fitness)
    assert fitness[-1].max() > fitness[0].max() + 0.1
    # The elite is the centre, and as fit as it was.
    assert fitness[-1][0].item() == pytest.approx(state.fitness[0], rel=1e-5)
    assert state.fitness[0] == pytest.approx(fitness[-2].max().item(), rel=1e-5)
    model.load_state_dict(strategy.centre(state))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(x), y).item()
    assert -loss == pytest.approx(state.fitness[0], rel=1e-4)


def test_a_state_is_the_base_and_a_few_addresses():
    """50 generations of 1,000 members with 4.9 M parameters, which take 19.6 MB once."""
    base = {"weight": torch.zeros(2200, 2200), "bias": torch.zeros(60_000)}
    strategy = GeneticAlgorithm(population=1000, sigma=0.01, parents=20, elites=1)
    state = strategy.init(base)
    for _ in range(50):
        state = strategy.tell(state, torch.randn(1000))
    population = strategy.ask(state)
    tensors = {t.data_ptr(): t.nbytes for t in (*state.base.values(), *population.base.values())}
    assert sum(tensors.values()) == 4 * 4_900_000
    shared = {id(mutation) for chain in population.chains for mutation in chain}
    mutations = {id(m): m for chain in population.chains for m in chain}
    size = sum(map(sys.getsizeof, population.chains)) + sum(map(sys.getsizeof, mutations.values()))
    assert len(shared) < 1000 + 20 * 51
    assert size < 1e6  # bytes, of the chains of all members
    assert len(pickle.dumps(state.parents)) < 1e5  # bytes, of what a state adds to the base


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"population": 1}, "population: needed at least 2 members, got 1."),
        ({"sigma": 0.0}, "sigma: needed a finite number above 0, got 0.0."),
        ({"sigma": math.nan}, "sigma: needed a finite number above 0, got nan."),
        ({"parents": 0}, "parents: needed an integer from 1 to population, 8, got 0."),
        ({"parents": 9}, "parents: needed an integer from 1 to population, 8, got 9."),
        (
            {"elites": 4},
            "elites: needed an integer from 0 to 3, because they are parents, and not all "
            "members, got 4.",
        ),
        (
            {"elites": 8, "parents": 8},
            "elites: needed an integer from 0 to 7, because they are parents, and not all "
            "members, got 8.",
        ),
        ({"seed": 2**64}, f"seed: needed an integer from 0 to 2^64 - 1, got {2**64}."),
    ],
)
def test_message(arguments, message):
    with pytest.raises(ValueError, match="needed") as caught:
        made(**arguments)
    assert str(caught.value) == message
    assert isinstance(caught.value, TinkeringError)
