"""What fuses and what must not; whatever does, the numbers are the module's own."""

import copy
import weakref
from functools import partial

import pytest
import torch
from graph_nets import FUSES, FUSES_NOT, conv, norm
from small_nets import loop, program
from torch import nn

import tinkering
from tinkering.graph.activation import RECTIFIER
from tinkering.graph.program import LINEAR, NORM, Fused
from tinkering.graph.runner import Runner
from tinkering.layers.centre import layer
from tinkering.population import PerturbedPopulation

NETS = FUSES | FUSES_NOT


@pytest.fixture(scope="module", autouse=True)
def _statistics():
    """Norms in eval mode, with statistics that are not those of new ones."""
    torch.manual_seed(1)
    for model, _ in NETS.values():
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, std=0.3)


def images(count=3):
    return torch.randn(count, 3, 6, 6)


def letters(step):
    """A step as the tables of networks write it."""
    if not isinstance(step, Fused):
        return step.name.rstrip("0123456789").rstrip("_") + "_" * step.target.__name__.split(".")[
            0
        ].endswith("_")
    kind = {LINEAR: "L", NORM: "N"}.get(step.layer.target, "C")
    known = {None: "", RECTIFIER: "R"}
    behind = "N" * (step.norm is not None) + "A" * (step.residual is not None)
    return (
        kind + behind + known.get(step.activation, str(step.activation and step.activation.curve))
    )


def steps_of(model):
    return " ".join(letters(step) for step in program(model, images()).steps)


def run(model, x, dtype=torch.float32, watch=lambda *_: None):
    """Run a module's steps with layers of its own weights."""
    steps = program(model, x)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = steps.captured.values({name: v.detach() for name, v in state.items()})
    layers = {step.last.name: layer(step, values, dtype) for step in steps.fused}

    def call(step, _tile, x, residual):
        overwrite = steps.may_overwrite_residual(step)
        result = layers[step.last.name](x, residual, overwrite)
        watch(steps, step, result)
        return result

    runner = Runner(steps, values, {s.last.name: partial(call, s) for s in steps.fused})
    with torch.no_grad():
        (result,) = runner.run([x])
    return result


@pytest.mark.parametrize("name", NETS)
class TestNetworks:
    def test_steps(self, name):
        model, expected = NETS[name]
        assert steps_of(model) == expected

    def test_the_numbers_are_the_modules_own(self, name):
        model, _ = NETS[name]
        x, before = images(), copy.deepcopy(model.state_dict())
        with torch.no_grad():
            expected = model(x.clone())
        given = x.clone()
        result = run(model, given)
        scale = expected.abs().max()
        assert result.shape == expected.shape
        assert (result - expected).abs().max() <= 1e-5 * scale
        assert torch.equal(given, x)
        narrow = run(model, given, torch.bfloat16)
        assert (narrow - expected).abs().max() <= 0.03 * scale
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("engine", ["factored", "sequential"])
@pytest.mark.parametrize(
    "name",
    [
        "residual block",
        "sum that others read",
        "one residual, two readers",
        "residual seen through a view",
        "input overwritten in between",
        "written through a view",
        "images overwritten",
        "parts of the channels",
        "pre-activation",
    ],
)
def test_engines_keep_apart_what_the_graph_keeps_apart(name, engine):
    model, _ = NETS[name]
    population = PerturbedPopulation(model, size=4, sigma=0.1)
    x = torch.randn(4, 2, 3, 6, 6)
    expected = loop(population, x.clone(), (0, 0), model)
    result = tinkering.forward(model, population, x, (0, 0), engine=engine)
    assert (result - expected).abs().max() <= 1e-5 * expected.abs().max()


class TestMemory:
    @pytest.mark.parametrize("name", ["residual block", "sum that others read", "chain"])
    def test_a_value_is_let_go_when_its_last_reader_is_done(self, name):
        chain = nn.Sequential(conv(), norm(), nn.ReLU(), *[conv(4) for _ in range(4)]).eval()
        model = chain if name == "chain" else NETS[name][0]
        alive: dict[str, weakref.ref] = {}
        most = []

        def watch(steps, step, result):
            at = steps.steps.index(step)
            needed = {
                node.name
                for later in steps.steps[at:]
                if isinstance(later, Fused)
                for node in (later.source, later.residual)
                if node is not None
            }
            held = {key for key, value in alive.items() if value() is not None}
            # A residual that may be overwritten is the result.
            assert held <= needed
            most.append(len(held))
            alive[step.last.name] = weakref.ref(result)

        run(model, images(), watch=watch)
        assert max(most) == (1 if name == "chain" else 2)

    def test_each_value_is_released_once_and_the_outputs_never(self):
        for model, _ in NETS.values():
            steps = program(model, images())
            released = [name for _, names in steps.walk() for name in names]
            made = {
                step.last.name if isinstance(step, Fused) else step.name for step, _ in steps.walk()
            }
            assert sorted(released) == sorted(made - {node.name for node in steps.outputs})

    def test_a_residual_is_overwritten_only_where_nobody_else_reads_it(self):
        may = {}
        for name, (model, _) in NETS.items():
            steps = program(model, images())
            adding = [step for step in steps.fused if step.residual is not None]
            may[name] = [steps.may_overwrite_residual(step) for step in adding]
        assert may["residual block"] == [True]
        assert may["two convolutions added"] == [True]
        assert may["sum that others read"] == [False, False]
        assert may["one residual, two readers"] == [False, False]
        assert may["residual seen through a view"] == [False]
        assert may["conv bn add relu"] == [False]


class TestModes:
    def test_a_norm_without_statistics_stays_by_itself(self):
        model = nn.Sequential(conv(), norm(track_running_stats=False), nn.ReLU()).eval()
        assert steps_of(model) == "C batch_norm relu"


def test_makes_output():
    steps = program(NETS["residual block"][0], images())
    assert [steps.makes_output(step) for step in steps.fused] == [False, False, True]
