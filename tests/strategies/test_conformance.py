"""What every strategy keeps to. A new one joins as a row of `STRATEGIES`."""

import copy
import math
import operator
import pickle
from dataclasses import fields, is_dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from problems import PROBLEMS, evolution, stacked
from problems import run as solve
from torch import nn

from tinkering import evaluate
from tinkering.engines.evaluation import Effect, Evaluation
from tinkering.noise import Dense, LowRank, Separable
from tinkering.population import CountedPopulation
from tinkering.strategies.activations import Activations
from tinkering.strategies.evolution_strategy import EvolutionStrategy
from tinkering.strategies.feedback import Feedback
from tinkering.strategies.genetic_algorithm import GeneticAlgorithm
from tinkering.strategies.groups import Group
from tinkering.strategies.schedules import cosine


def evolution_strategy(**own):
    settings = {"sigma": 0.05, "learning_rate": 0.2, "averaging": 0.8, "decay": 10.0}
    return lambda **changes: evolution(**{"population": 40, **settings, **own, **changes})


def genetic_algorithm(**own):
    settings = {"population": 40, "sigma": cosine(0.2, 50, 0.02), "parents": 2, "elites": 1}
    return lambda **changes: GeneticAlgorithm(**{**settings, **own, **changes})


def activations(perturb, **own):
    settings = {"learning_rate": 0.1, "averaging": 0.8, "decay": 10.0}

    def make(population=MEMBERS, **changes):
        del population  # how many there are depends on what they are evaluated on
        return EvolutionStrategy(perturb, **{**settings, **own, **changes})

    return make


STRATEGIES = {
    "evolution strategy": evolution_strategy(noise=Dense()),
    "evolution strategy, ranks, separable noise": evolution_strategy(
        shaping="rank", noise=Separable(1)
    ),
    "evolution strategy, signs": evolution_strategy(shaping="sign", noise=LowRank(1)),
    "evolution strategy, raw fitness": evolution_strategy(
        shaping="raw", noise=Dense(), optimiser=partial(torch.optim.Adam, betas=(0.9, 0.9))
    ),
    "evolution strategy, SGD": evolution_strategy(
        optimiser=partial(torch.optim.SGD, momentum=0.8), learning_rate=0.05
    ),
    "evolution strategy, groups": evolution_strategy(noise=Dense(), antithetic=False, group=8),
    "evolution strategy, groups and ranks": evolution_strategy(
        shaping="rank", antithetic=False, group=4
    ),
    "evolution strategy, factors": evolution_strategy(
        groups={"vector": Group(sigma=0.5, step=1.5)}
    ),
    "genetic algorithm": genetic_algorithm(),
}
MEMBERS = 8
MODEL = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)).eval()
EVALUATIONS = 2000
TARGET = 0.01
"""Of the start's distance to the maximum, what every strategy leaves after that many."""

counted = pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES.keys())
"""Strategies whose populations have members that can be counted."""
STRATEGIES_OF_ALL = {
    **STRATEGIES,
    "evolution strategy, activations": activations(Activations(samples=4)),
    "evolution strategy, feedback": activations(Feedback()),
}
every = pytest.mark.parametrize("make", STRATEGIES_OF_ALL.values(), ids=STRATEGIES_OF_ALL.keys())


def start():
    """Parameters of several shapes, far from zero."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (4, 3), "kernel": (3, 2, 2, 2), "vector": (5,), "number": ()}
    return {name: torch.randn(s, generator=generator) + 1 for name, s in shapes.items()}


def members_of(population):
    return [population[i][0] for i in range(len(population))]


def noise_of(population):
    """What its noise is read from, or what it comes to."""
    if isinstance(population, CountedPopulation):
        return tuple(flat(population[-1][0]).tolist())
    return population.stream


def flat(params):
    return torch.cat([params[name].flatten() for name in sorted(params)])


def fitness_of(population):
    """Minus the square of each member's distance to zero."""
    params = stacked(population).values()
    return -sum(p.reshape(len(population), -1).square().sum(1) for p in params)


def tell(strategy, state, fitness=None):
    """The state after a generation of this fitness; of the distance to zero by default."""
    population = strategy.ask(state)
    if isinstance(population, CountedPopulation):
        return strategy.tell(state, fitness_of(population) if fitness is None else fitness)
    return strategy.tell(state, evaluation_of(population, fitness))


def evaluation_of(population, fitness=None):
    """What an evaluation of activations might come to; the gradient is another one every time."""
    fitness = torch.arange(12.0) if fitness is None else fitness
    generator = torch.Generator().manual_seed(population.stream.generation)
    gradient = {
        name: torch.randn(p.shape, generator=generator).to(p) - p
        for name, p in population.params.items()
    }
    effect = Effect(torch.randn(3, 5, generator=generator), members=12)
    return Evaluation(fitness, gradient, effects={"layer": effect})


def run(strategy, state, generations):
    for _ in range(generations):
        state = tell(strategy, state)
    return state


def leaves_in(value, path="state"):
    """All that a state holds, tensors and other values, by where it lies."""
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {path: value}
    inner = [leaves_in(held, f"{path}/{key}") for key, held in value.items()]
    return {path: None} | {key: held for leaves in inner for key, held in leaves.items()}


def tensors_in(state):
    return [leaf for leaf in leaves_in(state).values() if isinstance(leaf, torch.Tensor)]


def assert_same(state, other):
    ours, theirs = leaves_in(state), leaves_in(other)
    assert ours.keys() == theirs.keys()
    assert len(tensors_in(state)) >= len(start())
    for path, value in ours.items():
        same = torch.equal if isinstance(value, torch.Tensor) else operator.eq
        assert same(value, theirs[path]), path


@counted
def test_ask_gives_members_like_the_start(make):
    strategy = make(population=MEMBERS)
    population = strategy.ask(strategy.init(start()))
    members = members_of(population)
    assert len(population) == len(members) == MEMBERS
    shapes = [(name, p.shape) for name, p in sorted(start().items())]
    assert all([(n, p.shape) for n, p in sorted(m.items())] == shapes for m in members)
    assert len({tuple(flat(member).tolist()) for member in members}) == MEMBERS


@counted
def test_ask_is_a_function_of_the_state(make):
    strategy = make(population=MEMBERS)
    state = strategy.init(start())
    first, again = (members_of(strategy.ask(state)) for _ in range(2))
    assert all(torch.equal(flat(x), flat(y)) for x, y in zip(first, again, strict=True))
    later = members_of(strategy.ask(run(strategy, state, 1)))
    assert not torch.equal(flat(first[0]), flat(later[0]))


@counted
def test_a_seed_decides_the_members(make):
    first, same, other = (make(population=MEMBERS, seed=seed) for seed in (1, 1, 2))
    members = [members_of(s.ask(s.init(start()))) for s in (first, same, other)]
    assert torch.equal(flat(members[0][3]), flat(members[1][3]))
    assert not torch.equal(flat(members[0][3]), flat(members[2][3]))


@every
def test_tell_changes_no_state_and_gives_the_same_bits_twice(make):
    strategy = make(population=MEMBERS)
    state = run(strategy, strategy.init(start()), 3)
    before, fitness = copy.deepcopy(state), torch.arange(8.0)
    told = fitness.clone()
    first = tell(strategy, state, fitness)
    assert_same(state, before)
    assert torch.equal(fitness, told)
    again = tell(strategy, state, fitness)
    assert_same(first, again)
    assert not torch.equal(flat(strategy.centre(first)), flat(strategy.centre(state)))


@every
def test_later_generations_leave_earlier_states_alone(make):
    strategy = make(population=MEMBERS)
    states = [strategy.init(start())]
    kept = [copy.deepcopy(states[0])]
    for _ in range(4):
        states.append(run(strategy, states[-1], 1))
        kept.append(copy.deepcopy(states[-1]))
    for state, copied in zip(states, kept, strict=True):
        assert_same(state, copied)


@every
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["copy", "pickle"]
)
def test_a_run_goes_on_from_a_copy_of_its_state(make, duplicate):
    strategy = make(population=MEMBERS)
    half = run(strategy, strategy.init(start()), 3)
    other = make(population=MEMBERS)
    assert_same(run(strategy, half, 4), run(other, duplicate(half), 4))


@every
def test_init_copies_its_parameters(make):
    strategy = make(population=MEMBERS)
    params = {name: p.requires_grad_() for name, p in start().items()}
    state = strategy.init(params)
    assert state.generation == 0
    assert torch.equal(flat(strategy.centre(state)), flat(start()))
    assert not any(t.requires_grad for t in tensors_in(state))
    with torch.no_grad():
        for p in params.values():
            p.zero_()
    run(strategy, state, 1)
    assert torch.equal(flat(strategy.centre(state)), flat(start()))
    assert all(torch.equal(p, torch.zeros_like(p)) for p in params.values())


@every
def test_the_centre_has_the_names_shapes_and_dtypes_of_the_start(make):
    strategy = make(population=MEMBERS)
    state = run(strategy, strategy.init(start()), 2)
    assert state.generation == 2
    centre = strategy.centre(state)
    assert {n: p.shape for n, p in centre.items()} == {n: p.shape for n, p in start().items()}
    assert not any(p.requires_grad for p in centre.values())


@every
def test_parameters_in_double_precision(make):
    strategy = make(population=MEMBERS)
    doubles = {name: p.double() for name, p in start().items()}
    centre = strategy.centre(run(strategy, strategy.init(doubles), 3))
    assert {p.dtype for p in centre.values()} == {torch.float64}
    singles = strategy.centre(run(strategy, strategy.init(start()), 3))
    torch.testing.assert_close(flat(centre).float(), flat(singles), rtol=1e-3, atol=1e-3)


@counted
@given(start_at=st.integers(0, MEMBERS - 1), length=st.integers(1, MEMBERS))
@settings(max_examples=5)
def test_a_slice_of_the_population_has_the_members_of_the_whole(make, start_at, length):
    strategy = make(population=MEMBERS)
    population = strategy.ask(run(strategy, strategy.init(start()), 2))
    part = population[start_at : start_at + length]
    whole = members_of(population)[start_at : start_at + length]
    for member, expected in zip(members_of(part), whole, strict=True):
        assert torch.equal(flat(member), flat(expected))


@counted
def test_the_population_is_evaluated_as_it_is(make):
    model, strategy = MODEL, make(population=MEMBERS)
    if getattr(strategy, "groups", None):
        strategy = make(population=MEMBERS, groups={"1.*": Group(sigma=2.0)})
    population = strategy.ask(strategy.init(dict(model.named_parameters())))
    x, y = torch.randn(10, 6), torch.randint(3, (10,))
    result = evaluate(model, population, x, y).fitness
    modules = [population.materialise(i, model) for i in range(MEMBERS)]
    with torch.no_grad():
        expected = torch.stack([-F.cross_entropy(module(x), y) for module in modules])
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert len(result.unique()) == MEMBERS


@counted
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_solves(make, problem):
    """Fixed seeds. What is left was 0.0001 to 0.008 when this was written; the package
    cmaes, with as many evaluations, left 0.000001 to 0.00004 (test_problems.py)."""
    assert solve(make(), problem, EVALUATIONS) < TARGET


@every
@given(fitness=st.lists(st.floats(width=32), min_size=MEMBERS, max_size=MEMBERS))
@settings(max_examples=10)
@example(fitness=[math.nan] * 7 + [1.0])
@example(fitness=[math.inf, -math.inf, math.nan, 0.0] * 2)
@example(fitness=[3e38, -3e38] * 4)
@example(fitness=[3e38, -3e38, 1.0, 0.0, -1.0, 1e-45, math.nan, -3e38])
@example(fitness=[1e-45, 0.0] * 4)
def test_no_fitness_makes_a_parameter_that_is_not_finite(make, fitness):
    strategy = make(population=MEMBERS)
    state = strategy.init(start())
    for generation in range(2):
        lost = state.lost
        state = tell(strategy, state, torch.tensor(fitness))
        assert state.generation == generation + 1
        assert state.lost == lost + (state.told != "moved")
        assert (state.told == "no finite fitness") == (not any(map(math.isfinite, fitness)))
    assert all(torch.isfinite(value).all() for value in tensors_in(state))
    assert all(torch.isfinite(p).all() for p in strategy.centre(state).values())


@every
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_generation_without_a_finite_fitness_is_counted_and_moves_nothing(make, value):
    strategy = make(population=MEMBERS)
    state = run(strategy, strategy.init(start()), 2)
    after = tell(strategy, state, torch.full((MEMBERS,), value))
    assert after.generation == state.generation + 1
    assert torch.equal(flat(strategy.centre(after)), flat(strategy.centre(state)))
    assert (after.told, after.lost, state.told, state.lost) == ("no finite fitness", 1, "moved", 0)
    # The next one draws other noise and goes on.
    assert noise_of(strategy.ask(after)) != noise_of(strategy.ask(state))
    later = tell(strategy, after, torch.arange(8.0))
    assert not torch.equal(flat(strategy.centre(later)), flat(strategy.centre(after)))
    assert (later.told, later.lost) == ("moved", 1)


@counted
@pytest.mark.parametrize(("value", "bad"), [(math.nan, 0), (math.inf, 3), (-math.inf, 7)])
def test_a_member_that_went_bad_counts_as_the_worst(make, value, bad):
    strategy = make(population=MEMBERS)
    state = run(strategy, strategy.init(start()), 1)
    fitness = torch.tensor([3.0, -1.0, 0.5, 2.0, -4.0, 1.0, 6.0, 0.0])
    fitness[bad] = value
    as_worst = fitness.clone()
    as_worst[bad] = -4.0
    assert_same(strategy.tell(state, fitness), strategy.tell(state, as_worst))
    as_best = fitness.clone()
    as_best[bad] = 7.0
    told = (strategy.centre(strategy.tell(state, each)) for each in (fitness, as_best))
    assert not torch.equal(*map(flat, told))


@counted
@pytest.mark.parametrize("shape", [(7,), (9,), (), (8, 1), (1, 8)], ids=str)
def test_a_fitness_of_another_shape_is_refused(make, shape):
    strategy = make(population=MEMBERS)
    with pytest.raises(ValueError, match="fitness") as caught:
        strategy.tell(strategy.init(start()), torch.zeros(shape))
    assert str(caught.value) == (f"fitness: needed a tensor of shape [8], got {list(shape)}.")
