"""How much memory there is, from what the system says; and what images take, by hand."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_nets import captured, seen
from torch import nn

from tinkering.engines import memory
from tinkering.graph.program import Program
from tinkering.native import free_memory as system

GIB = 1 << 30


@pytest.fixture
def unlimited(monkeypatch, tmp_path):
    """A machine that says nothing about its memory; the folder of its control group."""
    monkeypatch.setattr(system, "_machine", lambda: system._UNKNOWN)
    monkeypatch.setattr(system, "_GROUP", tmp_path)
    limits(monkeypatch, -1)
    return tmp_path


def limits(monkeypatch, limit):
    """What ``ulimit -v`` says."""
    fake = SimpleNamespace(
        RLIMIT_AS=9, RLIM_INFINITY=-1, getrlimit=lambda _: (limit, -1), getpagesize=lambda: 4096
    )
    monkeypatch.setattr(system, "resource", fake)


class TestFreeMemory:
    def test_of_a_machine_without_limits_is_assumed_to_be_enough(self, unlimited):
        assert not list(unlimited.iterdir())
        assert system.free_memory() == system._UNKNOWN

    @pytest.mark.parametrize(
        ("limit", "used", "free"),
        [(f"{3 * GIB}\n", f"{GIB}\n", 2 * GIB), ("max\n", "5\n", 2**62), ("5\n", "9\n", 0)],
    )
    def test_of_a_container(self, unlimited, limit, used, free):
        (unlimited / "memory.max").write_text(limit)
        (unlimited / "memory.current").write_text(used)
        assert system.free_memory() == free

    def test_under_a_limit_of_addresses(self, unlimited, monkeypatch):
        assert unlimited.is_dir()
        limits(monkeypatch, 2**50)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        assert system.free_memory() == pytest.approx(2**50 - 4096 * pages, abs=GIB)
        limits(monkeypatch, 1000)
        assert system.free_memory() == 0

    def test_of_a_system_without_such_limits(self, unlimited, monkeypatch):
        assert unlimited.is_dir()
        monkeypatch.setattr(system, "resource", None)
        assert system.free_memory() == system._UNKNOWN

    def test_of_this_machine_is_a_part_of_what_it_has(self):
        has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert 0 < system._machine() < has

    def test_the_least_counts_and_half_of_it_is_the_budget(self, unlimited, monkeypatch):
        (unlimited / "memory.max").write_text(str(8 * GIB))
        (unlimited / "memory.current").write_text("0")
        assert memory.default_budget() == 4 * GIB
        monkeypatch.setattr(system, "_machine", lambda: 6 * GIB)
        assert memory.default_budget() == 3 * GIB
        limits(monkeypatch, 1)
        assert memory.default_budget() == 0


class Wide(nn.Module):
    """An image of 64 numbers; a value of 8 x 64 is held while one of 4 x 64 is made."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.two(torch.exp(self.one(x))).sum((2, 3))


class TestFootprint:
    def of(self, model, *shape):
        return memory.footprint(Program(captured(model.eval(), torch.zeros(3, *shape))))

    def test_by_hand(self):
        """The most is at the exponential: images, input and result are held, and worked on."""
        found = self.of(Wide(), 1, 8, 8)
        image, wide = 4 * 64, 4 * 8 * 64
        assert found.peak == image + 2 * wide + 2 * wide
        assert found.largest == 8 * 64
        assert found.output == 4 * 4

    def test_a_value_that_is_not_needed_counts_no_more(self):
        short, long = (
            self.of(nn.Sequential(*[nn.Linear(50, 50) for _ in range(n)]), 50) for n in (3, 20)
        )
        assert (short.peak, short.largest, short.output) == (long.peak, long.largest, long.output)
        assert (short.work, long.work) == (3 * 50 * 50, 20 * 50 * 50)

    def test_a_residual_is_held_until_it_is_added(self):
        class Adds(nn.Module):
            def __init__(self, kept):
                super().__init__()
                self.kept = kept
                self.layers = nn.ModuleList(nn.Linear(50, 50) for _ in range(4))

            def forward(self, x):
                first = y = self.layers[0](x)
                for layer in self.layers[1:]:
                    y = torch.tanh(layer(y))
                return y + first if self.kept else y

        more = self.of(Adds(True), 50).peak - self.of(Adds(False), 50).peak
        assert more == 2 * 4 * 50  # held, and perhaps cast where it is added

    def test_it_does_not_depend_on_how_many_images_the_example_had(self):
        model = Wide().eval()
        one, five = (Program(captured(model, torch.zeros(n, 1, 8, 8))) for n in (1, 5))
        assert memory.footprint(one) == memory.footprint(five)

    def test_it_is_found_out_once_for_a_module(self):
        model = Wide().eval()
        first, again = (seen(model, torch.zeros(n, 1, 8, 8)).footprint for n in (2, 3))
        assert first is again
