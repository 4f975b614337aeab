"""An evolution strategy for each width, the next when the network was widened."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tinkering.engines.cells import cells_of
from tinkering.errors import ArgumentError
from tinkering.evaluation.entry import evaluate
from tinkering.noise import Stream
from tinkering.strategies.evolution_strategy import EvolutionStrategy
from tinkering.strategies.feedback import Feedback, learned_of_wide
from tinkering.strategies.groups import Group
from tinkering.strategies.growing import Growing
from tinkering.strategies.weights import Weights
from tinkering.strategies.widening import widened

WIDTHS = (2, 4, 8)


def net(width):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    ).eval()


NETS = {width: net(width) for width in WIDTHS}
SHAPES = [{n: p.shape for n, p in NETS[width].named_parameters()} for width in WIDTHS[1:]]
X, Y = torch.rand(8, 1, 6, 6), torch.arange(8) % 3


def growing(perturb, every=2, **more):
    """Of perturbations, one for each width."""
    rates = (0.04, 0.02, 0.01)
    stages = [EvolutionStrategy(p, r, **more) for p, r in zip(perturb, rates, strict=True)]
    return Growing(stages, SHAPES, every)


def start(strategy):
    torch.manual_seed(1)
    return strategy.init(dict(net(2).named_parameters()))


def after(strategy, state, generations):
    for _ in range(generations):
        model = NETS[len(state.params["0.weight"])]
        state = strategy.tell(state, evaluate(model, strategy.ask(state), X, Y))
    return state


def logits(params):
    with torch.no_grad():
        return functional_call(NETS[len(params["0.weight"])], dict(params), (X,))


KINDS = {
    "weights": (Weights(population=8),) * 3,
    "feedback": tuple(Feedback(cells=16 * width) for width in WIDTHS),
}


@pytest.mark.parametrize("name", KINDS)
class TestGrowing:
    def test_centre_and_average_compute_what_the_narrow_ones_did(self, name):
        strategy = growing(KINDS[name])
        before = after(strategy, start(strategy), 1)
        evaluation = evaluate(NETS[2], strategy.ask(before), X, Y)
        narrow = strategy.stages[0].tell(before, evaluation)
        wide = strategy.tell(before, evaluation)
        for field in ("params", "average"):
            one, other = logits(getattr(wide, field)), logits(getattr(narrow, field))
            assert len(getattr(wide, field)["0.weight"]) == 4
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(logits(wide.params), logits(wide.average), atol=1e-5)
        assert (wide.generation, wide.told) == (2, "moved")

    def test_widths_and_steps_of_the_generations(self, name):
        strategy = growing(KINDS[name], every=2, decay=1e9)
        state, found = start(strategy), []
        for _ in range(6):
            before, state = state, after(strategy, state, 1)
            (group,) = state.optimiser["param_groups"]
            found.append((len(before.params["0.weight"]), group["lr"]))
        widths, rates = zip(*found, strict=True)
        assert widths == (2, 2, 4, 4, 8, 8)
        # After the last of a width it is the next one's, that is about to begin.
        assert rates == pytest.approx((0.04, 0.02, 0.02, 0.01, 0.01, 0.01), rel=1e-6)

    def test_the_same_from_anywhere(self, name):
        strategy = growing(KINDS[name])
        once, again = (after(strategy, start(strategy), 5) for _ in range(2))
        for param, value in once.params.items():
            assert torch.equal(value, again.params[param])
        assert len(once.params["0.weight"]) == 8

    def test_advanced_has_the_shapes_of_what_was_told(self, name):
        strategy = growing(KINDS[name])
        state = after(strategy, start(strategy), 4)
        other = strategy.advanced(start(strategy), 4)
        assert {n: p.shape for n, p in other.params.items()} == {
            n: p.shape for n, p in state.params.items()
        }
        assert other.generation == 4
        torch.testing.assert_close(logits(other.params), logits(start(strategy).params))


def test_a_generation_that_is_lost_is_counted():
    strategy = growing(KINDS["weights"], every=1)
    state = strategy.tell(start(strategy), torch.full((8,), torch.nan))
    assert (state.told, state.lost, state.generation) == ("no finite fitness", 1, 1)
    assert len(state.params["0.weight"]) == 4


def test_what_does_not_evolve_is_widened_too():
    strategy = growing(KINDS["weights"], every=1, groups={"0.*": Group(sigma=0)})
    state = strategy.tell(start(strategy), torch.randn(8))
    assert {*state.fixed} == {"0.weight", "0.bias"}
    assert len(strategy.centre(state)["0.weight"]) == 4
    assert strategy.ask(state).centre.keys() == state.params.keys()


def test_what_was_learned_is_the_effect_of_either_copy():
    """Against the Jacobian of a wide network, by autograd; one cell is all of a channel."""
    torch.manual_seed(0)
    narrow, wide = net(4), net(8)
    shapes = {n: p.shape for n, p in wide.named_parameters()}
    wide.load_state_dict(widened(dict(narrow.named_parameters()), shapes, Stream(0, 1)))

    def effect(model):
        """How the outputs change with each channel after the first layer, for all images."""

        def outputs(channels):
            return model[1:](model[0](X) + channels[:, None, None]).mean(0)

        return torch.autograd.functional.jacobian(outputs, torch.zeros(model[0].out_channels))

    assert cells_of(narrow[0](X), 4).count == 4
    known = torch.cat([effect(narrow), torch.full((1, 4), 2.0)])
    before = {"0.weight:result": known, "6.weight:result": torch.ones(4, 3)}
    channels = {"0.weight": 4, "6.weight": 3}
    found = learned_of_wide(before, channels, dict(wide.named_parameters()))
    assert torch.equal(found["6.weight:result"], torch.ones(4, 3))
    assert torch.equal(found["0.weight:result"][-1], torch.full((8,), 2.0))
    # Copies do unequal shares of it; what both do together is what was known.
    together = effect(wide).unflatten(1, (2, 4)).sum(1)
    halves = found["0.weight:result"][:-1].unflatten(1, (2, 4))
    torch.testing.assert_close(halves.sum(1), together, rtol=1e-3, atol=1e-5)
    assert torch.equal(halves[:, 0], halves[:, 1])


@pytest.mark.parametrize(
    ("stages", "every", "said"),
    [
        (2, 1, "stages: needed 3, one more than there are shapes, got 2."),
        (3, 0, "every: needed an integer of at least 1, got 0."),
    ],
)
def test_what_cannot_be_used(stages, every, said):
    with pytest.raises(ArgumentError) as caught:
        Growing([EvolutionStrategy()] * stages, SHAPES, every)
    assert str(caught.value) == said


def test_cells_that_are_not_in_proportion_to_the_width():
    with pytest.raises(ArgumentError) as caught:
        growing((Feedback(cells=4), Feedback(cells=8), Feedback(cells=15)))
    assert str(caught.value) == (
        "cells: needed 16, twice as many as of half the width, got 15. What was learned of a "
        "channel goes to its copies."
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"0.bias": None}, "shapes: needed one for '0.bias', as for every parameter, got none."),
        (
            {"6.bias": (9,)},
            "shapes: needed [3], or twice as many outputs or inputs, for '6.bias', got [9].",
        ),
    ],
)
def test_shapes_that_nothing_can_be_widened_to(change, said):
    """Said before the first generation, not when the first width ends."""
    shapes = {n: shape for n, shape in {**SHAPES[1], **change}.items() if shape is not None}
    strategy = Growing([EvolutionStrategy()] * 3, [SHAPES[0], shapes], 2)
    with pytest.raises(ArgumentError) as caught:
        start(strategy)
    assert str(caught.value) == said


def test_channels_of_a_sequence_are_doubled_place_by_place():
    """What is known of a copy stands at the original's positions."""
    known = torch.arange(12.0).view(2, 6)  # of two channels at three positions
    found = learned_of_wide({"a:result": known}, {"a": 2}, {"a": torch.zeros(4, 1, 3)})
    halves = [0, 0.5, 0, 0.5, 1, 1.5, 1, 1.5, 2, 2.5, 2, 2.5]
    assert found["a:result"].tolist() == [halves, [6, 7, 6, 7, 8, 9, 8, 9, 10, 11, 10, 11]]
