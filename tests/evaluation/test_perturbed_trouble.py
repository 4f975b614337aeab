"""Estimates of perturbed activations where examples, outputs or norms are out of the ordinary."""

import fed_back
import perturbed
import pytest
import torch
from small_nets import inputs_for, make, normalised_perceptron, perceptron
from torch import nn

from tinkering.errors import ArgumentError, UnsupportedLayerError
from tinkering.evaluation.batchnorm import Reference
from tinkering.evaluation.entry import evaluate


@pytest.mark.parametrize("evaluation_of", [fed_back.evaluation_of, perturbed.evaluation_of])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_example_that_is_no_number_takes_no_part(evaluation_of, bad):
    model, x = make(perceptron, seed=2), inputs_for(perceptron, 6)
    changes = {"y": perturbed.labels_for(x)}
    if evaluation_of is fed_back.evaluation_of:
        first = evaluation_of(model, x, **changes)
        changes["learned"] = {n: e.total / e.members for n, e in first.effects.items()}
    alone = evaluation_of(model, x[:5], **changes | {"y": changes["y"][:5]})
    x[5] = bad
    result = evaluation_of(model, x, **changes)
    assert not result.fitness[-1].isfinite()
    assert any(value.any() for value in alone.gradient.values())
    for name, value in result.gradient.items():
        torch.testing.assert_close(value, alone.gradient[name] * 5 / 6)


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_noise_on_a_single_output_is_a_part_of_what_examples_differ_in(offset):
    """So an offset that outputs and targets share changes nothing."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1), torch.randn(60, 4)
    y = model(x).detach() + torch.where(torch.rand(60, 1) > 0.2, 1.0, -1.0)
    nn.init.constant_(model.bias, model.bias.item() + offset)
    truth = torch.where(y > model(x).detach() - offset, 1.0, -1.0).mean()
    result = fed_back.evaluation_of(
        model,
        x,
        y=y + offset,
        fitness=lambda outputs, targets: -(outputs - targets).abs().sum((1, 2)),
        learned={"weight:result": torch.tensor([[1.3], [1.0]])},
        readings=1000,
    )
    assert result.gradient["bias"].item() == pytest.approx(truth.item(), abs=0.02)


def test_outputs_that_are_almost_nothing_are_moved_by_more_than_rounding():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(20, 4)
    nn.init.zeros_(model.bias)
    model.weight.data *= 1e-9
    learned = {"weight:result": torch.cat([1.3 * torch.eye(3), torch.ones(1, 3)])}
    result = fed_back.evaluation_of(
        model, x, y=torch.zeros(20).long(), learned=learned, readings=1000
    )
    # Of cross-entropy at equal logits: the label's less a third, and the others' a third.
    expected = torch.tensor([2 / 3, -1 / 3, -1 / 3])
    torch.testing.assert_close(result.gradient["bias"], expected, rtol=0.05, atol=0.02)


class TestRenewedStatistics:
    def test_beside_those_of_other_examples(self):
        model, x = make(normalised_perceptron, seed=2), inputs_for(normalised_perceptron, 6)
        population = fed_back.fed_back(model, x, renewed=True)
        with pytest.raises(ArgumentError) as caught:
            evaluate(model, population, x, perturbed.labels_for(x), norm=Reference(x))
        assert str(caught.value) == (
            'norm: needed "running", as statistics are renewed, got statistics from elsewhere. '
            "Or take renewed=False."
        )

    def test_of_a_single_number_a_channel(self):
        model = make(normalised_perceptron, seed=2)
        with pytest.raises(ArgumentError) as caught:
            fed_back.evaluation_of(model, inputs_for(normalised_perceptron, 1), renewed=True)
        assert str(caught.value) == (
            "examples: needed two for each part at least, as norms with renewed statistics need a "
            "variance, got 1. Evaluate more of them."
        )

    def test_of_a_norm_whose_weights_are_computed(self):
        class Computed(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.norm = nn.Linear(8, 4), nn.BatchNorm1d(4)
                self.last = nn.Linear(4, 5)

            def forward(self, x):
                norm = self.norm
                seen = (self.first(x), norm.running_mean, norm.running_var)
                return self.last(nn.functional.batch_norm(*seen, 1 + norm.weight, norm.bias).relu())

        names = {"first.weight", "last.weight"}
        with pytest.raises(UnsupportedLayerError, match="a batch norm whose weights are computed"):
            fed_back.evaluation_of(Computed().eval(), torch.randn(6, 8), names=names, renewed=True)
