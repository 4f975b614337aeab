"""Which results are perturbed: what shares one, what each is called, what it costs."""

import pytest
import torch
import torch.nn.functional as F
from graph_nets import FUSES, Net, conv, norm
from perturbed import held_parameters, perturbed
from small_nets import Shared, inputs_for, made, perceptron, program, resnet
from torch import nn

from tinkering.engines.activation_targets import find_targets
from tinkering.errors import UnsupportedLayerError
from tinkering.evaluation.entry import evaluate


def images(count=3):
    return torch.randn(count, 3, 6, 6)


def targets_of(model, x, names=None):
    steps = program(model, x)
    return find_targets(steps, held_parameters(model, x) if names is None else names)


def shares(targets):
    return {
        target.name: {n for w in target.sharing for n in (w.weight, w.bias, w.shift) if n}
        for target in targets
    }


LINES = {name: nn.Linear(4, 4) for name in "abcde"}


def lines(forward):
    return Net(forward, **LINES).eval()


SUMS = {
    "a sum": (
        lambda m, x: torch.relu(m.a(x) + m.b(x.tanh())),
        [{"a", "b"}],
    ),
    "of four": (
        lambda m, x: m.a(x) + m.b(x.tanh()) + m.c(x.sin()) + m.d(-x),
        [{"a", "b", "c", "d"}],
    ),
    "a summand that others read": (
        lambda m, x: m.c(m.a(x) + (y := m.b(x.tanh()))) * y,
        [{"b"}, {"a"}, {"c"}],
    ),
    "a rectified summand": (
        lambda m, x: m.a(x) + torch.relu(m.b(x.tanh())),
        [{"b"}, {"a"}],
    ),
    "one after the other": (
        lambda m, x: m.b(torch.relu(m.a(x))),
        [{"a"}, {"b"}],
    ),
}


class TestSharing:
    @pytest.mark.parametrize("name", SUMS)
    def test_layers_of_one_sum_share_its_noise(self, name):
        forward, expected = SUMS[name]
        found = shares(targets_of(lines(forward), torch.randn(2, 4))).values()
        layers = [{parameter.split(".")[0] for parameter in held} for held in found]
        assert sorted(map(sorted, layers)) == sorted(map(sorted, expected))

    @pytest.mark.parametrize("evolving", [{"a"}, {"b"}, {"c"}, {"a", "b"}, {"b", "c"}, {"a", "c"}])
    def test_every_evolving_parameter_is_told_about_whichever_stay(self, evolving):
        model = lines(lambda m, x: m.d(torch.relu(m.a(x) + m.b(x.tanh()) + m.c(x.sin()))))
        names = {f"{layer}.weight" for layer in evolving}
        found = shares(targets_of(model, torch.randn(2, 4), names))
        assert set().union(*found.values()) == names
        assert sum(map(len, found.values())) == len(names)

    def test_a_residual_block(self):
        model = FUSES["residual block"][0].eval()
        assert shares(targets_of(model, images())) == {
            "c1.weight:result": {"c1.weight", "n1.bias"},
            "c3.weight:result": {"c3.weight", "c3.bias", "c2.weight", "n2.bias"},
        } or shares(targets_of(model, images())) == {
            "c1.weight:result": {"c1.weight", "n1.bias"},
            "c2.weight:result": {"c3.weight", "c3.bias", "c2.weight", "n2.bias"},
        }

    def test_a_norm_alone_tells_about_its_shift(self):
        model = Net(
            lambda m, x: m.conv(F.relu(m.bn(x))).mean((2, 3)), bn=norm(3), conv=conv()
        ).eval()
        assert shares(targets_of(model, images(), {"bn.bias"})) == {"bn.bias:result": {"bn.bias"}}


class TestNames:
    @pytest.mark.parametrize("build", [resnet, Shared], ids=lambda build: build.__name__)
    def test_no_two_layers_have_the_same_noise(self, build):
        model, x = made(build), inputs_for(build, 3)
        targets = targets_of(model, x)
        assert len({target.name for target in targets}) == len(targets) > 4

    def test_a_layer_used_again(self):
        model = lines(lambda m, x: m.a(torch.tanh(m.a(torch.tanh(m.a(x))))))
        names = [target.name for target in targets_of(model, torch.randn(2, 4))]
        assert names == ["a.weight:result", "a.weight:result 2", "a.weight:result 3"]

    def test_a_name_does_not_depend_on_what_else_evolves(self):
        model = lines(lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x))))))
        x = torch.randn(2, 4)
        whole, part = (
            evaluate(
                model, perturbed(model, x, names), x, torch.zeros(2, dtype=torch.long)
            ).gradient
            for names in (None, {"b.weight"})
        )
        assert torch.equal(whole["b.weight"], part["b.weight"])
        assert list(part) == ["b.weight"]

    def test_a_parameter_of_no_layer_is_refused(self):
        model = lines(lambda m, x: m.a(x))
        with pytest.raises(UnsupportedLayerError, match=r"b\.weight: no member-wise form of an op"):
            targets_of(model, torch.randn(2, 4), {"a.weight", "b.weight"})


class TestCost:
    def test_is_the_share_of_the_work_that_is_left(self):
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, groups=1),  # 3 x 3 results: 9 x 4 x 27 = 972
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, groups=2),  # 9 x 4 x 18 = 648
            nn.Flatten(),
            nn.Linear(36, 5),  # 180
        ).eval()
        x = torch.randn(4, 3, 7, 7)
        costs = [target.cost for target in targets_of(model, x)]
        assert costs == pytest.approx([828 / 1800, 180 / 1800, 0])
        population = perturbed(model, x, None, samples=6)
        scores = evaluate(model, population, x, torch.arange(4))
        assert scores.forwards == pytest.approx(4 * (1 + 6 * (1008 / 1800)))
        assert len(scores.fitness) == 3 * 4 * 6

    @pytest.mark.parametrize("build", [resnet, perceptron], ids=lambda build: build.__name__)
    def test_every_member_and_the_centre_are_counted(self, build):
        model, x = made(build), inputs_for(build, 2)
        population = perturbed(model, x, None, samples=2)
        evaluation = evaluate(model, population, x, torch.arange(2))
        count = len(targets_of(model, x))
        assert evaluation.fitness.shape == (2 * count * 2,)
        assert evaluation.evaluations == 2 * (1 + count * 2)
        assert evaluation.forwards < evaluation.evaluations


class TestNeeded:
    """What a program says that later steps read."""

    def test_what_is_needed_after_a_step(self):
        model = lines(lambda m, x: m.c(torch.relu(m.a(x))) + m.b(x.tanh()).sin() + x.cos())
        steps = program(model, torch.randn(2, 4))
        for position, step in enumerate(steps.steps):
            del step
            needed = set(steps.needed_after(position))
            later = steps.steps[position + 1 :]
            made = {getattr(s, "last", s) for s in later}
            read = {n for s in later for n in _read_by(s)} | set(steps.outputs)
            assert needed == {
                n for n in read - made if n.op != "placeholder" or n.name in steps.captured.inputs
            }


def _read_by(step):
    if not hasattr(step, "layer"):
        return step.all_input_nodes
    return [n for n in (step.source, step.residual) if n is not None]
