"""Where something bound could go wrong in silence: a loop over members says what is right."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from signatures import Masked, Recurrent, built, given, members_of, said
from small_nets import assert_close
from torch import nn
from torch.utils import _pytree

from tinkering import StackedPopulation, bind, forward
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.population import PerturbedPopulation

SIZE = 6
engines = pytest.mark.parametrize("engine", ["auto", "factored", "sequential", "vmapped"])


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
