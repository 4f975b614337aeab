"""Classification by perturbed activations, against plain, eager computations."""

from dataclasses import replace

import pytest
import torch
from digits import DIGITS, MODEL, make_model, trusted, with_statistics_of

from tinkering.data import BatchOrder, Shifts
from tinkering.engines.evaluation import merged
from tinkering.errors import ArgumentError
from tinkering.evaluation.entry import evaluate
from tinkering.evaluation.fitness import accuracy
from tinkering.strategies.activations import Activations
from tinkering.strategies.evolution_strategy import EvolutionStrategy
from tinkering.tasks.classification import Classification


def evolving(model):
    """All but the scales of norms."""
    names = [n for n, _ in model.named_parameters() if n.endswith("bias") or "bn" not in n]
    names = [n for n in names if "shortcut.1.weight" not in n]
    return {n: p.detach().clone() for n, p in model.named_parameters() if n in names}


def population_of(model, samples=3, generation=0):
    strategy = EvolutionStrategy(Activations(samples=samples))
    return strategy.ask(replace(strategy.init(evolving(model)), generation=generation))


@pytest.fixture(scope="module")
def task():
    return Classification(MODEL, DIGITS, batch=7, seed=4)


class TestFitness:
    @pytest.mark.parametrize("generation", [0, 3])
    def test_is_that_of_the_generations_images_with_the_given_models_statistics(
        self, task, generation
    ):
        population = population_of(make_model(1))
        result = task.evaluate(population, generation)
        chosen = BatchOrder(60, 7, seed=4).order(generation)
        plain = with_statistics_of(make_model(), DIGITS.train.images())
        statistics = dict(plain.named_buffers())
        images, labels = DIGITS.train.images(chosen), DIGITS.train.labels[chosen]
        expected = evaluate(MODEL.eval(), population.with_buffers(statistics), images, labels)
        torch.testing.assert_close(result.fitness, expected.fitness, rtol=1e-3, atol=1e-3)
        for name, value in expected.gradient.items():
            difference = (result.gradient[name] - value).abs().max() / value.abs().max()
            assert difference < 1e-2, name

    def test_images_are_moved_another_way_each_generation(self):
        population = population_of(make_model(1))
        task = Classification(MODEL, DIGITS, batch=7, seed=4, shift=2)
        result = task.evaluate(population, 3)
        chosen = BatchOrder(60, 7, seed=4).order(3)
        shifts = Shifts(2, seed=4)
        images = DIGITS.train.images(chosen)
        images = shifts.moved(images, shifts.offsets(3, 7), DIGITS.train.background)
        population = population.with_buffers(task.buffers({}))
        expected = evaluate(MODEL.eval(), population, images, DIGITS.train.labels[chosen])
        assert torch.equal(result.fitness, expected.fitness)

    def test_labels_are_those_of_the_order(self):
        seen = []

        @trusted
        def remember(logits, labels):
            seen.extend(labels[::3, 0].tolist())
            return logits[:, 0, 0]

        task = Classification(MODEL, DIGITS, batch=20, fitness=remember)
        population = population_of(MODEL)
        for generation in range(3):
            task.evaluate(population, generation)
        # Three generations are an epoch, and each of the ten layers sees it.
        labels = DIGITS.train.labels
        assert sorted(seen) == sorted(labels.repeat(10).tolist())

    def test_is_the_same_twice_and_whatever_the_modules_own_state(self):
        model = make_model()
        population = population_of(model)
        task = Classification(model, DIGITS, batch=4)
        first = task.evaluate(population, 1)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name in population.params or "running" in name:
                    tensor.add_(1)
        model.train()
        again = task.evaluate(population, 1)
        assert torch.equal(first.fitness, again.fitness)
        assert all(torch.equal(v, again.gradient[n]) for n, v in first.gradient.items())
        assert not torch.equal(first.fitness, task.evaluate(population, 2).fitness)

    def test_seeds_choose_the_images_and_the_dtype_is_used(self):
        population = population_of(make_model())
        one, other, narrow = (
            Classification(MODEL, DIGITS, batch=4, **changes).evaluate(population, 0)
            for changes in ({}, {"seed": 1}, {"dtype": torch.bfloat16})
        )
        assert not torch.allclose(one.fitness, other.fitness, rtol=0.05)
        assert not torch.equal(one.fitness, narrow.fitness)
        torch.testing.assert_close(one.fitness, narrow.fitness, rtol=0.1, atol=0.1)


class TestPlan:
    def test_smaller_portions_fit_less_memory_and_give_the_same(self):
        population = population_of(MODEL, samples=4)
        large, small = (
            Classification(MODEL, DIGITS, batch=12, memory=memory) for memory in (10**9, 1_500_000)
        )
        plans = [task.plan(population) for task in (large, small)]
        assert plans[1].tiles.images < plans[0].tiles.images
        assert all(plan.needed <= plan.budget for plan in plans)
        assert str(plans[1]).endswith("MiB of 1 MiB")
        fitness = [task.evaluate(population, 0) for task in (large, small)]
        torch.testing.assert_close(fitness[0].fitness, fitness[1].fitness, rtol=1e-4, atol=1e-4)
        for name, value in fitness[0].gradient.items():
            torch.testing.assert_close(fitness[1].gradient[name], value, rtol=1e-2, atol=1e-4)

    def test_message_where_nothing_fits(self):
        task = Classification(MODEL, DIGITS, batch=12, memory=10_000)
        for what in (task.plan, lambda population: task.evaluate(population, 0)):
            with pytest.raises(ArgumentError) as caught:
                what(population_of(MODEL))
            assert str(caught.value).startswith("memory: needed at least ")
            assert str(caught.value).endswith(
                " bytes, got 10,000. Give it more, or fewer members an example, or fewer examples."
            )


class TestCounts:
    @pytest.mark.parametrize("samples", [2, 5])
    def test_the_centre_and_every_member_see_each_image(self, task, samples):
        evaluation = task.evaluate(population_of(make_model(), samples), 0)
        assert evaluation.evaluations == 7 + len(evaluation.fitness) == 7 * (1 + 10 * samples)
        assert evaluation.forwards < evaluation.evaluations

    def test_fewer_layers(self, task):
        population = population_of(make_model())
        params = {"linear.bias": population.params["linear.bias"]}
        alone = task.evaluate(replace(population, params=params), 0)
        assert alone.evaluations == 7 * (1 + 3)
        # The last layer's activation is the module's: its members run through nothing more.
        assert alone.forwards == 7


class TestParts:
    """A generation's images evaluated some at a time, as other processes do."""

    IMAGES = 37
    TASK = Classification(MODEL, DIGITS, batch=IMAGES, seed=4, shift=2)

    @pytest.mark.parametrize("count", [1, 3, 100])
    def test_cover_the_images_and_do_not_depend_on_how_many_are_asked_for(self, count):
        parts = self.TASK.parts(population_of(MODEL), count)
        assert [i for part in parts for i in range(self.IMAGES)[part]] == list(range(self.IMAGES))
        assert parts == self.TASK.parts(population_of(MODEL), 2)

    @pytest.mark.parametrize("generation", [0, 3])
    def test_come_to_the_bits_of_the_whole_in_whatever_order_they_were_evaluated(self, generation):
        population = population_of(make_model(1), generation=generation)
        whole = self.TASK.evaluate(population, generation)
        parts = self.TASK.parts(population, 3)
        backwards = [self.TASK.part(population, generation, part) for part in reversed(parts)]
        together = merged(backwards[::-1])
        assert torch.equal(together.fitness, whole.fitness)
        assert whole.gradient.keys() == together.gradient.keys()
        assert all(torch.equal(together.gradient[n], v) for n, v in whole.gradient.items())
        assert together.forwards == pytest.approx(whole.forwards)

    @pytest.mark.parametrize("memory", [3_500_000, 4_500_000])
    def test_come_to_the_bits_of_the_whole_where_memory_is_short(self, memory):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        task = Classification(MODEL, DIGITS, batch=self.IMAGES, memory=memory)
        population = population_of(make_model(1), samples=8)
        whole, parts = task.plan(population), task.parts(population, 3)
        assert whole.tiles.images < 16  # less than it would take
        results = [task.part(population, 0, part) for part in parts]
        together, expected = merged(results), task.evaluate(population, 0)
        torch.set_num_threads(before)
        assert torch.equal(together.fitness, expected.fitness)
        assert all(torch.equal(together.gradient[n], v) for n, v in expected.gradient.items())

    def test_readings_of_a_part_are_those_of_the_whole(self):
        task = Classification(MODEL, DIGITS, batch=self.IMAGES, fitness=accuracy)
        population = replace(population_of(make_model(1)), blur=0.5, readings=4)
        whole = task.evaluate(population, 0)
        parts = [task.part(population, 0, part) for part in task.parts(population, 3)]
        assert torch.equal(merged(parts).fitness, whole.fitness)
        assert whole.fitness.unique().numel() > 2  # some were read as right, some as wrong
