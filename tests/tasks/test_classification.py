"""The classification task against plain, eager loops."""

import pytest
import torch
import torch.nn.functional as F
from digits import DIGITS, MODEL, make_model, trusted, with_statistics_of
from torch import nn

from tinkering.data import BatchOrder, Shifts, load
from tinkering.engines import planning as plan
from tinkering.engines.evaluation import merged
from tinkering.engines.table import COSTS
from tinkering.errors import TinkeringError
from tinkering.population import PerturbedPopulation
from tinkering.strategies.genetic_algorithm import GeneticAlgorithm
from tinkering.tasks import classification
from tinkering.tasks.classification import Classification, measure_split


def params_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def label_of(logits, labels):  # noqa: ARG001
    return labels.float().mean(1)


class TestFitness:
    @pytest.mark.parametrize(("statistics", "shift"), [("fixed", 0), ("renewed", 0), ("fixed", 2)])
    def test_equals_a_loop_over_members(self, statistics, shift):
        model, centre = MODEL, make_model(1)
        task = Classification(model, DIGITS, seed=4, statistics=statistics, shift=shift)
        population = PerturbedPopulation(centre, size=10, sigma=0.1)
        result = task.evaluate(population, generation=3).fitness
        chosen = BatchOrder(60, 5, seed=4).order(3)
        images, labels = DIGITS.train.images(chosen), DIGITS.train.labels[chosen]
        shifts = Shifts(shift, seed=4)
        images = shifts.moved(images, shifts.offsets(3, 5), DIGITS.train.background)
        if statistics == "fixed":  # of the network that the task was given
            known = dict(with_statistics_of(make_model(), DIGITS.train.images()).named_buffers())
            centre.load_state_dict(known, strict=False)
            centre.eval()
        else:
            drawn = BatchOrder(60, classification._REFERENCE_IMAGES, seed=4).order(3)
            centre = with_statistics_of(centre, DIGITS.train.images(drawn))
        population = PerturbedPopulation(centre, size=10, sigma=0.1)
        for i in range(10):
            with torch.no_grad():
                logits = population.materialise(i)(images[i // 2][None])
            expected = -F.cross_entropy(logits, labels[i // 2][None])
            torch.testing.assert_close(result[i], expected, rtol=1e-3, atol=1e-3)
        assert result.unique().numel() == 10

    @pytest.mark.parametrize("group", [2, None])
    def test_a_part_of_a_population_sees_images_moved_as_in_the_whole(self, group):
        model = MODEL
        task = Classification(model, DIGITS, shift=3, group=group, batch=2)
        population = PerturbedPopulation(model, size=12, sigma=0.1)
        whole, part = (task.evaluate(p, 1).fitness for p in (population, population[4:8]))
        torch.testing.assert_close(part, whole[4:8], rtol=1e-4, atol=1e-4)
        still = Classification(model, DIGITS, group=group, batch=2).evaluate(population, 1).fitness
        assert not torch.allclose(whole, still, rtol=0.01)

    def test_the_plan_is_that_of_the_evaluation_within_the_memory(self):
        model = MODEL
        population = PerturbedPopulation(model, size=8, sigma=0.1)
        planned = Classification(model, DIGITS, memory=2_000_000).plan(population)
        assert (planned.engine, planned.budget) == ("factored", 2_000_000)
        assert planned.needed <= 2_000_000
        with pytest.raises(TinkeringError, match=r"memory: needed at least [0-9,]+ bytes"):
            Classification(model, DIGITS, memory=1000).plan(population)
        with pytest.raises(TinkeringError, match=r"memory: needed at least [0-9,]+ bytes"):
            Classification(model, DIGITS, memory=1000).evaluate(population, 0)

    def test_both_members_of_a_pair_see_the_same_image(self):
        model = MODEL
        centre = PerturbedPopulation(model, size=20, sigma=0.0)
        fitness = Classification(model, DIGITS).evaluate(centre, generation=0).fitness
        torch.testing.assert_close(fitness[0::2], fitness[1::2], rtol=1e-5, atol=1e-5)
        assert fitness[0::2].unique().numel() == 10

    def test_images_are_a_function_of_seed_and_generation(self):
        model = MODEL
        population = PerturbedPopulation(model, size=20, sigma=0.1)

        def labels(seed, generation, members=population):
            task = Classification(model, DIGITS, seed=seed, fitness=label_of)
            return task.evaluate(members, generation).fitness.tolist()

        task = Classification(model, DIGITS, seed=1, fitness=label_of)
        out_of_order = [task.evaluate(population, g).fitness.tolist() for g in (2, 0, 2)]
        assert out_of_order == [labels(1, 2), labels(1, 0), labels(1, 2)]
        assert labels(1, 2, PerturbedPopulation(make_model(5), 20, 0.3)) == labels(1, 2)
        others = [labels(1, 0), labels(1, 1), labels(2, 0), labels(2, 1)]
        assert len({tuple(other) for other in others}) == 4

    def test_an_epoch_shows_every_image_once(self):
        dataset = load("mnist5k").subset(train=60, test=1)
        seen = []

        @trusted
        def remember(logits, labels):
            seen.extend(labels[0::2, 0].tolist())
            return torch.zeros(len(logits))

        model = MODEL
        task = Classification(model, dataset, fitness=remember)
        population = PerturbedPopulation(model, size=24, sigma=0.1)
        for generation in range(5):
            task.evaluate(population, generation)
        assert sorted(seen) == sorted(dataset.train.labels.tolist())

    def test_is_the_same_twice_and_whatever_the_modules_own_state(self):
        model = make_model()
        params = params_of(model)
        task = Classification(model, DIGITS)
        population = PerturbedPopulation(params, size=8, sigma=0.1)
        first = task.evaluate(population, 0).fitness
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(1)
        model.train()
        assert torch.equal(task.evaluate(population, 0).fitness, first)

    def test_takes_one_image_a_member(self):
        model = MODEL
        population = PerturbedPopulation(model, size=6, sigma=0.1)
        counted = []

        @trusted
        def count(logits, labels):  # noqa: ARG001
            counted.append(logits.shape[0] * logits.shape[1])
            return torch.zeros(len(logits))

        task = Classification(model, DIGITS, fitness=count)
        task.evaluate(population, 0)
        assert task.evaluate(population, 1).evaluations == 6 == sum(counted) / 2

    def test_one_pair_is_enough(self):
        model = MODEL
        population = PerturbedPopulation(model, size=2, sigma=0.0)
        fitness = Classification(model, DIGITS).evaluate(population, 0).fitness
        assert fitness[0] == fitness[1] < 0

    def test_a_few_members_are_normalised_as_many_are(self):
        """What a member is worth does not depend on how many others there are."""
        model = MODEL
        few, many = (PerturbedPopulation(model, size=n, sigma=0.1) for n in (4, 60))
        first, among = (Classification(model, DIGITS).evaluate(p, 0).fitness for p in (few, many))
        assert torch.allclose(first, among[:4], rtol=1e-3)

    @pytest.mark.parametrize("group", [1, 3, 6])
    @pytest.mark.parametrize("batch", [1, 4])
    def test_members_of_a_group_see_the_same_images(self, group, batch):
        model = MODEL
        seen = []

        @trusted
        def remember(logits, labels):
            seen.append((logits, labels))
            return torch.zeros(len(logits))

        task = Classification(model, DIGITS, fitness=remember, group=group, batch=batch)
        population = PerturbedPopulation(model, size=12, sigma=0.0, antithetic=False)
        counted = task.evaluate(population, 2).evaluations
        logits, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
        order = BatchOrder(60, 12 // group * batch).order(2)
        expected = DIGITS.train.labels[order].view(-1, batch).repeat_interleave(group, 0)
        assert torch.equal(labels, expected)
        first = logits.view(-1, group, *logits.shape[1:])
        torch.testing.assert_close(first, first[:, :1].expand_as(first), rtol=1e-4, atol=1e-4)
        assert counted == 12 * batch

    def test_one_batch_for_all(self):
        model = MODEL
        population = PerturbedPopulation(make_model(1), size=6, sigma=0.1)
        task = Classification(model, DIGITS, group=None, batch=7)
        as_a_group = Classification(model, DIGITS, group=6, batch=7)
        result, grouped = (t.evaluate(population, 2).fitness for t in (task, as_a_group))
        torch.testing.assert_close(result, grouped, rtol=1e-4, atol=1e-4)
        parts = torch.cat([task.evaluate(p, 2).fitness for p in (population[:1], population[1:])])
        torch.testing.assert_close(parts, result, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(("size", "group", "part"), [(6, 4, 6), (6, 2, 5), (9, 3, 4)])
    def test_members_without_groups(self, size, group, part):
        model = MODEL
        population = PerturbedPopulation(model, size=size, sigma=0.1, antithetic=False)
        with pytest.raises(ValueError, match="groups") as caught:
            Classification(model, DIGITS, group=group).evaluate(population[:part], 0)
        assert isinstance(caught.value, TinkeringError)
        assert str(caught.value) == (
            f"population: needed groups of {group} members, which see the same images, "
            f"got members 0 to {part - 1} of {size}."
        )

    @pytest.mark.parametrize(
        ("argument", "came", "message"),
        [
            ("statistics", "batch", 'statistics: needed "fixed" or "renewed", got \'batch\'.'),
            ("group", 0, "group: needed an integer of at least 1, got 0."),
            ("batch", 0, "batch: needed an integer of at least 1, got 0."),
        ],
    )
    def test_mistakes(self, argument, came, message):
        with pytest.raises(ValueError, match=argument) as caught:
            Classification(MODEL, DIGITS, **{argument: came})
        assert str(caught.value) == message

    def test_parts_of_a_population_see_the_images_of_the_whole(self):
        model = MODEL
        population = PerturbedPopulation(model, size=12, sigma=0.1)
        task = Classification(model, DIGITS)
        whole = task.evaluate(population, 3).fitness
        ends = ((0, 2), (2, 8), (8, 12))
        parts = torch.cat([task.evaluate(population[a:b], 3).fitness for a, b in ends])
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)

    def test_half_a_pair_at_each_end_is_refused(self):
        model = MODEL
        population = PerturbedPopulation(model, size=6, sigma=0.1)
        with pytest.raises(ValueError, match="needed groups of 2"):
            Classification(model, DIGITS).evaluate(population[1:5], 0)


class TestChains:
    """Members of a genetic algorithm, which have no centre."""

    STRATEGY = GeneticAlgorithm(population=7, sigma=0.1, parents=2)

    def population(self, generations=2):
        state = self.STRATEGY.init(params_of(MODEL))
        for _ in range(generations):
            state = self.STRATEGY.tell(state, torch.arange(7.0))
        return self.STRATEGY.ask(state)

    def test_equals_a_loop_over_members(self):
        task = Classification(MODEL, DIGITS, seed=4, group=None, batch=5)
        evaluation = task.evaluate(self.population(), 3)
        chosen = BatchOrder(60, 5, seed=4).order(3)
        images, labels = DIGITS.train.images(chosen), DIGITS.train.labels[chosen]
        plain = with_statistics_of(make_model(), DIGITS.train.images())
        for i in range(7):
            module = self.population().materialise(i, plain)
            with torch.no_grad():
                expected = -F.cross_entropy(module(images), labels)
            torch.testing.assert_close(evaluation.fitness[i], expected, rtol=1e-3, atol=1e-3)
        assert evaluation.fitness.unique().numel() == 7
        assert evaluation.evaluations == 7 * 5

    @pytest.mark.parametrize("cost", [0.0, 1.0], ids=["batched", "sequential"])
    def test_parts_come_to_the_bits_of_the_whole(self, cost, monkeypatch):
        monkeypatch.setitem(COSTS, "batched", lambda _: cost)
        monkeypatch.setattr(plan, "images_in_cache", lambda *_: 8)
        monkeypatch.setattr(plan, "_LITTLE_WORK", 0)
        task = Classification(MODEL, DIGITS, group=None, batch=5)
        parts = task.parts(self.population(), 100)
        assert len(parts) > 1
        backwards = [task.part(self.population(), 1, part) for part in reversed(parts)]
        whole = task.evaluate(self.population(), 1)
        assert torch.equal(merged(backwards[::-1]).fitness, whole.fitness)

    def test_statistics_cannot_be_renewed_for_them(self):
        task = Classification(MODEL, DIGITS, statistics="renewed", group=None)
        with pytest.raises(TinkeringError) as caught:
            task.evaluate(self.population(), 0)
        needed = '"fixed" for members that share no centre'
        assert str(caught.value) == f'statistics: needed {needed}, got "renewed".'


class TestMeasure:
    def eager(self, module, split):
        right, loss = 0, 0.0
        with torch.no_grad():
            for image, label in zip(split.images(), split.labels, strict=True):
                logits = module(image[None])[0]
                right += int(logits.argmax()) == int(label)
                loss -= F.log_softmax(logits.double(), 0)[label].item()
        return right / len(split), loss / len(split)

    def test_agrees_with_a_plain_loop(self):
        model, other = MODEL, make_model(1)
        task = Classification(model, DIGITS, statistics="renewed")
        measured = task.measure(params_of(other))
        module = with_statistics_of(other, DIGITS.train.images())
        accuracy, loss = self.eager(module, DIGITS.test)
        assert set(measured) == {"test_accuracy", "test_loss"}
        assert measured["test_accuracy"] == pytest.approx(accuracy)
        assert measured["test_loss"] == pytest.approx(loss, rel=1e-3)

    @pytest.mark.parametrize("statistics", ["fixed", "renewed"])
    def test_what_is_saved_evaluates_as_a_plain_module(self, statistics):
        task = Classification(MODEL, DIGITS, statistics=statistics)
        params = params_of(make_model(1))
        measured = task.measure(params)
        module = make_model(2)
        module.load_state_dict({**params, **task.buffers(params)}, strict=True)
        accuracy, loss = self.eager(module.eval(), DIGITS.test)
        assert measured["test_accuracy"] == pytest.approx(accuracy)
        assert measured["test_loss"] == pytest.approx(loss, rel=1e-4)

    def test_is_the_same_after_generations_were_evaluated(self):
        model = MODEL
        task = Classification(model, DIGITS)
        params = params_of(make_model(1))
        before = task.measure(params)
        task.evaluate(PerturbedPopulation(model, size=8, sigma=0.5), 0)
        assert task.measure(params) == before

    def test_held_out_images_do_not_move_the_statistics(self):
        params = params_of(make_model(1))
        other = load("mnist5k").subset(train=60, test=7, seed=0)
        ours, theirs = (
            Classification(MODEL, data, statistics="renewed").buffers(params)
            for data in (DIGITS, other)
        )
        assert all(torch.equal(theirs[name], value) for name, value in ours.items())

    def test_a_split_of_many_images_and_a_network_that_always_says_three(self):
        class Three(nn.Module):
            def forward(self, x):
                return F.one_hot(torch.full((len(x),), 3), 10) * 50.0

        split = load("mnist5k").subset(test=600).test
        accuracy, loss = measure_split(Three(), {}, {}, split)
        threes = (split.labels == 3).sum().item()
        assert accuracy == pytest.approx(threes / 600)
        assert loss == pytest.approx(50 * (1 - threes / 600), rel=1e-5)

    def test_the_given_state_counts(self):
        model, other = make_model(), with_statistics_of(make_model(1), DIGITS.train.images())
        split = load("mnist5k").subset(test=20).test
        buffers = dict(other.named_buffers())
        accuracy, loss = measure_split(model, params_of(other), buffers, split)
        expected = self.eager(other, split)
        assert accuracy == pytest.approx(expected[0])
        assert loss == pytest.approx(expected[1], rel=1e-4)


class TestParts:
    """A population evaluated some members at a time, as other processes do."""

    @pytest.fixture(autouse=True)
    def _small_tiles(self, monkeypatch):
        before = torch.get_num_threads()
        monkeypatch.setattr(plan, "_NOISE", 1)
        monkeypatch.setattr(plan, "_LITTLE_WORK", 0)
        monkeypatch.setattr(plan, "images_in_cache", lambda *_: 4)
        monkeypatch.setattr(plan, "_FEWEST_IMAGES", 1)
        yield
        torch.set_num_threads(before)

    @pytest.mark.parametrize(
        ("group", "threads", "size", "count", "expected"),
        [
            (2, 1, 24, 3, [8, 8, 8]),
            (2, 1, 24, 4, [8, 8, 8]),
            (2, 1, 24, 100, [4] * 6),
            (2, 2, 24, 100, [8, 8, 8]),
            (3, 1, 30, 100, [12, 12, 6]),
            (None, 1, 10, 100, [4, 4, 2]),
            (None, 1, 3, 2, [2, 1]),
        ],
        ids=str,
    )
    def test_are_whole_tiles_and_groups(self, group, threads, size, count, expected):
        torch.set_num_threads(threads)
        task = Classification(MODEL, DIGITS, group=group)
        population = PerturbedPopulation(MODEL, size, 0.1, antithetic=False)
        parts = task.parts(population, count)
        assert [len(population[part]) for part in parts] == expected
        assert [i for part in parts for i in range(size)[part]] == list(range(size))

    @pytest.mark.parametrize("memory", [2 << 20, 4 << 20])
    @pytest.mark.parametrize("group", [2, 8])
    def test_come_to_the_bits_of_the_whole_where_memory_is_short(self, monkeypatch, memory, group):
        monkeypatch.undo()  # tiles of their own size, but for the memory
        torch.set_num_threads(1)
        task = Classification(MODEL, DIGITS, group=group, memory=memory)
        population = PerturbedPopulation(MODEL, 128, 0.1)
        whole = task.evaluate(population, 0).fitness
        parts = task.parts(population, 4)
        assert len(parts) == 4
        results = [task.part(population, 0, part) for part in parts]
        assert torch.equal(merged(results).fitness, whole)

    @pytest.mark.parametrize("threads", [1, 2])
    @pytest.mark.parametrize(("group", "batch"), [(2, 1), (3, 1), (6, 3), (None, 5)], ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_come_to_the_bits_of_the_whole(self, group, batch, dtype, threads):
        torch.set_num_threads(threads)
        task = Classification(MODEL, DIGITS, group=group, batch=batch, shift=1, dtype=dtype)
        # A member more than whole tiles have: it is evaluated alone, in another way.
        population = PerturbedPopulation(MODEL, 30 if group else 13, 0.1, antithetic=False)
        whole = task.evaluate(population, 3).fitness
        for count in (2, 100):
            parts = task.parts(population, count)
            results = [task.part(population, 3, part) for part in reversed(parts)]
            assert torch.equal(merged(results[::-1]).fitness, whole)
