"""What is no tensor, no module, no population is refused in words.

Annotations are checked while tests run, so a process without those checks meets the mistakes.
"""

import json
import subprocess
import sys
from functools import cache

import pytest

SCRIPT = """
import json, warnings
import numpy as np
import torch
from torch import nn
from tinkering import *

warnings.simplefilter("ignore")
model = nn.Sequential(nn.Linear(4, 3)).eval()
params = {name: p.detach() for name, p in model.named_parameters()}
members = PerturbedPopulation(model, 4, 0.1)
stacked = StackedPopulation.from_modules([model] * 4)
x, y = torch.randn(2, 4), torch.zeros(2, dtype=torch.long)
lstm = nn.LSTM(4, 3, batch_first=True).eval()
class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = lstm
    def forward(self, x):
        return self.lstm(x)[0][:, -1]
last = Last().eval()
class Rows(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1))
picture = Rows(4, 3).eval()
pictures = PerturbedPopulation(picture, 4, 0.1)
class Named(nn.Sequential):
    def forward(self, x):
        return dict(logits=super().forward(x))
named = Named(*model).eval()
own = StackedPopulation(dict(weight=torch.randn(5, 3, 4)), {})
strategy = EvolutionStrategy(Weights(population=4))
state = strategy.init(params)
genes = GeneticAlgorithm(population=4, parents=2)
perturbed = EvolutionStrategy(Activations()).ask(EvolutionStrategy(Activations()).init(params))
calls = {
    "x array": lambda: forward(model, members, x.numpy()),
    "x list": lambda: forward(model, members, [[1.0] * 4]),
    "y array": lambda: evaluate(model, members, x, y.numpy()),
    "y list": lambda: evaluate(model, members, x, [0, 0]),
    "y int32": lambda: evaluate(model, members, x, y.int()),
    "y too large": lambda: evaluate(model, members, x, y + 3),
    "y negative": lambda: evaluate(model, members, x, y - 1),
    "fitness array": lambda: evaluate(model, members, x, y, lambda l, t: np.zeros(len(l))),
    "fitness list": lambda: evaluate(model, members, x, y, lambda l, t: [0.0] * len(l)),
    "fitness complex": lambda: evaluate(
        model, members, x, y, lambda l, t: torch.zeros(len(l), dtype=torch.complex64)
    ),
    "model": lambda: forward(params, members, x),
    "population module": lambda: forward(model, model, x),
    "population dict": lambda: forward(model, params, x),
    "population activations": lambda: forward(model, perturbed, x),
    "activations y": lambda: evaluate(model, perturbed, x, [0, 0]),
    "member": lambda: perturbed.member(0),
    "materialise": lambda: perturbed.materialise(0, model),
    "stack": lambda: perturbed.stack(),
    "perturb": lambda: EvolutionStrategy(256),
    "observations": lambda: forward(picture, pictures, torch.randn(4, 4), (0, 0)),
    "one observation": lambda: forward(picture, pictures, torch.randn(4)),
    "fitness none": lambda: evaluate(model, members, x, y, None),
    "fitness name": lambda: evaluate(model, members, x, y, "accuracy"),
    "fitness of logits": lambda: evaluate(named, members, x, y),
    "lstm vmapped": lambda: forward(
        last, StackedPopulation.from_modules([last] * 2), torch.randn(2, 5, 4), engine="vmapped"
    ),
    "centre list": lambda: PerturbedPopulation([1], 4, 0.1),
    "centre values": lambda: PerturbedPopulation({"a": 1.0}, 4, 0.1),
    "centre integers": lambda: PerturbedPopulation({"a": torch.tensor([1])}, 4, 0.1),
    "stack module": lambda: StackedPopulation(model, {}),
    "modules one": lambda: StackedPopulation.from_modules(5),
    "vectors array": lambda: StackedPopulation.from_vectors(model, np.zeros((4, 15))),
    "init module": lambda: strategy.init(model),
    "init integers": lambda: strategy.init({"a": torch.tensor([1])}),
    "genes module": lambda: genes.init(model),
    "genes integers": lambda: genes.init({"a": torch.tensor([True])}),
    "activations integers": lambda: EvolutionStrategy(Activations()).init({"a": torch.tensor([1])}),
    "tell array": lambda: strategy.tell(state, np.zeros(4)),
    "tell list": lambda: genes.tell(genes.init(params), [0.0] * 4),
    "recalibrate": lambda: recalibrate(model, [1.0, 2.0]),
}
said = {}
for name, call in calls.items():
    try:
        call()
        said[name] = "nothing"
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""
TENSOR = "Call torch.as_tensor on it."
AXIS = (
    "An axis for the batch is missing: x[:, None] where each member has an example of its own, "
    "x[None] where they share one."
)
KINDS = "StackedPopulation and PerturbedPopulation make one of modules or parameters."
ALONE = "Hand in the others as a dict: it stays as it is then."
REFUSED = (
    "population: needed members with weights of their own, got PerturbedActivations. Its members "
    "are the centre, but for noise on an activation."
)
SCALAR = "fitness: needed a tensor of shape [members] = [*], one scalar per member, got"
NO_FITNESS = (
    "fitness: needed a function of outputs and targets that returns one scalar per member, got"
)
LOSS = "A loss of PyTorch averages over members; negative_cross_entropy does not."
SAID = {
    "x array": f"inputs: needed a tensor, got an ndarray. {TENSOR}",
    "x list": f"inputs[0][0]: needed a tensor, got a float. {TENSOR}",
    "y array": f"targets: needed a tensor, got an ndarray. {TENSOR}",
    "y list": f"targets: needed a tensor, got a list. {TENSOR}",
    "y int32": "targets: needed labels of torch.int64, got torch.int32. Call targets.long().",
    "y too large": "targets: needed labels from 0 to 2, as there are 3 outputs, got 3.",
    "y negative": "targets: needed labels from 0 to 2, as there are 3 outputs, got -1.",
    "fitness array": f"{SCALAR} an ndarray. {TENSOR}",
    "fitness list": f"{SCALAR} a list. {TENSOR}",
    "fitness complex": "fitness: needed real numbers, got torch.complex64.",
    "model": "model: needed a module, got a dict.",
    "population module": f"population: needed a Population, got a Sequential. {KINDS}",
    "population dict": f"population: needed a Population, got a dict. {KINDS}",
    "population activations": "population: needed members that see the whole batch, got "
    "PerturbedActivations. A member of these sees a single example: evaluate rates them.",
    "member": REFUSED,
    "materialise": REFUSED,
    "stack": REFUSED,
    "perturb": "perturb: needed Weights, Activations or Feedback, got 256.",
    "activations y": f"targets: needed a tensor, got a list. {TENSOR}",
    "fitness none": f"{NO_FITNESS} a NoneType. {LOSS}",
    "fitness name": f"{NO_FITNESS} a str. {LOSS}",
    "fitness of logits": "fitness: needed a function of a dict, as the module returns, got one of "
    "logits, a tensor.",
    "observations": "inputs: needed examples that Rows takes, [batch, ...] for each "
    f"member, got [4] of torch.float32 (*). {AXIS}",
    "one observation": "inputs: needed examples that Rows takes, [batch, ...] for each "
    f"member, got [4] of torch.float32 (*). {AXIS}",
    "lstm vmapped": "Last: no member-wise form of its forward under torch.func.vmap (*) is known.",
    "centre list": "model: needed tensors by name, got a list.",
    "centre values": "model: needed a tensor for 'a', got a float.",
    "centre integers": "model: needed parameters of a floating-point dtype, got torch.int64 in "
    f"'a'. {ALONE}",
    "stack module": "params: needed tensors by name, got a Sequential. It is "
    "dict(model.named_parameters()).",
    "modules one": "models: needed modules, one a member, got an int.",
    "vectors array": f"vectors: needed a tensor, got an ndarray. {TENSOR}",
    "init module": "params: needed tensors by name, got a Sequential. It is "
    "dict(model.named_parameters()).",
    "init integers": "params: needed parameters of a floating-point dtype, got torch.int64 in "
    f"'a'. {ALONE}",
    "genes module": "params: needed tensors by name, got a Sequential. It is "
    "dict(model.named_parameters()).",
    "genes integers": "params: needed parameters of a floating-point dtype, got torch.bool in "
    f"'a'. {ALONE}",
    "activations integers": "params: needed parameters of a floating-point dtype, got torch.int64 "
    f"in 'a'. {ALONE}",
    "tell array": f"fitness: needed a tensor of shape [4], got an ndarray. {TENSOR}",
    "tell list": f"fitness: needed a tensor of shape [4], got a list. {TENSOR}",
    "recalibrate": f"inputs: needed a tensor, got a list. {TENSOR}",
}


@cache
def messages():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", SAID)
def test_message(name):
    kind, said = messages()[name].split(": ", 1)
    assert kind == ("UnsupportedLayerError" if name == "lstm vmapped" else "ArgumentError")
    start, *end = SAID[name].split("*")
    assert said.startswith(start)
    if end:
        assert said.endswith(end[0])
    else:
        assert said == start


def test_every_call_has_a_message():
    assert messages().keys() == SAID.keys()
