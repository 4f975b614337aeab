"""What is bound, against a loop over members as modules of their own."""

import importlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from signatures import BATCH, Gated, Masked, Nested, Recurrent, Stepped, given
from small_nets import assert_close, convnet, inputs_for, loop, made, population_of, transformer
from torch import nn
from torch.utils import _pytree

from tinkering import ArgumentError, Dense, StackedPopulation, bind, evaluate, forward
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.noise import LowRank
from tinkering.population import PerturbedPopulation

SIZE = 6
MODULES = [Gated, Masked, Stepped, Nested]
modules = pytest.mark.parametrize("kind", MODULES)
engines = pytest.mark.parametrize("engine", ["auto", "factored", "sequential", "vmapped"])


@cache
def built(kind):
    torch.manual_seed(0)
    return kind().eval()


def members_of(population, model, call):
    """What a loop over members returns, every tensor stacked; `call` is given the index."""
    results = []
    for index in range(len(population)):
        args, kwargs = call(index)
        with torch.no_grad():
            results.append(population.materialise(index, model)(*args, **kwargs))
    leaves, spec = zip(*map(_pytree.tree_flatten, results), strict=True)
    stacked = [
        torch.stack(each) if isinstance(each[0], torch.Tensor) else each[0]
        for each in zip(*leaves, strict=True)
    ]
    return _pytree.tree_unflatten(stacked, spec[0])


def assert_same(result, expected):
    """Leaf by leaf, of which some may be the same for all members, but not all."""
    ours, spec = _pytree.tree_flatten(result)
    theirs, other = _pytree.tree_flatten(expected)
    assert spec == other
    differ = []
    for mine, wanted in zip(ours, theirs, strict=True):
        if not isinstance(wanted, torch.Tensor):
            assert mine == wanted
            continue
        assert mine.shape == wanted.shape
        scale = wanted.abs().max()
        assert (mine - wanted).abs().max() <= 1e-4 * scale
        differ.append((wanted[0] - wanted[1]).abs().max() > 1e-2 * scale)
    assert any(differ)


def own(tree, index):
    """What one member sees of trees whose batched tensors have an axis of members."""

    def one(leaf):
        is_own = isinstance(leaf, torch.Tensor) and leaf.shape[:2] == (SIZE, BATCH)
        return leaf[index] if is_own else leaf

    return _pytree.tree_map(one, tree)


class TestSignatures:
    @modules
    @engines
    @pytest.mark.parametrize("noise", [LowRank(1), LowRank(2), Dense()], ids=str)
    def test_shared_inputs(self, kind, engine, noise):
        model = built(kind)
        population = PerturbedPopulation(model, SIZE, 0.3, noise)
        args, kwargs = given()[kind]
        bound = bind(model, population, args, kwargs, engine=engine)
        for _ in range(2):
            args, kwargs = given()[kind]
            expected = members_of(population, model, lambda _: (args, kwargs))  # noqa: B023
            assert_same(bound(*args, **kwargs), expected)

    @modules
    @engines
    def test_inputs_of_each_members_own(self, kind, engine):
        model = built(kind)
        population = PerturbedPopulation(model, SIZE, 0.3)
        args, kwargs = given(SIZE)[kind]
        dims = {name: 0 if name == "memory" else None for name in kwargs}
        bound = bind(
            model, population, args, kwargs, in_dims=(0, 0), kwargs_in_dims=dims, engine=engine
        )
        expected = members_of(population, model, lambda index: own((args, kwargs), index))
        assert_same(bound(*args, **kwargs), expected)

    @engines
    def test_a_tree_of_in_dims(self, engine):
        model = built(Gated)
        population = PerturbedPopulation(model, SIZE, 0.3)
        x, y = torch.randn(BATCH, 3), torch.randn(SIZE, BATCH, 5)
        bound = bind(model, population, (x, y), in_dims=(0, (None, 0)), engine=engine)
        expected = members_of(population, model, lambda index: ((x, y[index]), {}))
        assert_same(bound(x, y), expected)

    def test_are_folded_where_that_is_possible(self):
        for kind in MODULES:
            model = built(kind)
            args, kwargs = given()[kind]
            bound = bind(model, PerturbedPopulation(model, SIZE, 0.3), args, kwargs)
            assert bound.plan.engine == "factored", kind

    def test_a_mask_as_long_as_the_batch_is_none_of_the_batch(self):
        model = built(Masked)
        population = PerturbedPopulation(model, SIZE, 0.3)
        words = torch.randint(11, (4, 4))  # four examples of four tokens
        kwargs = {"mask": torch.triu(torch.full((4, 4), -torch.inf), 1), "scale": 1.0}
        bound = bind(model, population, words, kwargs)
        assert bound.plan.engine == "factored"
        more = torch.randint(11, (7, 4))
        for x in (words, more):
            expected = members_of(population, model, lambda _: ((x,), kwargs))  # noqa: B023
            assert_same(bound(x, **kwargs), expected)

    @modules
    def test_stacked_members(self, kind):
        models = [kind().eval() for _ in range(SIZE)]
        population = StackedPopulation.from_modules(models)
        args, kwargs = given()[kind]
        bound = bind(models[0], population, args, kwargs)
        expected = members_of(population, models[0], lambda _: (args, kwargs))
        assert_same(bound(*args, **kwargs), expected)
        assert_same(bound(*args, **kwargs), expected)


class TestState:
    @engines
    def test_is_stepped(self, engine):
        model = built(Stepped)
        population = PerturbedPopulation(model, SIZE, 0.3)
        x = torch.randn(100, SIZE, 2, 2)
        state = (torch.zeros(SIZE, 2, 4), torch.zeros(SIZE, 2, 1))
        bound = bind(model, population, (x[0], state), in_dims=(0, 0), engine=engine)
        alone = [population.materialise(index) for index in range(SIZE)]
        states = [(state[0][index], state[1][index]) for index in range(SIZE)]
        for step in range(100):
            out, state = bound(x[step], state)
            with torch.no_grad():
                results = [
                    net(x[step, at], held)
                    for at, (net, held) in enumerate(zip(alone, states, strict=True))
                ]
            states = [held for _, held in results]
            assert_close(out, torch.stack([one for one, _ in results]))
        assert torch.equal(state[1], torch.full((SIZE, 2, 1), 100.0))

    def test_of_a_layer_whose_examples_are_along_another_axis(self):
        model = built(Recurrent)
        population = PerturbedPopulation(model, SIZE, 0.3)
        x = torch.randn(100, SIZE, BATCH, 1, 3)
        state = (torch.zeros(SIZE, 1, BATCH, 4), torch.zeros(SIZE, 1, BATCH, 4))
        with pytest.warns(UserWarning, match="one after the other"):
            bound = bind(model, population, (x[0], state), in_dims=(0, 0))
        alone = [population.materialise(index) for index in range(SIZE)]
        states = [(state[0][index], state[1][index]) for index in range(SIZE)]
        for step in range(100):
            out, state = bound(x[step], state)
            with torch.no_grad():
                results = [net(x[step, at], states[at]) for at, net in enumerate(alone)]
            states = [held for _, held in results]
        assert_close(out, torch.stack([one for one, _ in results]))


class TestWhatIsKept:
    @pytest.mark.parametrize("build", [convnet, transformer])
    @pytest.mark.parametrize("stacked", [False, True])
    def test_calls_do_not_differ_and_the_batch_may(self, build, stacked):
        model = made(build)
        population = population_of(model)
        if stacked:
            population = population.stack()
        first, more = inputs_for(build, 3), inputs_for(build, 8)
        bound = bind(model, population, first)
        assert bound.plan.keeps
        for x in (first, more, first):
            assert_close(bound(x), forward(model, population, x), 1e-5)

    def test_noise_is_drawn_once_where_it_fits(self, monkeypatch):
        model = made(convnet)
        population = population_of(model)
        x = inputs_for(convnet, 3)
        draws = []
        draw = PerturbedPopulation.draw
        monkeypatch.setattr(
            PerturbedPopulation, "draw", lambda self: draws.append(len(self)) or draw(self)
        )
        bound = bind(model, population, x)
        result = bound(x)
        before = len(draws)
        assert torch.equal(bound(x), result)
        assert len(draws) == before
        tight = bind(model, population, x, memory=bound.plan.needed - 1)
        assert not tight.plan.keeps
        assert_close(tight(x), result, 1e-5)
        before = len(draws)
        tight(x)
        assert len(draws) > before

    def test_what_is_returned_is_the_callers(self):
        model = nn.Flatten(2)  # hands its input on
        bound = bind(
            nn.Sequential(model, nn.Linear(4, 4)),
            PerturbedPopulation(nn.Sequential(model, nn.Linear(4, 4)), 4, 0.1),
            torch.zeros(3, 1, 4),
        )
        x = torch.randn(3, 1, 4)
        first = bound(x)
        kept = first.clone()
        first.zero_()
        assert_close(bound(x), kept)

    def test_weights_are_those_that_were_bound(self):
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        population = PerturbedPopulation(model, 4, 0.1)
        x = torch.randn(5, 4)
        bound = bind(model, population, x)
        before = bound(x)
        with torch.no_grad():
            model[0].bias.add_(1.0)
        after = bound.rebind(population)
        assert_close(after(x), forward(model, population, x), 1e-5)
        assert not torch.allclose(after(x), before, atol=1e-2)


class TestRebind:
    def test_follows_the_next_generation_and_captures_nothing(self, monkeypatch):
        model = made(convnet)
        x = inputs_for(convnet, 3)
        bound = bind(model, population_of(model), x)
        monkeypatch.setattr(
            "tinkering.engines.network.capture", lambda *_: pytest.fail("captured again")
        )
        for generation in range(1, 4):
            population = population_of(model, generation=generation)
            bound = bound.rebind(population)
            assert bound.population is population
            assert_close(bound(x), forward(model, population, x), 1e-5)

    def test_a_population_of_another_kind(self):
        model = made(convnet)
        x = inputs_for(convnet, 3)
        bound = bind(model, population_of(model), x)
        for population in (population_of(model, size=10), population_of(model).stack()):
            assert_close(bound.rebind(population)(x), forward(model, population, x), 1e-5)
        assert bound.rebind(population_of(model).stack()).plan.engine == "sequential"

    def test_a_part_that_sees_inputs_of_its_own(self):
        model = made(convnet)
        population = population_of(model)
        x = torch.stack([inputs_for(convnet, 3) for _ in range(len(population))])
        bound = bind(model, population, x, in_dims=(0, 0))
        for part in (slice(2, 4), slice(0, 6)):
            expected = forward(model, population, x, in_dims=(0, 0))[part]
            assert_close(bound.rebind(population[part])(x[part]), expected, 1e-5)

    def test_a_module_whose_forward_has_changed(self):
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        population = PerturbedPopulation(model, 4, 0.1)
        x = torch.randn(5, 4)
        bound = bind(model, population, x)
        model[1] = nn.ReLU()
        assert_close(bound.rebind(population)(x), forward(model, population, x), 1e-5)


class TestEvaluate:
    """Targets are any tree; a fitness of one's own sees both."""

    @staticmethod
    def error(outputs, targets):
        wrong = (outputs["out"] - targets["value"]).square().mean((1, 2))
        return -wrong - targets["weight"].mean(1) * outputs["gate"].mean((1, 2))

    @engines
    @pytest.mark.parametrize("members_own", [False, True])
    def test_a_dict_of_targets(self, engine, members_own):
        model = built(Gated)
        population = PerturbedPopulation(model, SIZE, 0.3)
        lead = (SIZE,) if members_own else ()
        (x, y), _ = given(*lead)[Gated]
        targets = {"value": torch.randn(*lead, BATCH, 4), "weight": torch.rand(*lead, BATCH)}
        dims = (0, 0) if members_own else (0, None)
        evaluation = evaluate(
            model, population, (x, y), targets, self.error, in_dims=dims, engine=engine
        )
        outputs = forward(model, population, (x, y), in_dims=dims)
        expected = self.error(
            outputs,
            targets
            if members_own
            else {name: value.expand(SIZE, *value.shape) for name, value in targets.items()},
        )
        assert_close(evaluation.fitness, expected)
        assert evaluation.gradient is None
        assert evaluation.forwards == SIZE * BATCH

    def test_none(self):
        model = nn.Linear(3, 2)
        population = PerturbedPopulation(model, SIZE, 0.3)
        x = torch.randn(5, 3)
        fitness = evaluate(model, population, x, None, lambda out, _: out.mean((1, 2))).fitness
        assert_close(fitness, forward(model, population, x).mean((1, 2)))

    def test_inputs_without_an_axis_of_examples(self):
        """As vmap takes them; and the module, which knows no other number of examples."""
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        population = PerturbedPopulation(model, SIZE, 0.3)
        for x, dims in ((torch.randn(3), (0, None)), (torch.randn(SIZE, 3), (0, 0))):
            with pytest.warns(UserWarning, match="no other number of examples than it was given"):
                result = forward(model, population, x, dims)
            assert_close(result, loop(population, x, dims))

    def test_targets_of_their_own_for_shared_inputs(self):
        model = nn.Linear(3, 2)
        population = PerturbedPopulation(model, SIZE, 0.3)
        x, y = torch.randn(5, 3), torch.randn(SIZE, 5, 2)
        found = bind(model, population, x).evaluate(
            x, y, lambda out, y: -(out - y).square().mean((1, 2)), targets_in_dims=0
        )
        expected = -(forward(model, population, x) - y).square().mean((1, 2))
        assert_close(found.fitness, expected)


class Reads(nn.Module):
    """Calls a function of itself and its inputs."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, value in parts.items():
            setattr(self, name, value)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def linear():
    return nn.Linear(4, 2)


class TestWhatCouldBeMistaken:
    def test_a_residual_that_members_share(self):
        model = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=4).eval()
        x = torch.randn(3, 1, 12, 12)
        for pattern in ("layer4.0.conv2.weight", "layer2.0.conv2.weight"):
            count = dict(model.named_parameters())[pattern].numel()
            vectors = torch.randn(SIZE, count) / 5
            population = StackedPopulation.from_vectors(model, vectors, parameters=pattern)
            expected = members_of(population, model, lambda _: ((x,), {}))
            assert_close(forward(model, population, x), expected)
        model = Reads(
            lambda m, x: m.c(m.a(x).relu()) + m.b(x).relu(),
            a=nn.Linear(4, 5),
            b=nn.Linear(4, 5),
            c=nn.Linear(5, 5),
        )
        population = PerturbedPopulation({"c.weight": model.c.weight.detach()}, SIZE, 0.5)
        x = torch.randn(5000, 4)
        expected = members_of(population, model, lambda _: ((x,), {}))
        assert_close(forward(model, population, x), expected)

    @engines
    def test_one_tensor_as_two_examples(self, engine):
        model = Reads(lambda m, x, lo, hi: m.a(x).clamp(lo.min(), hi.max()), a=linear())
        population = PerturbedPopulation(model, SIZE, 0.1)
        x, z = torch.randn(5, 4), torch.zeros(3)
        bound = bind(model, population, (x, z, z), engine=engine)
        given = x, torch.full((3,), -0.3), torch.full((3,), 0.2)
        assert_close(bound(*given), members_of(population, model, lambda _: (given, {})))
        again = bind(model, population, (x, model.a.bias.detach(), z), engine=engine)
        given = x, torch.full((2,), -0.2), torch.full((3,), 0.3)
        assert_close(again(*given), members_of(population, model, lambda _: (given, {})))

    def test_a_table_that_once_was_as_long_as_the_batch(self):
        model = Reads(lambda m, x, t: m.a(x) + (x @ t.T).sum(1, keepdim=True) / len(t), a=linear())
        population = PerturbedPopulation(model, SIZE, 0.1)
        for length in (3, 7):
            given = torch.randn(length, 4), torch.randn(length, 4)
            expected = members_of(population, model, lambda _: (given, {}))  # noqa: B023
            assert_close(forward(model, population, given), expected)

    def test_a_number_that_depends_on_the_batch_is_refused(self):
        model = Reads(lambda m, x: {"y": m.a(x), "n": x.shape[0]}, a=linear())
        message = said(
            lambda: forward(model, PerturbedPopulation(model, 4, 0.1), torch.randn(3, 4))
        )
        assert message.startswith("model: needed a module that returns tensors, and what is always")

    @pytest.mark.parametrize("engine", ["auto", "sequential", "vmapped"])
    @pytest.mark.parametrize("stacked", [False, True])
    def test_a_fitness_writes_to_its_own(self, engine, stacked):
        model = Reads(lambda m, x: (m.a(x), m.scale, m.kept), a=linear())
        model.scale = nn.Parameter(torch.zeros(2))
        model.register_buffer("kept", torch.ones(2))
        population = PerturbedPopulation(model, SIZE, 0.1)
        population = population.stack() if stacked else population
        bound = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bound = bind(model, population, torch.randn(3, 4), engine=engine)
        x = torch.randn(3, 4)
        before = _pytree.tree_map(torch.clone, (bound(x), dict(model.state_dict())))

        def erases(outputs, _):
            fitness = outputs[0].sum((1, 2)) + outputs[1].sum(1)
            for one in outputs:
                one.fill_(7)
            return fitness

        for _ in range(2):
            bound.evaluate(x, None, erases)
        after = bound(x), dict(model.state_dict())
        for one, other in zip(*map(_pytree.tree_leaves, (before, after)), strict=True):
            assert torch.equal(one, other)

    def test_batches_of_other_sizes(self):
        model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 3))
        population = PerturbedPopulation(model, 8, 0.1)
        for engine in ("vmapped", "factored", "sequential"):
            bound = bind(model, population, torch.randn(2, 4), engine=engine)
            for size in (2, 5000, 1, 2, 700):
                x = torch.randn(size, 4)
                assert_close(bound(x), forward(model, population, x), 1e-5)

    def test_an_influence_that_training_brings(self):
        model = Reads(
            lambda m, x: (h := m.f(x)) + m.g(h - h.mean(0, keepdim=True)),
            f=nn.Linear(4, 3),
            g=nn.Linear(3, 3),
        )
        nn.init.zeros_(model.g.weight)
        names = {name: p.detach() for name, p in model.f.named_parameters(prefix="f")}
        population = PerturbedPopulation(names, SIZE, 0.3)
        x = torch.randn(SIZE, 5, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bound = bind(model, population, x, in_dims=(0, 0))
            model.g.weight.data.normal_()
            again = bound.rebind(population)
        expected = members_of(population, model, lambda index: ((x[index],), {}))
        assert_close(again(x), expected)

    def test_a_small_influence_of_the_batch(self):
        model = Reads(
            lambda m, x: 1e-5 * ((h := m.f(x)) - h.mean(0, keepdim=True)), f=nn.Linear(4, 3)
        )
        population = PerturbedPopulation(model, SIZE, 0.3)
        x = torch.randn(SIZE, 5, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = forward(model, population, x, in_dims=(0, 0))
        expected = members_of(population, model, lambda index: ((x[index],), {}))
        assert_close(result * 1e5, expected * 1e5)

    @pytest.mark.parametrize("stacked", [False, True])
    @pytest.mark.parametrize("engine", ["auto", "sequential", "vmapped"])
    def test_no_later_change_is_followed(self, engine, stacked):
        model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
        population = PerturbedPopulation(model, 4, 0.1)
        population = population.stack() if stacked else population
        x = torch.randn(5, 4)
        bound = bind(model, population, x, engine=engine)
        before = forward(model, population, x)
        with torch.no_grad():
            for value in [*model.parameters(), *population.params.values()]:
                value.add_(1.0)
        assert_close(bound(x), before, 1e-5)

    def test_a_method_that_is_replaced(self):
        class Own(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = linear()

            def act(self, x):
                return x.relu()

            def forward(self, x):
                return self.act(self.a(x))

        model, x = Own(), torch.randn(5, 4)
        population = PerturbedPopulation(model, 4, 0.1)
        bound = bind(model, population, x)
        Own.act = lambda _, x: x.tanh()
        expected = members_of(population, model, lambda _: ((x,), {}))
        assert_close(bound.rebind(population)(x), expected)

    def test_threads_that_share_it(self):
        model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
        population = PerturbedPopulation(model, 8, 0.1)
        inputs = [torch.randn(5, 4) for _ in range(24)]
        for engine in ("factored", "sequential", "vmapped"):
            bound = bind(model, population, inputs[0], engine=engine)
            with ThreadPoolExecutor(4) as pool:
                results = list(pool.map(bound, inputs))
            for x, result in zip(inputs, results, strict=True):
                assert_close(result, bound(x), 1e-5)

    def test_what_is_kept_stays_within_the_budget(self):
        model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
        population = PerturbedPopulation(model, 512, 0.1)
        bound = bind(model, population, torch.randn(3, 64))
        for size in range(1, 24):
            bound(torch.randn(size, 64))
        kept = bound._engine.run._kept
        assert len(kept) == 1
        (portions,) = kept.values()
        assert sum(stop - start for start, stop in portions) == 512
        assert all(len({size for *_, size in one._tiles}) == 1 for one in portions.values())

    def test_the_order_of_keywords_and_of_keys(self):
        model = Reads(lambda m, given: m.a(given["x"]) * given["y"], a=linear())
        population = PerturbedPopulation(model, 4, 0.1)
        x, y = torch.randn(5, 4), torch.randn(5, 1)
        bound = bind(model, population, {"x": x, "y": y})
        assert torch.equal(bound({"y": y, "x": x}), bound({"x": x, "y": y}))
        model = built(Masked)
        args, kwargs = given()[Masked]
        bound = bind(model, PerturbedPopulation(model, 4, 0.3), args, kwargs)
        turned = dict(reversed(kwargs.items()))
        assert torch.equal(bound(*args, **turned), bound(*args, **kwargs))

    def test_a_first_input_that_is_a_number(self):
        model = Reads(lambda m, t, x: m.a(x) * t, a=linear())
        population = PerturbedPopulation(model, 4, 0.1)
        given = torch.tensor(2.0), torch.randn(5, 4)
        bound = bind(model, population, given)
        assert bound.plan.engine == "factored"
        assert_close(bound(*given), members_of(population, model, lambda _: (given, {})))

    def test_a_warning_is_shown_where_it_was_asked_for(self):
        model = built(Recurrent)
        x, state = torch.randn(3, 4, 3), (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4))
        with pytest.warns(UserWarning, match="one after the other") as caught:
            bind(model, PerturbedPopulation(model, 4, 0.1), (x, state))
        assert caught[0].filename == __file__


def said(function):
    with pytest.raises(ArgumentError) as caught:
        function()
    return str(caught.value)


@pytest.fixture(scope="module")
def bound():
    model = built(Masked)
    args, kwargs = given()[Masked]
    return bind(model, PerturbedPopulation(model, SIZE, 0.3), args, kwargs)


class TestMistakes:
    """Each message names the leaf."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"mask": None}, "kwargs['mask']: needed a tensor, got a NoneType. "),
            ({"scale": 3.0}, "kwargs['scale']: needed 2.0, as before, got 3.0. "),
            ({"mask": torch.zeros(5, 5)}, "kwargs['mask']: needed [4, 4], as it was bound, got ["),
            (
                {"memory": torch.zeros(4, 1, 1)},
                "kwargs['memory']: needed 5 examples, as the other inputs have, got 4: [4, 1, 1].",
            ),
            (
                {"mask": torch.zeros(4, 4, dtype=torch.float64)},
                "kwargs['mask']: needed torch.float32 on cpu, as it was bound, got torch.float64",
            ),
        ],
        ids=["none", "option", "shape", "examples", "dtype"],
    )
    def test_a_call_of_another_kind(self, bound, change, message):
        args, kwargs = given()[Masked]
        assert said(lambda: bound(*args, **{**kwargs, **change})).startswith(message)

    def test_a_call_of_another_structure(self, bound):
        args, kwargs = given()[Masked]
        del kwargs["memory"]
        assert said(lambda: bound(*args, **kwargs)) == (
            "kwargs['memory']: needed a value, as before, got none."
        )
        args, kwargs = given()[Masked]
        assert said(lambda: bound(*args, *args, **kwargs)).startswith(
            "args[1]: needed no such value, as before, got one."
        )

    def test_in_dims_of_another_structure(self):
        model = built(Gated)
        population = PerturbedPopulation(model, SIZE, 0.3)
        (x, y), _ = given()[Gated]
        assert said(lambda: bind(model, population, (x, y), in_dims=(0, (0, None, 0)))).startswith(
            "in_dims: needed 0, None, or a tree of these that the inputs have as well, got (0, "
        )

    def test_targets(self):
        model = nn.Linear(3, 2)
        population = PerturbedPopulation(model, SIZE, 0.3)
        x = torch.randn(5, 3)
        targets = {"a": torch.zeros(5), "b": [torch.zeros(4)]}
        assert said(lambda: evaluate(model, population, x, targets)) == (
            "targets['b'][0]: needed a target for every example of the inputs, [5], got [4]."
        )

    def test_targets_in_dims(self):
        model = nn.Linear(3, 2)
        population = PerturbedPopulation(model, SIZE, 0.3)
        x = torch.randn(5, 3)
        found = said(
            lambda: evaluate(model, population, x, {"y": x}, targets_in_dims={"y": 0, "z": None})
        )
        assert found.startswith("targets_in_dims: needed 0, None, or a tree of these")

    def test_an_array(self):
        model = built(Masked)
        args, kwargs = given()[Masked]
        kwargs["mask"] = kwargs["mask"].numpy()
        population = PerturbedPopulation(model, SIZE, 0.3)
        assert said(lambda: bind(model, population, args, kwargs)).startswith(
            "kwargs['mask']: needed a tensor, got an ndarray."
        )

    def test_no_tensor(self):
        model = nn.Linear(3, 2)
        population = PerturbedPopulation(model, SIZE, 0.3)
        assert said(lambda: bind(model, population, ([1.0, 2.0, 3.0],))).startswith(
            "args[0][0]: needed a tensor, got a float."
        )


def test_a_causal_language_model_of_hugging_face():
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
        population = PerturbedPopulation(model, SIZE, 0.05)
        words = torch.randint(50, (3, 7))
        kwargs = {"attention_mask": torch.ones(3, 7, dtype=torch.long), "use_cache": False}
        bound = bind(model, population, (), {"input_ids": words, **kwargs})
        outputs = bound(input_ids=words, **kwargs)
        assert type(outputs).__name__ == "CausalLMOutputWithPast"
        expected = members_of(population, model, lambda _: ((), {"input_ids": words, **kwargs}))
    assert outputs.logits.shape == (SIZE, 3, 7, 50)
    assert_close(outputs.logits, expected.logits)
