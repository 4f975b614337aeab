"""What perturbed activations are refused for, in words."""

import pytest
import torch
import torch.nn.functional as F
from graph_nets import Net
from perturbed import evaluation_of, labels_for, perturbed
from small_nets import inputs_for, made, transformer
from torch import nn

from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.evaluation.entry import evaluate

MODEL = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 5)).eval()
X = torch.ones(3, 8)


def said(kind, model=MODEL, x=X, names=("0.weight",), **changes):
    with pytest.raises(kind) as caught:
        evaluation_of(model, x, names=set(names), **changes)
    return str(caught.value)


FIT = "targets: needed a target for every example of the inputs, [3], got"
FINITE = "needed a finite number"
SAID = [
    ({"x": torch.zeros(0, 8)}, "inputs: needed at least one example, got [0, 8]."),
    ({"y": torch.zeros(2).long()}, f"{FIT} [2]."),
    ({"y": torch.zeros(4).long()}, f"{FIT} [4]."),
    ({"y": torch.tensor(0)}, f"{FIT} []."),
    (  # of other models: whether it fits, the fitness knows
        {"y": torch.zeros(3, 1).long()},
        "targets: needed a label for every row of logits, [24, 1], got [24, 1, 1].",
    ),
    (
        {"dtype": torch.float16},
        "dtype: needed torch.float32 or torch.bfloat16, got torch.float16.",
    ),
    (
        {"names": ("0.weight", "head.weight")},
        "population: needed only parameters that the model has, got 'head.weight'. The model "
        "has '0.weight', '0.bias', '2.weight', ....",
    ),
    ({"names": ()}, "params: needed at least one parameter that evolves, got none."),
    *(({"samples": n}, f"samples: needed an integer of at least 2, got {n}.") for n in (1, 0, -3)),
    *(
        ({"sigma": n}, f"sigma: {FINITE} above 0, got {n}.")
        for n in (0.0, -0.1, float("inf"), float("nan"))
    ),
    *(
        ({"blur": n}, f"blur: {FINITE} of at least 0, got {n}.")
        for n in (-0.1, float("inf"), float("nan"))
    ),
    *(({"readings": n}, f"readings: needed an integer of at least 1, got {n}.") for n in (0, -1)),
]


@pytest.mark.parametrize(("changes", "message"), SAID, ids=lambda value: str(value)[:40])
def test_arguments(changes, message):
    assert said(ArgumentError, **changes) == message


def test_a_fitness_of_all_members_together():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # all examples in a tile
    message = said(ArgumentError, fitness=lambda logits, _: logits.mean(), samples=2)
    torch.set_num_threads(before)
    assert message == (
        "fitness: needed a tensor of shape [members] = [6], one scalar per member, got a tensor of "
        "shape []. Average over the examples of a member (dimension 1), not over the members."
    )


def test_a_parameter_of_another_shape():
    population = perturbed(MODEL, X, {"0.bias"})
    population.params["0.bias"] = torch.zeros(3)
    with pytest.raises(ArgumentError) as caught:
        evaluate(MODEL, population, X, labels_for(X))
    assert str(caught.value) == "population: needed '0.bias' of shape [4], as the model's, got [3]."


def test_another_engine():
    with pytest.raises(ArgumentError) as caught:
        evaluate(MODEL, perturbed(MODEL, X, None), X, labels_for(X), engine="factored")
    assert str(caught.value) == "engine: needed one of auto, activations, got 'factored'."


def test_inputs_that_the_module_does_not_take():
    assert said(ArgumentError, x=torch.zeros(3, 7)).startswith(
        "inputs: needed examples that Sequential takes, [batch, ...] for each member, got [3, 7]"
    )


def around(layer):
    return nn.Sequential(nn.Linear(8, 4), layer, nn.Linear(4, 5))


def test_a_norm_in_train_mode():
    assert said(ArgumentError, around(nn.BatchNorm1d(4)).train()).startswith(
        "model: needed BatchNorm layers in eval mode, because members cannot train the running "
        "statistics of one module, got '1' in train mode. Call model.eval(), or "
    )


def test_examples_that_are_not_independent():
    model = around(nn.BatchNorm1d(4, track_running_stats=False)).eval()
    assert said(UnsupportedLayerError, model) == (
        "Sequential: no member-wise form of its forward (the examples of a batch are not "
        "independent) is known."
    )


def test_active_dropout():
    model = around(nn.Dropout(0.5)).train()
    message = said(UnsupportedLayerError, model)
    assert message == "Sequential: no member-wise form of active dropout is known."
    assert torch.isfinite(evaluation_of(model.eval(), X).fitness).all()


def test_a_forward_that_is_no_graph():
    class Asks(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2 if x.sum() > 0 else 1)

    message = said(UnsupportedLayerError, Asks(8, 5), names=("weight",))
    assert message.startswith("Asks: its forward is no graph of operations (")


NOT_PERTURBED = (
    "{0}: no member-wise form of an operation whose result is not perturbed is known. Weights and "
    "biases of convolutions and linear layers, and shifts of norms, evolve with perturbed "
    "activations; leave {0!r} out, or give it Group(sigma=0.0)."
)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (lambda: nn.LayerNorm(4), "1.weight"),
        (lambda: nn.LayerNorm(4), "1.bias"),
        (lambda: nn.BatchNorm1d(4), "1.weight"),
        (lambda: nn.PReLU(4), "1.weight"),
    ],
)
def test_a_parameter_whose_result_is_not_perturbed(layer, name):
    model = around(layer()).eval()
    message = said(UnsupportedLayerError, model, names=("0.weight", name))
    assert message == NOT_PERTURBED.format(name)
    assert evaluation_of(model, X, names={"0.weight", "2.bias"}).gradient["0.weight"].any()


@pytest.mark.parametrize(
    ("forward", "name"),
    [
        (lambda m, x: m.one(x) * m.one.bias.exp(), "one.bias"),
        (lambda m, x: m.one(x) + m.one.weight.square().mean(), "one.weight"),
        (lambda m, x: F.linear(m.one(x), m.one.bias.diag()), "one.bias"),
        (lambda m, x: m.one(x), "other.weight"),
        (lambda m, x: F.linear(x, m.one.weight.abs()), "one.weight"),
    ],
)
def test_a_parameter_that_does_something_else_as_well(forward, name):
    """An estimate from the layer alone would be wrong without a word."""
    model = Net(forward, one=nn.Linear(8, 5), other=nn.Linear(8, 5)).eval()
    assert said(UnsupportedLayerError, model, names=(name,)) == NOT_PERTURBED.format(name)


NOT_FIRST = (
    "{}: no member-wise form of aten.linear.default on examples that are not along axis 0 is known."
)


def test_examples_that_are_not_along_the_first_axis():
    name = "encoder.layers.0.self_attn.in_proj_weight"
    x = inputs_for(transformer, 3)
    message = said(UnsupportedLayerError, made(transformer), x, names=(name,))
    assert message == NOT_FIRST.format(name)


def test_a_layer_that_sees_no_example():
    layers = {"one": nn.Linear(8, 5), "other": nn.Linear(5, 5)}
    model = Net(lambda m, x: m.one(x) @ m.other(torch.eye(5)), **layers).eval()
    message = said(UnsupportedLayerError, model, names=("one.bias", "other.weight"))
    assert message == NOT_PERTURBED.format("other.weight")
