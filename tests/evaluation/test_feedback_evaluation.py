"""Perturbed activations whose effect is learned, against plain loops with hooks and autograd."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from fed_back import Loop, Place, cell_numbers, cross_entropy, evaluation_of, fed_back, through
from graph_nets import residual
from perturbed import cosine, held_parameters, labels_for, relative
from small_nets import conv1d_net, depthwise, inputs_for, made, make, perceptron, trusted
from torch import nn

from tinkering.engines.evaluation import merged
from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.evaluation.entry import evaluate, forward
from tinkering.evaluation.fitness import accuracy
from tinkering.population import FedBackActivations

PERCEPTRON = [
    Place("1", ("1",), rectified=False, curve=torch.tanh),
    Place("3", ("3",), rectified=False),
]


class Blocks(nn.Module):
    """`residual`, whose rectifiers are modules."""

    def __init__(self):
        super().__init__()
        for name, layer in residual().named_children():
            setattr(self, name, layer)
        for name in ("r1", "r2", "r3", "r4"):
            setattr(self, name, nn.ReLU())

    def forward(self, x):
        y = self.r1(self.n1(self.c1(x)))
        y = self.r2(self.n2(self.c2(y)) + self.n3(self.c3(x)))
        y = self.r3(self.n5(self.c5(self.r4(self.n4(self.c4(y))))) + y)
        return self.last(y.mean((2, 3)))


Blocks.shape = (2, 5, 5)

BLOCKS = [
    Place("r1", ("c1",), ("n1",)),
    Place("r2", ("c2", "c3"), ("n2", "n3")),
    Place("r4", ("c4",), ("n4",)),
    Place("r3", ("c5",), ("n5",)),
    Place("last", ("last",), rectified=False),
]
DEPTHWISE = [
    Place("1", ("0",), ("1",), rectified=False, curve=F.relu6),
    Place("5", ("3",), ("4",)),
    Place("7", ("6",), ("7",), rectified=False, curve=F.silu),
    Place("9", ("9",), rectified=False),
    Place("12", ("12",), rectified=False),
]
CONV1D = [
    Place("2", ("0",), ("1",)),
    Place("3", ("3",), rectified=False, curve=torch.tanh),
    Place("6", ("6",), rectified=False),
]
TOKENS = [
    Place("up", ("up",), rectified=False, curve=lambda v: torch.tanh(2 * v) > 0.1),
    Place("across", ("across",), rectified=False, curve=F.gelu),
    Place("last", ("last",), rectified=False),
]


class Tokens(nn.Module):
    """Linear layers on positions, functions in a row, and views between them."""

    shape = (7, 3)

    def __init__(self):
        super().__init__()
        self.up, self.across = nn.Linear(3, 4), nn.Linear(7, 6)
        self.last = nn.Linear(24, 5)

    def forward(self, x):
        y = (torch.tanh(2 * self.up(x).transpose(1, 2)) > 0.1).float()
        return self.last(F.gelu(self.across(y).flatten(1)))


NETWORKS = [
    (Tokens, TOKENS),
    (perceptron, PERCEPTRON),
    (Blocks, BLOCKS),
    (depthwise, DEPTHWISE),
    (conv1d_net, CONV1D),
]
IDS = [build.__name__ for build, _ in NETWORKS]


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def some_learned(model, places, x, cells, outputs=5):
    """Any numbers where a layer's Jacobian is known; squares are above 0."""
    learned = {}
    for place in places:
        _, count = cell_numbers(through(model, x[:1], place)[1], cells, place.channel(model))
        learned[place.name] = torch.cat([torch.randn(outputs, count), torch.rand(1, count) + 0.1])
    return learned


class TestAgainstALoop:
    @pytest.mark.parametrize(("build", "places"), NETWORKS, ids=IDS)
    @pytest.mark.parametrize(
        ("samples", "cells", "every", "blur", "first"),
        [(1, 10_000, 1, 0.0, 0), (3, 40, 1, 0.5, 6), (2, 1, 3, 0.0, 3)],
    )
    def test_all_of_it(self, build, places, samples, cells, every, blur, first, monkeypatch):
        monkeypatch.setattr(FedBackActivations, "images_a_part", 3)
        model, x = make(build, seed=2), inputs_for(build, 4)
        with torch.no_grad():  # so that all noise matters
            model.get_submodule(places[-1].module).weight.mul_(5)
        settings = {"samples": samples, "cells": cells, "every": every, "blur": blur}
        settings |= {"first": first, "sigma": 0.3, "seed": 5, "generation": 7}
        learned = some_learned(model, places, x, cells)
        with torch.no_grad():
            population = fed_back(model, x, learned=learned, **settings)
            y = labels_for(x)
            result = evaluate(model, population, x, y)
            expected = Loop(model, places, population).evaluate(x, y, cross_entropy)
        fitness, gradient, totals, members, forwards, evaluations = expected
        torch.testing.assert_close(result.fitness, fitness, rtol=1e-4, atol=1e-5)
        assert result.gradient.keys() == held_parameters(model, x)
        for name, value in result.gradient.items():
            assert value.abs().max() > 0
            assert relative(value, gradient[name]) <= 3e-4, name
        assert result.effects.keys() == totals.keys()
        for name, effect in result.effects.items():
            assert effect.members == members[name]
            assert effect.total[:-1].abs().max() > 0
            assert relative(effect.total[:-1], totals[name][:-1]) <= 1e-4, name
            assert relative(effect.total[-1], totals[name][-1]) <= 1e-6, name
        assert result.forwards == pytest.approx(forwards)
        assert result.evaluations == evaluations

    def test_before_anything_is_learned_nothing_moves(self):
        model, x = made(perceptron), inputs_for(perceptron, 3)
        result = evaluation_of(model, x)
        assert all(not value.any() for value in result.gradient.values())
        assert all(effect.total.abs().max() > 0 for effect in result.effects.values())


def slopes(outputs, y, fitness, **settings):
    """How fitness changes with outputs ``[examples, numbers]``, as the evaluation finds it.

    They are the weights of a layer that sees which example it is; its Jacobian is known.
    """
    examples, numbers = outputs.shape
    model = nn.Linear(examples, numbers, bias=False)
    model.weight.data = outputs.T.clone()
    known = torch.cat([1.3 * torch.eye(numbers), torch.ones(1, numbers)])
    learned = {"weight:result": known}
    scores = evaluation_of(
        model, torch.eye(examples), y=y, fitness=fitness, learned=learned, **settings
    )
    return scores.gradient["weight"].T * examples, scores.fitness


def assert_gradient(found, worth):
    """`worth` is a function of the outputs, and what they were."""
    function, outputs = worth
    outputs = outputs.clone().requires_grad_()
    function(outputs).sum().backward()
    for one, other in zip(found, outputs.grad, strict=True):
        assert cosine(one, other) > 0.95
    assert 0.85 < found.norm() / outputs.grad.norm() < 1.15


class TestTheSlopeAtTheOutputs:
    """With many readings it is the gradient of the fitness, or of what noise makes of it."""

    def test_cross_entropy(self):
        outputs, y = torch.randn(6, 5), torch.arange(6) % 5
        found, fitness = slopes(outputs, y, cross_entropy, sigma=0.01, readings=2000)
        assert_gradient(found, (lambda z: -F.cross_entropy(z, y, reduction="none"), outputs))
        expected = -F.cross_entropy(outputs, y, reduction="none")
        torch.testing.assert_close(fitness, expected, rtol=1e-2, atol=1e-3)

    def test_being_right(self):
        """Of two classes one is right with the probability that the noise leaves it ahead."""
        outputs, y = torch.randn(6, 2), torch.arange(6) % 2

        def right(z):
            ahead = z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None])
            return torch.special.ndtr(ahead[:, 0] / (0.7 * 2**0.5))

        found, fitness = slopes(outputs, y, accuracy, blur=0.7, readings=20_000)
        assert_gradient(found, (right, outputs))
        torch.testing.assert_close(fitness, right(outputs), rtol=0, atol=0.02)

    def test_a_fitness_of_whole_numbers(self):
        outputs, prices = 2 * torch.randn(6, 3), torch.rand(6, 3) + 0.5

        def profit(orders, targets):
            return (targets * orders.round()).sum((1, 2))

        def smoothed(z):  # a whole number for each half that the noise leaves it above
            halves = torch.arange(-30, 30) - 0.5
            above = torch.special.ndtr((z.unsqueeze(2) - halves) / 0.6)
            return (prices * above.sum(2)).sum(1)

        found, _ = slopes(outputs, prices, profit, blur=0.6, readings=20_000)
        assert_gradient(found, (smoothed, outputs))

    def test_the_noise_is_a_part_of_what_an_examples_outputs_differ_in(self, set_threads):
        set_threads(1)
        seen = []

        @trusted
        def fitness(logits, labels):
            seen.append(logits[:, 0].view(3, 16, 4))
            return logits.sum((1, 2)) + labels[:, 0]

        outputs = torch.randn(3, 4) + torch.tensor([[0.0], [50.0], [-9.0]])
        slopes(outputs, torch.zeros(3), fitness, sigma=0.25, readings=16)
        (read,) = seen
        size = (outputs - outputs.mean(1, keepdim=True)).square().mean(1).sqrt()
        moved = (read - outputs.unsqueeze(1)).abs()
        expected = (0.25 * size).view(3, 1, 1).expand_as(moved)
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_readings_that_are_not_finite(self, bad):
        """They count as the worst of their example, and not at all where none is finite."""

        def fitness(logits, labels):
            worth = logits[:, 0].sum(1)
            never, sometimes = labels[:, 0] == 1, (labels[:, 0] == 2) & (worth > 0)
            return torch.where(never | sometimes, bad, worth)

        found, worth = slopes(torch.zeros(3, 4), torch.arange(3), fitness, readings=64)
        assert torch.isfinite(found).all()
        assert torch.equal(found[1], torch.zeros(4))
        assert found[0].min() > 0 > found[2].max()  # what is above 0 is as bad as the worst
        assert worth.isnan().tolist() == [False, True, False]


def same(one, other):
    """Whether two evaluations have the same bits."""
    return (
        torch.equal(one.fitness, other.fitness)
        and all(torch.equal(v, other.gradient[n]) for n, v in one.gradient.items())
        and all(torch.equal(e.total, other.effects[n].total) for n, e in one.effects.items())
        and (one.forwards, one.evaluations) == (other.forwards, other.evaluations)
    )


class TestParts:
    CELLS = 30

    def evaluation(self, build, places, **settings):
        torch.manual_seed(4)
        model, x = make(build, seed=2), inputs_for(build, 150)
        learned = some_learned(model, places, x, self.CELLS)
        changes = {"cells": self.CELLS, "learned": learned, **settings}
        return model, x, labels_for(x), fed_back(model, x, **changes)

    @pytest.mark.parametrize(("build", "places"), NETWORKS, ids=IDS)
    def test_the_same_bits_on_two_threads_and_again(self, build, places, set_threads):
        given = self.evaluation(build, places, samples=2, every=2)
        model, x, y, population = given
        set_threads(1)
        one, again = (evaluate(model, population, x, y) for _ in range(2))
        assert same(one, again)
        set_threads(2)
        assert same(one, evaluate(model, population, x, y))

    @pytest.mark.parametrize("change", [{"generation": 2}, {"seed": 1}])
    def test_other_noise_other_bits(self, change):
        results = []
        for settings in ({}, change):
            model, x, y, population = self.evaluation(Blocks, BLOCKS, every=2, **settings)
            results.append(evaluate(model, population, x, y))
        one, other = results
        assert not torch.equal(one.fitness, other.fitness)
        assert one.effects.keys() == other.effects.keys()
        for name, effect in one.effects.items():
            assert not torch.equal(effect.total, other.effects[name].total)
        for name, value in one.gradient.items():
            assert not torch.equal(value, other.gradient[name])

    def test_parts_apart_add_up(self):
        """As workers evaluate them: each some whole parts, told where it begins."""
        model, x, y, population = self.evaluation(Blocks, BLOCKS, samples=2, every=2)
        whole = evaluate(model, population, x, y)
        parts = [
            evaluate(model, replace(population, first=part.start), x[part], y[part])
            for part in population.parts(len(x))
        ]
        assert len(parts) == 3
        assert same(whole, merged(parts))
        alike = [evaluate(model, population, x[part], y[part]) for part in population.parts(150)]
        assert not same(whole, merged(alike))

    def test_each_layer_is_tried_by_each_part_once_in_so_many_generations(self):
        tried = {}
        for generation in range(3, 6):
            model, x, y, population = self.evaluation(
                Blocks, BLOCKS, every=3, generation=generation
            )
            for part in population.parts(len(x)):
                one = replace(population, first=part.start)
                told = evaluate(model, one, x[part], y[part])
                assert len(told.effects) in (1, 2)  # of five layers
                for name in told.effects:
                    assert told.effects[name].members == part.stop - part.start
                    tried.setdefault(name, []).append(part.start)
        assert tried.keys() == {place.name for place in BLOCKS}
        expected = [part.start for part in population.parts(len(x))]
        assert all(sorted(starts) == expected for starts in tried.values())

    def test_members_of_an_example_have_noise_of_their_own(self):
        model, x, y, population = self.evaluation(perceptron, PERCEPTRON, samples=3)
        each = []
        for first in range(3):  # one example's members, as three examples
            alone = replace(population, samples=1, first=first)
            each.append(evaluate(model, alone, x[:1], y[:1]))
        together = evaluate(model, population, x[:1], y[:1])
        for name, effect in together.effects.items():
            assert effect.members == 3
            total = sum(one.effects[name].total for one in each)
            torch.testing.assert_close(effect.total, total, rtol=1e-4, atol=1e-4)
            assert not torch.equal(each[0].effects[name].total, each[1].effects[name].total)


class TestBfloat16:
    @pytest.mark.parametrize(("build", "places"), NETWORKS, ids=IDS)
    def test_is_close_to_float32(self, build, places):
        model, x = make(build, seed=2), inputs_for(build, 16)
        learned = some_learned(model, places, x, 30)
        settings = {"learned": learned, "cells": 30, "sigma": 0.3, "samples": 4}
        wide, narrow = (
            evaluation_of(model, x, dtype=dtype, **settings)
            for dtype in (torch.float32, torch.bfloat16)
        )
        assert not torch.equal(wide.fitness, narrow.fitness)
        assert narrow.fitness.dtype == torch.float32
        for name, value in wide.gradient.items():
            assert narrow.gradient[name].dtype == torch.float32
            assert cosine(value, narrow.gradient[name]) > 0.9, name
        for name, effect in wide.effects.items():
            assert cosine(effect.total[:-1], narrow.effects[name].total[:-1]) > 0.9, name


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x):
        return self.one(x), self.two(x)


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 5)

    def forward(self, x):
        return self.linear(x - x.mean(0))


class TestMistakes:
    MODEL = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 5)).eval()

    def said(self, kind, model=MODEL, **changes):
        x = torch.ones(3, 8)
        with pytest.raises(kind) as caught:
            evaluation_of(model, x, names={n for n, _ in model.named_parameters()}, **changes)
        return str(caught.value)

    def test_outputs_that_are_not_one_tensor(self):
        assert self.said(ArgumentError, Pair().eval(), fitness=lambda o, _: o[0].sum((1, 2))) == (
            "model: needed a module that returns one tensor, [batch, ...], got one that returns 2."
        )

    def test_dropout_that_is_active(self):
        model = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5), nn.Linear(4, 5)).train()
        assert "active dropout" in self.said(UnsupportedLayerError, model)

    def test_examples_that_see_each_other(self):
        said = self.said(UnsupportedLayerError, Centred().eval())
        assert "its forward (the examples of a batch are not independent)" in said

    def test_what_was_learned_of_another_network(self):
        said = self.said(ArgumentError, learned={"0.weight:result": torch.zeros(6, 5)})
        assert said == (
            "learned: needed float32 of shape [6, 4] for '0.weight:result', got float32 of [6, 5]."
        )

    @pytest.mark.parametrize("name", ["samples", "cells", "every"])
    def test_numbers_below_one(self, name):
        said = self.said(ArgumentError, **{name: 0})
        assert said == f"{name}: needed an integer of at least 1, got 0."

    def test_memory_that_not_even_one_part_fits(self):
        x = torch.ones(3, 8)
        population = fed_back(self.MODEL, x)
        with pytest.raises(ArgumentError) as caught:
            evaluate(self.MODEL, population, x, labels_for(x), memory=100)
        assert str(caught.value).startswith("memory: needed at least ")

    def test_a_forward_of_members(self):
        x = torch.ones(3, 8)
        with pytest.raises(ArgumentError) as caught:
            forward(self.MODEL, fed_back(self.MODEL, x), x)
        assert "evaluate rates them." in str(caught.value)
