"""What cannot be used is refused, in words: the argument, what was needed, what came, advice."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from small_nets import fitness_of, inputs_for, made, make, population_of, transformer, vgg
from torch import nn

from tinkering.engines.table import ENGINES
from tinkering.errors import ArgumentError
from tinkering.evaluation.batchnorm import Reference
from tinkering.evaluation.entry import forward, plan
from tinkering.population import PerturbedPopulation, StackedPopulation

MODEL = nn.Linear(8, 4).eval()
X, Y = torch.zeros(5, 8), torch.zeros(5, dtype=torch.long)


def stacked(size=6):
    return StackedPopulation.from_modules([nn.Linear(8, 4).eval() for _ in range(size)])


def message(**changes):
    """What `evaluate` says; `forward` and `plan` say the same where they can."""
    given = {
        "model": MODEL,
        "population": population_of(MODEL),
        "inputs": X,
        "targets": Y,
        **changes,
    }
    with pytest.raises(ArgumentError) as caught:
        fitness_of(**given)
    assert isinstance(caught.value, ValueError)
    if not {"targets", "fitness", "memory"} & set(changes):
        del given["targets"]
        for function in (forward, plan):
            with pytest.raises(ArgumentError) as again:
                function(**given)
            assert str(again.value) == str(caught.value)
    return str(caught.value)


class TestOptions:
    def test_the_engine(self):
        assert message(engine="fast") == (
            "engine: needed one of auto, batched, factored, sequential, vmapped, got 'fast'."
        )

    @pytest.mark.parametrize("norm", ["running", "batch", Reference(X)], ids=str)
    def test_the_factored_engine_without_a_centre(self, norm):
        assert message(population=stacked(), engine="factored", norm=norm) == (
            'engine: needed "batched", "sequential" or "vmapped" for members that share no '
            'centre, got "factored" for a StackedPopulation.'
        )

    def test_the_norm(self):
        assert message(norm="layer") == (
            'norm: needed "running", "batch" or a Reference, got \'layer\'.'
        )

    def test_a_reference_without_a_centre(self):
        assert message(population=stacked(), norm=Reference(X)) == (
            'norm: needed "running" or "batch" for members that share no centre, got a '
            "Reference. Give each member buffers of its own: population.with_buffers."
        )

    def test_a_reference_to_one_image(self):
        assert message(norm=Reference(X[:1])) == (
            "norm: needed a Reference to at least two images, for a variance, got 1."
        )

    def test_a_reference_to_other_images(self):
        assert message(norm=Reference(X[:, :3])).startswith(
            "norm: needed a Reference to images that Linear takes, got [5, 3] of torch.float32 ("
        )

    def test_the_randomness(self):
        assert message(randomness="some") == (
            'randomness: needed "error", "same" or "different", got \'some\'.'
        )

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
    def test_the_dtype(self, dtype):
        assert message(dtype=dtype) == (
            f"dtype: needed torch.float32 or torch.bfloat16, got {dtype}."
        )

    @pytest.mark.parametrize("memory", [0, -5])
    def test_no_memory(self, memory):
        assert message(memory=memory) == (
            f"memory: needed a number of bytes, at least 1, got {memory}."
        )

    @pytest.mark.parametrize("engine", ["auto", *ENGINES])
    def test_too_little_memory(self, engine):
        part = "a batch" if engine == "vmapped" else "one example"
        advice = " Give it more, or evaluate in smaller batches." if engine == "vmapped" else ""
        found = message(memory=1, engine=engine)
        start, end = "memory: needed at least ", f" bytes, for {part} of one member, got 1.{advice}"
        assert found.startswith(start)
        assert found.endswith(end)
        needed = int(found.removeprefix(start).removesuffix(end).replace(",", ""))
        assert needed >= sum(p.numel() for p in MODEL.parameters()) * 4

    @pytest.mark.parametrize("in_dims", [(None, 0), (None, None), (1, None), (0, 1)])
    def test_in_dims(self, in_dims):
        said = message(in_dims=in_dims)
        if in_dims[0] == 0:
            advice = "Move the members' axis to the front: x.movedim(axis, 0)."
            assert said == f"in_dims: needed 0 or None for every tensor, got 1. {advice}"
        else:
            assert said == (
                "in_dims: needed (0, None), (0, 0), or (0, tree), the axes of the population and "
                f"of the inputs, got {in_dims}."
            )


class TestImages:
    @pytest.mark.parametrize("shape", [(0, 8), (5, 0)])
    def test_none(self, shape):
        assert message(inputs=torch.zeros(shape)) == (
            f"inputs: needed at least one example, got {list(shape)}."
        )

    @pytest.mark.parametrize("shape", [(5, 8), (7, 5, 8), (1, 5, 8), (6,)])
    def test_no_batch_for_each_member(self, shape):
        assert message(inputs=torch.zeros(shape), in_dims=(0, 0)) == (
            f"inputs: needed [members, batch, ...] with 6 members, got {list(shape)}."
        )

    def test_a_number(self):
        assert message(inputs=torch.tensor(1.0)) == "inputs: needed [batch, ...], got []."

    @pytest.mark.parametrize(
        ("build", "x"),
        [
            (vgg, torch.zeros(5, 8, 8)),
            (vgg, torch.zeros(6, 5, 1, 8, 8)),
            (vgg, torch.zeros(5, 3, 8, 8)),
            (vgg, torch.zeros(5, 1, 8, 8, dtype=torch.float64)),
            (vgg, torch.zeros(5, 1, 8, 8, dtype=torch.uint8)),
            (transformer, torch.zeros(5, 6)),
        ],
        ids=["too few axes", "too many", "channels", "float64", "bytes", "no words"],
    )
    def test_what_the_module_does_not_take(self, build, x):
        model = made(build)
        for engine in ENGINES:
            found = message(model=model, population=population_of(model), inputs=x, engine=engine)
            assert found.startswith(
                f"inputs: needed examples that {type(model).__name__} takes, [batch, ...] for each "
                f"member, got {list(x.shape)} of {x.dtype} ("
            )

    def test_on_another_device(self):
        assert message(inputs=torch.zeros(5, 8, device="meta")) == (
            "inputs: needed a tensor on cpu, as the population's, got meta."
        )

    @pytest.mark.parametrize(
        ("in_dims", "x", "y", "needed"),
        [
            ((0, None), (5, 8), (4,), [5]),
            ((0, None), (5, 8), (), [5]),
            ((0, None), (5, 8), (5, 1), [5]),
            ((0, 0), (6, 5, 8), (5,), [6, 5]),
            ((0, 0), (6, 5, 8), (6,), [6, 5]),
            ((0, 0), (6, 5, 8), (5, 6), [6, 5]),
        ],
    )
    def test_labels_that_do_not_fit(self, in_dims, x, y, needed):
        found = message(
            in_dims=in_dims, inputs=torch.zeros(x), targets=torch.zeros(y, dtype=torch.long)
        )
        if y == (5, 1):  # a target for every example, and yet no labels
            assert found.startswith("targets: needed a label for every row of logits, [")
        else:
            said = f"targets: needed a target for every example of the inputs, {needed}"
            assert found == f"{said}, got {list(y)}."


class TestPopulation:
    @pytest.mark.parametrize("engine", ["auto", *ENGINES])
    def test_parameters_that_the_model_does_not_have(self, engine):
        population = population_of(nn.Sequential(nn.Linear(8, 4)))
        assert message(population=population, engine=engine) == (
            "population: needed only parameters that the model has, got '0.weight'. "
            "The model has 'weight', 'bias'."
        )

    def test_parameters_that_the_model_does_not_have_in_a_stack(self):
        params = stacked().params | {"scale": torch.zeros(6, 2)}
        assert message(population=StackedPopulation(params, {})) == (
            "population: needed only parameters that the model has, got 'scale'. "
            "The model has 'weight', 'bias'."
        )

    def test_buffers_that_the_model_does_not_have(self):
        population = population_of(MODEL).with_buffers({"mean": torch.zeros(4)})
        assert message(population=population) == (
            "population: needed only buffers that the model has, got 'mean'. "
            "The model has no buffers."
        )

    @pytest.mark.parametrize("engine", ["auto", *ENGINES])
    def test_parameters_of_another_shape(self, engine):
        assert message(population=population_of(nn.Linear(8, 3)), engine=engine) == (
            "population: needed 'weight' of shape [4, 8], as the model's, got [3, 8]."
        )

    def test_no_member(self):
        with pytest.raises(ArgumentError, match="non-empty part of 6 members"):
            population_of(MODEL)[3:3]

    @pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
    def test_weights_that_are_no_numbers(self, bad):
        model = copy.deepcopy(MODEL)
        with torch.no_grad():
            model.weight[1, 2] = float(bad)
        assert message(model=model, population=population_of(model)) == (
            f"population: needed finite weights, got {bad} in 'weight' of the centre."
        )
        members = stacked()
        members.params["bias"][4, 1] = float(bad)
        assert message(population=members) == (
            f"population: needed finite weights, got {bad} in 'bias' of member 4."
        )
        rest = PerturbedPopulation({"bias": MODEL.bias.detach()}, size=4, sigma=0.1)
        assert message(model=model, population=rest) == (
            f"model: needed finite weights, got {bad} in 'weight'."
        )

    def test_finite_weights_whose_sum_is_not(self):
        centre = {"weight": torch.full((4, 8), 3e38)}
        population = PerturbedPopulation(centre, size=2, sigma=0.1)
        assert torch.isfinite(forward(MODEL, population, X)).all()

    def test_statistics_that_are_no_numbers(self):
        model = make(vgg)
        population = population_of(model)
        model[1].running_mean[2] = float("nan")
        x, y = inputs_for(vgg, 5), Y
        wanted = "needed finite buffers, got nan in '1.running_mean'."
        found = message(model=model, population=population, inputs=x, targets=y)
        assert found == f"population: {wanted}"
        found = message(model=model, population=population.with_buffers({}), inputs=x, targets=y)
        assert found == f"model: {wanted}"
        assert torch.isfinite(forward(model, population, x, norm="batch")).all()


class TestModule:
    def test_a_norm_in_train_mode(self):
        model = copy.deepcopy(made(vgg))
        model[4].train()
        assert message(model=model, population=population_of(model), inputs=inputs_for(vgg, 5)) == (
            "model: needed BatchNorm layers in eval mode, because members cannot train the "
            "running statistics of one module, got '4' in train mode. Call model.eval(), or pass "
            'norm="batch" for the statistics of each member\'s batch.'
        )


class TestFitness:
    @pytest.mark.parametrize(
        ("fitness", "shape"),
        [
            (lambda logits, _: logits.mean(), []),
            (lambda logits, labels: F.cross_entropy(logits.flatten(0, 1), labels.flatten()), []),
            (lambda logits, _: logits.mean(2), ["members", 5]),
            (lambda logits, _: logits.mean((1, 2))[:1], [1]),
        ],
        ids=["mean", "cross-entropy", "a number an image", "one number in all"],
    )
    def test_that_is_not_a_number_a_member(self, fitness, shape):
        # Fitness is computed of some members at a time.
        members = plan(MODEL, population_of(MODEL), X).tiles.members
        shape = [members if size == "members" else size for size in shape]
        assert message(fitness=fitness) == (
            f"fitness: needed a tensor of shape [members] = [{members}], one scalar per member, "
            f"got a tensor of shape {shape}. "
            "Average over the examples of a member (dimension 1), not over the members."
        )


class TestWhereAndWhat:
    """Calls that would compute something else than modules say, and modules that cannot be run."""

    def test_autocast(self):
        with torch.autocast("cpu", torch.bfloat16):
            assert message() == (
                "dtype: needed a call outside torch.autocast, got one inside. "
                "dtype=torch.bfloat16 is the way here."
            )

    def test_cached_parametrisations(self):
        with torch.nn.utils.parametrize.cached():
            assert message() == "model: needed a call outside parametrize.cached, got one inside."

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_a_module_that_is_no_longer_of_python(self):
        scripted = nn.Sequential(torch.jit.script(nn.Linear(8, 4))).eval()
        said = message(model=scripted, population=population_of(scripted))
        assert said == "model: needed a module of Python, got a ScriptModule in '0'."

    def test_complex_results(self):
        class Complex(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(8, 4)

            def forward(self, x):
                return self.linear(x) * 1j

        model = Complex().eval()
        assert message(model=model, population=population_of(model)) == (
            "model: needed a module that returns real numbers, got Complex, which returns "
            "torch.complex64."
        )

    def test_another_generator_than_pytorchs(self):
        class Lucky(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(8, 4)

            def forward(self, x):
                return self.linear(x) * (1.0 if random.random() < 2 else 0.0)

        model = Lucky().eval()
        assert message(model=model, population=population_of(model)) == (
            "model: needed a forward that draws from PyTorch's generator, got Lucky, which draws "
            "from Python's or NumPy's."
        )

    def test_a_copy_that_is_none(self):
        class Self(nn.Linear):
            def __deepcopy__(self, _):
                return self

        model = Self(8, 4).eval()
        assert message(model=model, population=population_of(model)) == (
            "model: needed a module that copy.deepcopy can copy, got Self (its __deepcopy__ "
            "returns the module itself). Members run in copies of it, so that no forward changes "
            "yours."
        )
