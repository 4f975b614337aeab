"""What is bound, against a loop over members as modules of their own."""

import importlib
import warnings

import pytest
import torch
from signatures import (
    BATCH,
    Gated,
    Masked,
    Nested,
    Recurrent,
    Stepped,
    built,
    given,
    members_of,
    said,
)
from small_nets import assert_close, convnet, inputs_for, loop, made, population_of, transformer
from torch import nn
from torch.utils import _pytree

from tinkering import Dense, StackedPopulation, bind, evaluate, forward
from tinkering.noise import LowRank
from tinkering.population import PerturbedPopulation

SIZE = 6
MODULES = [Gated, Masked, Stepped, Nested]
modules = pytest.mark.parametrize("kind", MODULES)
engines = pytest.mark.parametrize("engine", ["auto", "factored", "sequential", "vmapped"])


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
        assert bound.rebind(population_of(model).stack()).plan.engine == "batched"

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
