"""What every strategy keeps to. A new one joins as a row of `STRATEGIES`."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinkering.noise import Dense, LowRank, Separable
from tinkering.strategies.evolution_strategy import EvolutionStrategy

STRATEGIES = {
    "evolution strategy": lambda **changes: EvolutionStrategy(
        **{"sigma": 0.1, "learning_rate": 0.1, "averaging": 0.9, "noise": Dense(), **changes}
    ),
    "evolution strategy, ranks": lambda **changes: EvolutionStrategy(
        **{"sigma": 0.1, "learning_rate": 0.1, "averaging": 0.9, "shaping": "rank", **changes}
    ),
    "evolution strategy, low-rank noise": lambda **changes: EvolutionStrategy(
        **{"sigma": 0.1, "learning_rate": 0.1, "averaging": 0.9, "noise": LowRank(1), **changes}
    ),
    "evolution strategy, separable noise": lambda **changes: EvolutionStrategy(
        **{"sigma": 0.1, "learning_rate": 0.1, "averaging": 0.9, "noise": Separable(1), **changes}
    ),
}
MEMBERS = 8

pytestmark = pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES.keys())


def start():
    """Parameters of several shapes, far from zero."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (4, 3), "kernel": (3, 2, 2, 2), "vector": (5,), "number": ()}
    return {name: torch.randn(s, generator=generator) + 1 for name, s in shapes.items()}


def members_of(population):
    return [population.member(i)[0] for i in range(len(population))]


def flat(params):
    return torch.cat([params[name].flatten() for name in sorted(params)])


def sphere(params):
    return -flat(params).square().sum()


def rotated_ellipsoid(params):
    """Axes from 1 to 1/30, in directions that no parameter's axis is."""
    x = flat(params)
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(len(x), len(x), generator=generator)).Q
    return -((turn @ x).square() * torch.logspace(0, -1.5, len(x))).sum()


def fitness_of(population, function):
    return torch.stack([function(params) for params in members_of(population)])


def run(strategy, state, generations, function=sphere):
    for _ in range(generations):
        state = strategy.tell(state, fitness_of(strategy.ask(state), function))
    return state


def tensors_in(value):
    """Every tensor in a state, wherever it lies, with its path."""
    if isinstance(value, torch.Tensor):
        return {"": value}
    if hasattr(value, "__dataclass_fields__"):
        value = {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {}
    return {
        f"{key}/{path}": t for key, inner in value.items() for path, t in tensors_in(inner).items()
    }


def assert_same(state, other):
    ours, theirs = tensors_in(state), tensors_in(other)
    assert ours.keys() == theirs.keys()
    assert len(ours) >= len(start())
    for path, value in ours.items():
        assert torch.equal(value, theirs[path]), path
    assert state.generation == other.generation


def test_ask_gives_members_like_the_start(make):
    strategy = make(population=MEMBERS)
    population = strategy.ask(strategy.init(start()))
    members = members_of(population)
    assert len(population) == len(members) == MEMBERS
    shapes = {name: p.shape for name, p in start().items()}
    assert all({n: p.shape for n, p in member.items()} == shapes for member in members)
    assert len({tuple(flat(member).tolist()) for member in members}) == MEMBERS


def test_ask_is_a_function_of_the_state(make):
    strategy = make(population=MEMBERS)
    state = strategy.init(start())
    first, again = members_of(strategy.ask(state)), members_of(strategy.ask(state))
    assert all(torch.equal(flat(x), flat(y)) for x, y in zip(first, again, strict=True))
    later = members_of(strategy.ask(run(strategy, state, 1)))
    assert not torch.equal(flat(first[0]), flat(later[0]))


def test_a_seed_decides_the_members(make):
    first, same, other = (make(population=MEMBERS, seed=seed) for seed in (1, 1, 2))
    members = [members_of(s.ask(s.init(start()))) for s in (first, same, other)]
    assert torch.equal(flat(members[0][3]), flat(members[1][3]))
    assert not torch.equal(flat(members[0][3]), flat(members[2][3]))


def test_tell_changes_no_state_and_gives_the_same_bits_twice(make):
    strategy = make(population=MEMBERS)
    state = run(strategy, strategy.init(start()), 3)
    before = copy.deepcopy(state)
    fitness = fitness_of(strategy.ask(state), sphere)
    told = fitness.clone()
    first = strategy.tell(state, fitness)
    assert_same(state, before)
    assert torch.equal(fitness, told)
    again = strategy.tell(state, fitness)
    assert_same(first, again)
    assert not torch.equal(flat(strategy.centre(first)), flat(strategy.centre(state)))


def test_later_generations_leave_earlier_states_alone(make):
    strategy = make(population=MEMBERS)
    states = [strategy.init(start())]
    kept = [copy.deepcopy(states[0])]
    for _ in range(4):
        states.append(run(strategy, states[-1], 1))
        kept.append(copy.deepcopy(states[-1]))
    for state, copied in zip(states, kept, strict=True):
        assert_same(state, copied)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["copy", "pickle"]
)
def test_a_run_goes_on_from_a_copy_of_its_state(make, duplicate):
    strategy = make(population=MEMBERS)
    half = run(strategy, strategy.init(start()), 3)
    other = make(population=MEMBERS)
    assert_same(run(strategy, half, 4), run(other, duplicate(half), 4))


def test_init_copies_its_parameters(make):
    strategy = make(population=MEMBERS)
    params = {name: p.requires_grad_() for name, p in start().items()}
    state = strategy.init(params)
    assert state.generation == 0
    assert torch.equal(flat(strategy.centre(state)), flat(start()))
    assert not any(t.requires_grad for t in tensors_in(state).values())
    with torch.no_grad():
        for p in params.values():
            p.zero_()
    run(strategy, state, 1)
    assert torch.equal(flat(strategy.centre(state)), flat(start()))
    assert all(torch.equal(p, torch.zeros_like(p)) for p in params.values())


def test_the_centre_has_the_names_shapes_and_dtypes_of_the_start(make):
    strategy = make(population=MEMBERS)
    state = run(strategy, strategy.init(start()), 2)
    assert state.generation == 2
    centre = strategy.centre(state)
    assert {n: p.shape for n, p in centre.items()} == {n: p.shape for n, p in start().items()}
    assert not any(p.requires_grad for p in centre.values())


def test_parameters_in_double_precision(make):
    strategy = make(population=MEMBERS)
    doubles = {name: p.double() for name, p in start().items()}
    centre = strategy.centre(run(strategy, strategy.init(doubles), 3))
    singles = strategy.centre(run(strategy, strategy.init(start()), 3))
    assert {p.dtype for p in centre.values()} == {torch.float64}
    torch.testing.assert_close(flat(centre).float(), flat(singles), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("function", [sphere, rotated_ellipsoid])
def test_solves(make, function):
    strategy = make(population=16, sigma=0.05, learning_rate=0.1)
    state = strategy.init({"matrix": torch.full((6, 4), 1.0)})
    before = function(strategy.centre(state))
    after = function(strategy.centre(run(strategy, state, 120, function)))
    assert before < -2
    assert after > 0.02 * before


@given(fitness=st.lists(st.floats(width=32), min_size=MEMBERS, max_size=MEMBERS))
@settings(max_examples=60)
@example(fitness=[math.nan] * 7 + [1.0])
@example(fitness=[math.inf, -math.inf, math.nan, 0.0] * 2)
@example(fitness=[3e38, -3e38] * 4)
@example(fitness=[3e38, -3e38, 1.0, 0.0, -1.0, 1e-45, math.nan, -3e38])
@example(fitness=[1e-45, 0.0] * 4)
def test_no_fitness_makes_a_parameter_that_is_not_finite(make, fitness):
    strategy = make(population=MEMBERS)
    state = strategy.init(start())
    for _ in range(2):
        state = strategy.tell(state, torch.tensor(fitness))
    assert all(torch.isfinite(value).all() for value in tensors_in(state).values())
    assert state.generation == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_generation_without_a_finite_fitness_is_counted_and_moves_nothing(make, value):
    strategy = make(population=MEMBERS)
    state = run(strategy, strategy.init(start()), 2)
    after = strategy.tell(state, torch.full((MEMBERS,), value))
    assert after.generation == state.generation + 1
    assert torch.equal(flat(strategy.centre(after)), flat(strategy.centre(state)))
    # The next one draws other noise and goes on.
    assert not torch.equal(flat(strategy.ask(after)[0][0]), flat(strategy.ask(state)[0][0]))
    assert not torch.equal(
        flat(strategy.centre(run(strategy, after, 1))), flat(strategy.centre(after))
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bad", [0, 3, 7])
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
    assert not torch.equal(
        flat(strategy.tell(state, fitness).params), flat(strategy.tell(state, as_best).params)
    )


@pytest.mark.parametrize("shape", [(7,), (9,), (), (8, 1), (1, 8)], ids=str)
def test_a_fitness_of_another_shape_is_refused(make, shape):
    strategy = make(population=MEMBERS)
    with pytest.raises(ValueError, match="fitness") as caught:
        strategy.tell(strategy.init(start()), torch.zeros(shape))
    assert str(caught.value) == (f"fitness: needed a tensor of shape [8], got {list(shape)}.")
