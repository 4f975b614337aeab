"""Asking the allocator to keep memory, where there is one that can be asked."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from tinkering.engines.thread_pool import map_in_order
from tinkering.native import allocator


@pytest.fixture(autouse=True)
def _asked_anew():
    allocator.keep_freed_memory.cache_clear()
    yield
    allocator.keep_freed_memory.cache_clear()


def pretend(monkeypatch, library):
    """The C library that ctypes finds."""

    def load(name):
        assert name is None
        if isinstance(library, Exception):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)


@pytest.mark.parametrize("library", [SimpleNamespace(), OSError("no such library")])
def test_another_allocator_is_left_alone(monkeypatch, library):
    pretend(monkeypatch, library)
    assert allocator.keep_freed_memory() is False
    assert list(map_in_order(lambda i: i, range(3), threads=1)) == [0, 1, 2]


@pytest.mark.parametrize(("answers", "kept"), [([1, 1], True), ([0, 1], False), ([1, 0], False)])
def test_both_limits_are_set_once(monkeypatch, answers, kept):
    asked = []

    def mallopt(name, size):
        asked.append((name, size))
        return answers[len(asked) - 1]

    pretend(monkeypatch, SimpleNamespace(mallopt=mallopt))
    assert allocator.keep_freed_memory() is kept
    assert allocator.keep_freed_memory() is kept
    assert dict(asked) == {-3: 32 << 20, -1: 256 << 20}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    assert len(asked) == 2


def test_tensors_are_as_they_were():
    allocator.keep_freed_memory()
    large = [torch.full((1 << 20,), float(i)) for i in range(8)]
    assert [value.mean().item() for value in large] == list(range(8))
