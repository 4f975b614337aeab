"""Modules of other signatures than one tensor in and one out, and what they are called with."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils import _pytree

from tinkering import ArgumentError


class Gated(nn.Module):
    """Two inputs, and a dict of results."""

    def __init__(self):
        super().__init__()
        self.value, self.gate = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, x, y):
        gate = torch.sigmoid(self.gate(y))
        return {"out": self.value(x) * gate, "gate": gate, "name": "gated"}


class Masked(nn.Module):
    """A mask of pairs of tokens, an option, and a keyword that `bind` has as well."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, words, *, mask, memory=None, scale=1.0):
        h = self.embed(words)
        if memory is not None:
            h = h + memory
        attended, _ = self.attend(h, h, h, attn_mask=mask, need_weights=False)
        return self.out(attended).mul(scale)


class Stepped(nn.Module):
    """Takes its state, and returns it."""

    def __init__(self):
        super().__init__()
        self.forget, self.new, self.out = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x, state):
        both = torch.cat([x, state[0]], -1)
        gate = torch.sigmoid(self.forget(both))
        h = gate * state[0] + (1 - gate) * torch.tanh(self.new(both))
        return self.out(h), (h, state[1] + 1)


class Recurrent(nn.Module):
    """PyTorch's own layer, whose state has the examples along its second axis."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x, state):
        h, state = self.cell(x, state)
        return self.out(h[:, -1]), state


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor


torch.export.register_dataclass(Answer, serialized_type_name="tests.Answer")


class Nested(nn.Module):
    """Trees in, and an object of a class of its own out."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, batch):
        h = self.first(batch["x"]) + self.second(batch["more"][0])
        return Answer(h.tanh(), h)


BATCH = 5


def given(*leading):
    """For each module, what it is called with: ``(args, kwargs)``, with axes in front."""
    lead = (*leading, BATCH)
    return {
        Gated: ((torch.randn(*lead, 3), torch.randn(*lead, 5)), {}),
        Masked: (
            (torch.randint(11, (*lead, 4)),),
            {
                "mask": torch.triu(torch.full((4, 4), -torch.inf), 1),
                "memory": torch.randn(*lead, 1, 1),
                "scale": 2.0,
            },
        ),
        Stepped: ((torch.randn(*lead, 2), (torch.randn(*lead, 4), torch.zeros(*lead, 1))), {}),
        Nested: (({"x": torch.randn(*lead, 3), "more": [torch.randn(*lead, 2), 7]},), {}),
    }


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


def said(function):
    with pytest.raises(ArgumentError) as caught:
        function()
    return str(caught.value)
