"""The task for perturbed outputs, against plain, eager computations."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_nets import trusted
from torch import nn

from tinkering.data import BatchOrder, Shifts, load
from tinkering.engines.activations import evaluate_outputs
from tinkering.errors import ArgumentError
from tinkering.evaluation.fitness import accuracy
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.strategies.output_evolution import OutputEvolution
from tinkering.tasks.output_classification import OutputClassification

DIGITS = load("mnist5k").subset(train=60, test=40)


def make_model(seed=0):
    torch.manual_seed(seed)
    return SimpleResNet(BasicBlock, [1, 1, 1, 1], width=2)


MODEL = make_model()  # shared, because a new one has to be captured anew


def evolving(model):
    """All but the scales of norms."""
    names = [n for n, _ in model.named_parameters() if n.endswith("bias") or "bn" not in n]
    names = [n for n in names if "shortcut.1.weight" not in n]
    return {n: p.detach().clone() for n, p in model.named_parameters() if n in names}


def population_of(model, members=3, generation=0):
    strategy = OutputEvolution(members=members)
    state = strategy.init(evolving(model))
    for _ in range(generation):
        state = strategy.tell(state, Nothing())
    return strategy.ask(state)


class Nothing:
    """Scores that move nothing, and count as a generation."""

    fitness = torch.tensor([torch.nan])

    @property
    def ascent(self):
        return {}


def with_statistics(model, images):
    """The module's buffers after one pass in train mode, if nothing before it counts."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    return {n: b.clone() for n, b in model.eval().named_buffers()}


@pytest.fixture(scope="module")
def task():
    return OutputClassification(MODEL, DIGITS, images=7, seed=4)


class TestFitness:
    @pytest.mark.parametrize("generation", [0, 3])
    def test_is_that_of_the_generations_images_with_the_given_models_statistics(
        self, task, generation
    ):
        population = population_of(make_model(1))
        result = task.fitness(population, generation)
        chosen = BatchOrder(60, 7, seed=4).order(generation)
        statistics = with_statistics(make_model(), DIGITS.train.images())
        images, labels = DIGITS.train.images(chosen), DIGITS.train.labels[chosen]
        expected = evaluate_outputs(MODEL.eval(), population, images, labels, buffers=statistics)
        torch.testing.assert_close(result.fitness, expected.fitness, rtol=1e-3, atol=1e-3)
        for name, value in expected.ascent.items():
            difference = (result.ascent[name] - value).abs().max() / value.abs().max()
            assert difference < 1e-2, name

    def test_images_are_moved_another_way_each_generation(self):
        population = population_of(make_model(1))
        task = OutputClassification(MODEL, DIGITS, images=7, seed=4, shift=2)
        result = task.fitness(population, 3)
        chosen = BatchOrder(60, 7, seed=4).order(3)
        shifts = Shifts(2, seed=4)
        images = DIGITS.train.images(chosen)
        images = shifts.moved(images, shifts.offsets(3, 7), DIGITS.train.background)
        expected = evaluate_outputs(
            MODEL.eval(), population, images, DIGITS.train.labels[chosen], buffers=task.buffers({})
        )
        assert torch.equal(result.fitness, expected.fitness)

    def test_labels_are_those_of_the_order(self):
        seen = []

        @trusted
        def remember(logits, labels):
            seen.extend(labels[::3, 0].tolist())
            return logits[:, 0, 0]

        task = OutputClassification(MODEL, DIGITS, images=20, fitness=remember)
        population = population_of(MODEL)
        for generation in range(3):
            task.fitness(population, generation)
        # Three generations are an epoch, and each of the ten layers sees it.
        labels = DIGITS.train.labels
        assert sorted(seen) == sorted(labels.repeat(10).tolist())

    def test_is_the_same_twice_and_whatever_the_modules_own_state(self):
        model = make_model()
        population = population_of(model)
        task = OutputClassification(model, DIGITS, images=4)
        first = task.fitness(population, 1)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name in population.params or "running" in name:
                    tensor.add_(1)
        model.train()
        again = task.fitness(population, 1)
        assert torch.equal(first.fitness, again.fitness)
        assert all(torch.equal(v, again.ascent[n]) for n, v in first.ascent.items())
        assert not torch.equal(first.fitness, task.fitness(population, 2).fitness)

    def test_seeds_choose_the_images_and_the_dtype_is_used(self):
        population = population_of(make_model())
        one, other, narrow = (
            OutputClassification(MODEL, DIGITS, images=4, **changes).fitness(population, 0)
            for changes in ({}, {"seed": 1}, {"dtype": torch.bfloat16})
        )
        assert not torch.allclose(one.fitness, other.fitness, rtol=0.05)
        assert not torch.equal(one.fitness, narrow.fitness)
        torch.testing.assert_close(one.fitness, narrow.fitness, rtol=0.1, atol=0.1)


class TestPlan:
    def test_smaller_portions_fit_less_memory_and_give_the_same(self):
        population = population_of(MODEL, members=4)
        large, small = (
            OutputClassification(MODEL, DIGITS, images=12, memory=memory)
            for memory in (10**9, 1_500_000)
        )
        plans = [task.plan(population) for task in (large, small)]
        assert plans[1].images < plans[0].images
        assert all(plan.needed <= plan.budget for plan in plans)
        assert str(plans[1]).endswith("MiB of 1 MiB")
        fitness = [task.fitness(population, 0) for task in (large, small)]
        torch.testing.assert_close(fitness[0].fitness, fitness[1].fitness, rtol=1e-4, atol=1e-4)
        for name, value in fitness[0].ascent.items():
            torch.testing.assert_close(fitness[1].ascent[name], value, rtol=1e-2, atol=1e-4)

    def test_message_where_nothing_fits(self):
        task = OutputClassification(MODEL, DIGITS, images=12, memory=10_000)
        for what in (task.plan, lambda population: task.fitness(population, 0)):
            with pytest.raises(ArgumentError) as caught:
                what(population_of(MODEL))
            assert str(caught.value).startswith("memory: needed at least ")
            assert str(caught.value).endswith(
                " bytes, got 10,000. Give it more, or fewer members an image, or fewer images "
                "a generation."
            )


class TestCounts:
    @pytest.mark.parametrize("members", [2, 5])
    def test_images_are_the_centres_and_one_a_member(self, task, members):
        population = population_of(make_model(), members)
        scores = task.fitness(population, 0)
        assert task.images(population) == 7 + len(scores.fitness) == 7 * (1 + 10 * members)
        assert scores.forwards < task.images(population)

    def test_fewer_layers(self, task):
        population = population_of(make_model())
        params = {"linear.bias": population.params["linear.bias"]}
        alone = OutputEvolution(members=3).ask(OutputEvolution(members=3).init(params))
        assert task.images(alone) == 7 * (1 + 3)
        # The last layer's result is the module's: its members run through nothing more.
        assert task.fitness(alone, 0).forwards == 7

    @pytest.mark.parametrize("images", [0, -2])
    def test_no_images_are_refused(self, images):
        with pytest.raises(ArgumentError) as caught:
            OutputClassification(make_model(), DIGITS, images=images)
        assert str(caught.value) == f"images: needed an integer of at least 1, got {images}."


class TestMeasure:
    def test_equals_a_plain_module_with_the_buffers(self, task):
        centre = population_of(make_model(3)).params
        buffers = task.buffers(centre)
        plain = make_model()
        plain.load_state_dict({**centre, **buffers}, strict=False)
        plain.eval()
        with torch.no_grad():
            logits = plain(DIGITS.test.images())
        measured = task.measure(centre)
        labels = DIGITS.test.labels
        expected = F.cross_entropy(logits, labels).item()
        assert measured["test_loss"] == pytest.approx(expected, rel=1e-4)
        right = (logits.argmax(1) == labels).float().mean().item()
        assert measured["test_accuracy"] == pytest.approx(right)
        assert measured.keys() == {"test_accuracy", "test_loss"}

    def test_the_buffers_are_fixed_and_the_models_own_on_training_images(self, task):
        buffers = task.buffers(population_of(make_model(5)).params)
        expected = with_statistics(make_model(), DIGITS.train.images())
        again = task.buffers(evolving(make_model()))
        for name, value in buffers.items():
            assert torch.equal(value, again[name])
            if "running" in name:
                torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-3)


class TestParts:
    """A generation's images evaluated some at a time, as other processes do."""

    IMAGES = 37
    TASK = OutputClassification(MODEL, DIGITS, images=IMAGES, seed=4, shift=2)

    @pytest.mark.parametrize("count", [1, 3, 100])
    def test_cover_the_images_and_do_not_depend_on_how_many_are_asked_for(self, count):
        parts = self.TASK.parts(population_of(MODEL), count)
        assert [i for part in parts for i in range(self.IMAGES)[part]] == list(range(self.IMAGES))
        assert parts == self.TASK.parts(population_of(MODEL), 2)

    @pytest.mark.parametrize("generation", [0, 3])
    def test_come_to_the_bits_of_the_whole_in_whatever_order_they_were_evaluated(self, generation):
        population = population_of(make_model(1), generation=generation)
        whole = self.TASK.fitness(population, generation)
        parts = self.TASK.parts(population, 3)
        backwards = [self.TASK.part(population, generation, part) for part in reversed(parts)]
        together = self.TASK.merged(population, backwards[::-1])
        assert torch.equal(together.fitness, whole.fitness)
        assert whole.ascent.keys() == together.ascent.keys()
        assert all(torch.equal(together.ascent[n], v) for n, v in whole.ascent.items())
        assert together.forwards == pytest.approx(whole.forwards)

    @pytest.mark.parametrize("memory", [3_500_000, 4_500_000])
    def test_come_to_the_bits_of_the_whole_where_memory_is_short(self, memory):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        task = OutputClassification(MODEL, DIGITS, images=self.IMAGES, memory=memory)
        population = population_of(make_model(1), members=8)
        whole, parts = task.plan(population), task.parts(population, 3)
        assert whole.images < 16  # less than it would take
        results = [task.part(population, 0, part) for part in parts]
        together, expected = task.merged(population, results), task.fitness(population, 0)
        torch.set_num_threads(before)
        assert torch.equal(together.fitness, expected.fitness)
        assert all(torch.equal(together.ascent[n], v) for n, v in expected.ascent.items())

    def test_readings_of_a_part_are_those_of_the_whole(self):
        task = OutputClassification(MODEL, DIGITS, images=self.IMAGES, fitness=accuracy)
        population = replace(population_of(make_model(1)), blur=0.5, readings=4)
        whole = task.fitness(population, 0)
        parts = [task.part(population, 0, part) for part in task.parts(population, 3)]
        assert torch.equal(task.merged(population, parts).fitness, whole.fitness)
        assert whole.fitness.unique().numel() > 2  # some were read as right, some as wrong
