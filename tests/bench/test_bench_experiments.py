"""The experiments: which rows there are, which contenders run, and what pure inference is."""

import copy
import importlib
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.bench import experiment, peers, vision_rows
from benchmarks.bench.clock import Contender, Rates
from benchmarks.bench.experiment import Bench, Comparison, matches
from benchmarks.bench.judge import Target
from benchmarks.bench.networks import NETWORKS, images, network
from benchmarks.bench.processes import peak_bytes
from benchmarks.bench.pure import Pure, frozen, packed
from benchmarks.bench.settings import QUICK, Sizes
from benchmarks.bench.suite import rows_of, selected, suite
from benchmarks.bench.vision import ResNet18
from tinkering.errors import ArgumentError
from tinkering.layers.onednn import packed_convolutions_work


@pytest.fixture
def bench():
    return Bench(QUICK, rounds=1, shortest=0.0)


def taken(rows):
    """What a generator yields, and what it returns."""
    found = []
    while True:
        try:
            found.append(next(rows))
        except StopIteration as stop:
            return found, stop.value


def given(monkeypatch, **rates):
    """Have pure inference run at rates by way and tile, and return which ways were prepared."""
    prepared = []

    class Given(Pure):
        def pack(self, count):
            prepared.append(f"packed-{count}")
            return prepared[-1]

        def freeze(self, count):
            prepared.append(f"frozen-{count}")
            return prepared[-1]

        def contender(self, name, count):
            return Contender(f"pure:{name}", int, count)

    def compare(contenders, *_):
        names = [contender.name for contender in contenders]
        parts = {name: name.split("-") for name in names}
        return Rates({name: [float(rates[how][int(t)])] for name, (how, t) in parts.items()})

    monkeypatch.setattr(experiment, "Pure", Given)
    monkeypatch.setattr(experiment, "compare", compare)
    return prepared


class TestSuite:
    @pytest.mark.parametrize("sizes", [Sizes(), QUICK], ids=["real", "quick"])
    def test_every_row_has_a_name_of_its_own(self, sizes):
        names = rows_of(sizes)
        assert len(set(names)) == len(names)

    def test_the_agreed_rows_are_there(self):
        assert {
            *("call-vs-vmap", "call-vs-loop", "bf16-vs-vmap", "bf16-vs-vmap-bound"),
            *("bf16-b64-vs-pure", "bf16-b256-vs-pure", "shared-w64"),
            *(f"factored-w{width}{way}" for width in (64, 16, 8) for way in ("", "-every")),
            *("evolve-w64", "evolve-w16", "evolve-w8", "update-w64", "update-w8"),
            *("net-mobilenet", "net-convnext", "net-resnet18", "net-resnet18-bf16"),
            *("vgg-w64", "preact-w64", "vgg-w8", "preact-w8", "noise-w8", "noise-w64"),
            *(f"call-{n}-{m}" for n in ("4-32-32-2", "40-128-128-8") for m in (64, 1024)),
            *("stacked-4-32-32-2-256", "stacked-4-32-32-2-1024", "stacked-376-256-256-17-256"),
            *(f"perturbed-{n}-{m}" for n in ("4-32-32-2", "376-256-256-17") for m in (256, 1024)),
            *("gru-64-256", "gru-64-256-stacked", "dense-376-256-256-17-1024"),
            *("python-4-32-32-2", "causal", "vit"),
            *("call-lenet-64", "memory-few", "memory-many", "memory-growth"),
            *("cold-start-empty", "cold-start-warm", "peer-evox", "peer-evotorch"),
        } <= set(rows_of(Sizes()))

    @pytest.mark.parametrize(
        ("pattern", "fits"),
        [
            *[("", True), ("fact", True), ("FACT", True), ("factored-w?4", True)],
            *[("w8", False), ("*-w8", False), ("actored-w?4", False), ("call,w64", True)],
        ],
    )
    def test_a_pattern(self, pattern, fits):
        assert matches("factored-w64", pattern) is fits

    def test_a_pattern_selects_experiments(self):
        assert [e.rows for e in selected(Sizes(), "call-vs-loop")] == [
            ("vmap-fp32", "vmap-fp32-kept", "loop-fp32", "call-vs-vmap", "call-vs-loop")
        ]
        assert len(selected(Sizes(), "")) == len(suite(Sizes()))

    def test_a_pattern_that_fits_nothing_says_what_there_is(self):
        with pytest.raises(ArgumentError) as raised:
            selected(Sizes(), "nothing")
        assert str(raised.value).startswith(
            "rows: needed a pattern that fits a row, got 'nothing'. The rows are pure-resnet-w64, "
        )
        assert "call-vs-vmap, call-vs-loop, call-4-32-32-2-64" in str(raised.value)


class TestCompared:
    def test_only_what_is_wanted_runs(self, bench):
        ran = set()
        contenders = [Contender(n, lambda n=n: ran.add(n)) for n in ("a", "b", "pure:x", "pure:y")]
        comparisons = [
            Comparison("row-a", "", "a", "pure", "of pure", Target(0.5)),
            Comparison("row-b", "", "b", "a", "x a"),
        ]
        some = replace(bench, pattern="row-a")
        rows, rates = some.compared(contenders, comparisons)
        assert [row.name for row in rows] == ["row-a"]
        assert ran == {"a", "pure:x", "pure:y"} == set(rates.readings)

    def test_the_faster_of_the_rivals_counts(self, bench):
        fast, slow = Contender("pure:fast", int, 10**9), Contender("pure:slow", int, 1)
        (row,), rates = bench.compared(
            [Contender("a", int, 1), slow, fast], [Comparison("row", "", "a", "pure", "of pure")]
        )
        assert row.judged.value == rates.ratio("a", "pure:fast")


class TestNetworks:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_a_seed_makes_the_same_weights_and_leaves_the_generator(self, name):
        state = torch.get_rng_state()
        first, second = network(name, 2, seed=3), network(name, 2, seed=3)
        assert torch.equal(first(images(1)), second(images(1)))
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("name", ["vgg", "preact"])
    def test_the_others_cost_about_what_the_resnet_does(self, name):
        def work(model):
            done = []
            for layer in model.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.register_forward_hook(
                        lambda layer, _, out: done.append(layer.weight.numel() * out[0, 0].numel())
                    )
            model(images(1))
            return sum(done)

        assert work(network(name, 8)) == pytest.approx(work(network("resnet", 8)), rel=0.25)


class TestPure:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_packed_is_the_network(self, name):
        model, x = network(name, 2), images(5)
        with torch.no_grad():
            torch.testing.assert_close(packed(model, x)(x), model(x), rtol=1e-4, atol=1e-5)

    @pytest.mark.skipif(not packed_convolutions_work(torch.bfloat16), reason="no oneDNN bfloat16")
    @pytest.mark.usefixtures("same_threads")
    def test_every_way_runs_as_many_images_as_it_says(self):
        torch.set_num_threads(2)
        model = network("resnet", 2)
        before = copy.deepcopy(model.state_dict())
        pure = Pure(model, torch.bfloat16, compiled=False)
        names = [prepare(tile) for tile in (4, 8) for prepare in (pure.freeze, pure.pack)]
        assert names == ["eager-4", "packed-4", "eager-8", "packed-8"]
        contenders = [pure.contender(name, 9) for name in names]
        # A thread has as many tiles of its own as the other: four of 4 and two of 8.
        assert [contender.images for contender in contenders] == [12, 16, 16, 16]
        with torch.no_grad():
            for contender in contenders:
                contender.run()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    @pytest.mark.usefixtures("same_threads")
    def test_its_rows_come_once(self, bench):
        torch.set_num_threads(1)
        rows, ways = taken(bench.pure("vgg", 2, 40))
        assert [row.name for row in rows] == ["pure-vgg-w2-packed-32", "pure-vgg-w2-eager-32"]
        assert [row.note for row in rows].count("fastest") == 1
        assert [way.images for way in ways] == [64, 64]
        assert taken(bench.pure("vgg", 2, 40))[0] == []

    def test_the_two_fastest_of_the_two_best_tiles_are_kept(self, bench, monkeypatch):
        prepared = given(monkeypatch, packed={4: 10, 8: 30, 16: 20}, frozen={4: 99, 8: 5, 16: 25})
        some = replace(bench, sizes=replace(QUICK, tiles=(4, 8, 16)))
        rows, ways = taken(some.pure("vgg", 2, 40))
        assert prepared == ["packed-4", "packed-8", "packed-16", "frozen-8", "frozen-16"]
        assert [row.name.removeprefix("pure-vgg-w2-") for row in rows] == [
            *("packed-8", "packed-16", "frozen-8", "frozen-16")
        ]
        assert [way.name for way in ways] == ["pure:packed-8", "pure:frozen-16"]

    def test_beside_others_it_runs_for_three_seconds_at_most(self, bench, monkeypatch):
        given(monkeypatch, packed={32: 10}, frozen={32: 20})
        assert [way.images for way in taken(bench.pure("vgg", 2, 50))[1]] == [50, 50]
        assert [way.images for way in taken(bench.pure("vgg", 2, 500))[1]] == [60, 60]


class TestFrozen:
    TILE = torch.ones(2, 3)

    def test_freezing_is_set_while_it_compiles_and_set_back(self, monkeypatch):
        config = importlib.import_module("torch._inductor.config")
        seen = []

        def compiled(*_):
            seen.append(config.freezing)

        monkeypatch.setattr(torch, "compile", lambda *_, **__: compiled)
        before = config.freezing
        assert frozen(nn.Linear(3, 2), self.TILE)[1] == "frozen"
        assert (seen, config.freezing) == ([True], before)

    def test_without_a_compiler_it_is_the_module(self, monkeypatch):
        def fail(*_, **__):
            raise RuntimeError("no C++ compiler")

        monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
        layer = nn.Linear(3, 2)
        run, how = frozen(layer, self.TILE)
        assert how == "eager"
        assert torch.equal(run(self.TILE), layer(self.TILE))

    @pytest.mark.long
    def test_the_compiled_module_is_the_module(self):
        layer = nn.Linear(3, 2)
        with torch.no_grad():
            run, _ = frozen(layer, self.TILE)
            torch.testing.assert_close(run(self.TILE), layer(self.TILE))


class TestPeers:
    def test_one_that_is_missing_is_said_to_be(self, bench, monkeypatch):
        def missing(name):
            raise peers.PackageNotFoundError(name)

        monkeypatch.setattr(peers, "version", missing)
        (row,) = peers._run("evox", bench)
        assert (row.name, row.note, row.measured) == ("peer-evox", "not installed", None)

    def test_one_that_fails_ends_nothing(self, bench, monkeypatch):
        def broken(*_):
            raise ImportError("needs ray")

        monkeypatch.setattr(peers, "version", lambda _: "0.6.1")
        monkeypatch.setitem(peers.PEERS, "evotorch", broken)
        (row,) = peers._run("evotorch", bench)
        assert row.note == "failed: ImportError: needs ray"

    def test_one_that_works_is_compared(self, bench, monkeypatch):
        monkeypatch.setattr(peers, "version", lambda _: "1.0")
        monkeypatch.setitem(peers.PEERS, "evox", lambda models, x, _: lambda: models[0](x))
        (row,) = peers._run("evox", bench)
        assert row.measured.value > 0
        assert row.judged.unit == "of our call"


@pytest.mark.usefixtures("same_threads")
def test_a_peak_is_that_of_a_process_with_pytorch_in_it():
    assert 50e6 < peak_bytes(members=2, width=2, threads=1) < 64e9


def test_members_of_another_network_run_beside_all_ways_of_inference(monkeypatch):
    """On the smallest of them, since nothing depends on which it is."""
    small = {"tiny": (lambda: ResNet18(width=4), Target(0.5, 0.75))}
    monkeypatch.setattr(vision_rows, "_NETWORKS", small)
    found = {}
    real = experiment.compare
    monkeypatch.setattr(experiment, "compare", lambda c, *a: found.update(c=c) or real(c, *a))
    sizes = replace(QUICK, other_members=4)
    rows = [
        row
        for one in vision_rows.experiments(sizes)
        for row in one.run(Bench(sizes, rounds=1, shortest=0.0))
    ]
    assert [row.name for row in rows] == ["net-tiny", "net-tiny-bf16"]
    assert [row.target.must for row in rows] == [0.5, None]
    assert all(row.judged.unit == "of pure" and row.judged.value > 0 for row in rows)
    kinds = {one.name.rpartition("-")[0] for one in found["c"]}
    assert {"pure:packed", "pure:eager"} <= kinds
