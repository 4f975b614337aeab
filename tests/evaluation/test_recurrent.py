"""Recurrent modules in all their options, members around a centre and stacked, against a loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import assert_close
from torch import nn

from tinkering import bind
from tinkering.noise import Dense, LowRank, Separable
from tinkering.population import PerturbedPopulation

MEMBERS, EXAMPLES = 4, 3
KINDS = [LowRank(1), LowRank(2), Separable(1), Dense()]


class Started(nn.Module):
    """A recurrent module that begins with a state which is handed in, learned or nothing."""

    def __init__(self, module, start):
        super().__init__()
        self.module, self.start = module, start
        layers = module.num_layers * (1 + module.bidirectional)
        self.learned = nn.Parameter(torch.randn(layers, 1, module.hidden_size))

    def forward(self, x, h):
        batch = x.shape[0]
        h = {"given": h.transpose(0, 1), "learned": self.learned.expand(-1, batch, -1)}.get(
            self.start
        )
        x = x if self.module.batch_first else x.transpose(0, 1)
        state = None if h is None else h
        if state is not None and isinstance(self.module, nn.LSTM):
            cut = self.module.proj_size or self.module.hidden_size
            state = (state[..., :cut].contiguous(), state)
        out, last = self.module(x, state)
        out = out if self.module.batch_first else out.transpose(0, 1)
        return out, (last[0] if isinstance(last, tuple) else last).transpose(0, 1)


@st.composite
def modules(draw):
    kind = draw(st.sampled_from([nn.RNN, nn.GRU, nn.LSTM]))
    hidden = draw(st.integers(2, 5))
    options = {
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
    }
    if kind is nn.LSTM and draw(st.booleans()):
        options["proj_size"] = draw(st.integers(1, hidden - 1))
    if kind is nn.RNN:
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    inputs = draw(st.integers(1, 4))
    return kind(inputs, hidden, **options), draw(st.sampled_from(["given", "learned", "nothing"]))


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@settings(max_examples=15, deadline=None)  # each is captured
@given(modules(), st.integers(1, 5), st.sampled_from(KINDS), st.sampled_from([1, EXAMPLES]))
def test_equals_a_loop(case, time, noise, examples):
    torch.manual_seed(0)
    module, start = case
    model = Started(module, start).eval()
    layers = module.num_layers * (1 + module.bidirectional)
    x = torch.randn(MEMBERS, examples, time, module.input_size)
    h = torch.randn(MEMBERS, examples, layers, module.hidden_size)
    population = PerturbedPopulation(model, MEMBERS, 0.3, noise)
    alone = [population.materialise(i)(x[i], h[i]) for i in range(MEMBERS)]
    expected = [torch.stack(each) for each in zip(*alone, strict=True)]
    for members, engine in ((population, "factored"), (population.stack(), "batched")):
        bound = bind(model, members, (x, h), in_dims=(0, (0, 0)), engine=engine)
        for result, wanted in zip(bound(x, h), expected, strict=True):
            assert_close(result, wanted)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_a_weight_that_is_made_and_nobodys_own(kind):
    torch.manual_seed(0)
    cell = nn.utils.parametrizations.weight_norm(kind(4, 5), "weight_hh").eval()
    population = PerturbedPopulation({"weight_ih": cell.weight_ih.detach()}, MEMBERS, 0.3)
    x = torch.randn(MEMBERS, EXAMPLES, 4)
    for members in (population, population.stack()):
        results = bind(cell, members, x, in_dims=(0, 0))(x)
        results = results if isinstance(results, tuple) else (results,)
        for i in range(MEMBERS):
            alone = members.materialise(i, cell)(x[i])
            alone = alone if isinstance(alone, tuple) else (alone,)
            for result, wanted in zip(results, alone, strict=True):
                assert_close(result[i], wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("engine", ["auto", "sequential"])
def test_modules_of_another_dtype(dtype, kind, engine):
    torch.manual_seed(0)
    model = kind(4, 5, batch_first=True).to(dtype).eval()
    population = PerturbedPopulation(model, MEMBERS, 0.3)
    x = torch.randn(MEMBERS, EXAMPLES, 2, 4, dtype=dtype)
    result = bind(model, population, x, in_dims=(0, 0), engine=engine)(x)[0]
    alone = torch.stack([population.materialise(i)(x[i])[0] for i in range(MEMBERS)])
    tolerance = 1e-5 if dtype == torch.float64 else 1e-2
    assert (result - alone.float()).abs().max() <= tolerance
