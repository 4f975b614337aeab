"""A module that is changed after a call is evaluated as it is now."""

import types
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from awkward import Net, rows
from small_nets import assert_close, loop
from torch import nn

from tinkering.engines import network as look
from tinkering.evaluation.entry import forward
from tinkering.graph.fingerprint import fingerprint
from tinkering.population import PerturbedPopulation

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    net = Net(
        lambda m, x: (
            m.settings.factor
            * m.factor
            * m.second(m.power(m.scale(m.others[0](m.activation(m.first(x))))))
            + m.constant
        ),
        {"offset": torch.randn(5)},
        first=rows(4),
        second=rows(5),
        third=rows(4),
        activation=nn.Tanh(),
        factor=2,
        sizes={"a": [1, 2]},
        constant=torch.tensor(1.0),
        others=[rows(4)],
        settings=SimpleNamespace(factor=1),
        power=partial(torch.pow, exponent=1),
        scale=Scale(1).of,
    )
    return net.eval()


def tie(net):
    net.third.weight = net.first.weight
    net.given = lambda m, x: m.second(m.third(torch.tanh(m.first(x))))


def another_method(net):
    net.forward = types.MethodType(lambda m, x: -m.second(m.first(x)), net)


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def of(self, x):
        return x * self.factor


def train_in_a_list(net):
    with torch.no_grad():
        net.others[0].weight.add_(1)


CHANGES = {
    "a layer in a list": train_in_a_list,
    "an attribute of a layer in a list": lambda net: setattr(net.others[0], "bias", None),
    "values without a trace": lambda net: net.constant.data.add_(4),
    "a field": lambda net: setattr(net.settings, "factor", 3),
    "an argument": lambda net: setattr(net, "power", partial(torch.pow, exponent=2)),
    "the object of a method": lambda net: setattr(net, "scale", Scale(3).of),
    "a number": lambda net: setattr(net, "factor", 3),
    "a function": lambda net: setattr(net, "given", lambda m, x: m.second(m.first(x).sin())),
    "a layer": lambda net: setattr(net, "activation", nn.ReLU()),
    "a forward of its own": another_method,
    "a hook": lambda net: net.first.register_forward_hook(lambda _, __, result: result * 3),
    "a hook before": lambda net: net.register_forward_pre_hook(lambda _, given: (given[0] + 1,)),
    "ties": tie,
    "a constant": lambda net: setattr(net, "constant", torch.tensor(5.0)),
    "a constant in place": lambda net: net.constant.add_(4),
    "a parametrisation": lambda net: nn.utils.parametrizations.weight_norm(net.first),
}


@pytest.mark.filterwarnings("ignore:members share a centre, but")
@pytest.mark.parametrize("change", CHANGES)
def test_it_counts(change):
    net = network()
    forward(net, PerturbedPopulation(net, 4, 0.5), X)
    before = loop(PerturbedPopulation(net, 4, 0.5), X)
    CHANGES[change](net)
    population = PerturbedPopulation(net, 4, 0.5)
    expected = loop(population, X)
    assert (expected - before).abs().max() > 0.01
    assert_close(forward(net, population, X), expected)


def test_the_code_of_a_class():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = rows()

        def forward(self, x):
            return self.linear(x)

    net = Layer().eval()
    population = PerturbedPopulation(net, 4, 0.5)
    forward(net, population, X)
    Layer.forward = lambda self, x: F.relu(self.linear(x))
    assert_close(forward(net, population, X), loop(population, X))


def test_weights_that_were_tied_apart():
    net = network()
    tie(net)
    forward(net, PerturbedPopulation(net, 4, 0.5), X)
    net.third.weight = nn.Parameter(torch.randn(4, 4))
    population = PerturbedPopulation(net, 4, 0.5)
    assert_close(forward(net, population, X), loop(population, X))


class TestFingerprint:
    def test_values_of_parameters_and_buffers_do_not_count(self):
        net = network()
        before = fingerprint(net)
        with torch.no_grad():
            net.first.weight.add_(1)
            net.offset.add_(1)
        net.first.bias = nn.Parameter(torch.randn(4))
        assert fingerprint(net) == before
        assert hash(fingerprint(net)) == hash(before)

    def test_a_function_that_is_gone_is_not_taken_for_one_in_its_place(self):
        """Where Python puts the new one in the old one's memory, their ids are equal."""
        net = network()
        seen = set()
        for number in range(50):
            net.given = eval(f"lambda m, x: m.first(x) * {number}")
            seen.add(fingerprint(net))
        assert len(seen) == 50

    def test_what_is_inside_containers_counts(self):
        net = network()
        before = fingerprint(net)
        net.sizes["a"].append(3)
        assert fingerprint(net) != before

    def test_a_container_that_contains_itself(self):
        net = network()
        net.sizes["again"] = net.sizes
        assert fingerprint(net) == fingerprint(net)


def test_a_module_that_is_changed_all_the_time_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(look, "_KEPT", 2)
    net = network()
    for factor in (1, 2, 3, 4):
        net.factor = factor
        population = PerturbedPopulation(net, 4, 0.5)
        assert_close(forward(net, population, X), loop(population, X))
        assert len(look._known[net]) <= 2
