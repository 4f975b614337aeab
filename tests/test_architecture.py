"""The floors of the house, held by reading the imports; and the public names."""

import ast
import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tinkering

HOUSE = Path(tinkering.__file__).parent
FILES = sorted(
    path
    for path in HOUSE.rglob("*.py")
    if path.name != "convert.py"  # a script, run by hand
)
# The floors, from the ground: a room may import what lies on lower floors, besides itself.
FLOORS = [
    {"errors", "native"},
    {"required"},
    {"ranges"},
    {"noise", "graph", "data"},
    {"population"},
    {"layers"},
    {"engines"},
    {"evaluation", "functional", "strategies", "runs", "distributed"},
    {"tasks", "models"},
    {"__init__"},  # imported for the version alone
    {"cli"},
    {"__main__"},
]
files = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))


def room_of(path):
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text(), str(path))


def modules_in(tree):
    """Every module that is imported, at the top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_in(tree):
    rooms = set()
    for module in modules_in(tree):
        first, *rest = module.split(".")
        if first != "tinkering":
            continue
        rooms.add(rest[0] if rest and (HOUSE / rest[0]).with_suffix(".py").exists() else None)
        if rest and (HOUSE / rest[0]).is_dir():
            rooms.add(rest[0])
        if not rest:
            rooms.add("__init__")
    return rooms - {None}


def calls_in(tree):
    """Names that are called: ``print`` of ``print(...)`` and of ``console.print(...)``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id
            elif isinstance(node.func, ast.Attribute):
                yield node.func.attr


def test_every_file_is_in_a_room_with_a_floor():
    assert {room_of(path) for path in FILES} == set().union(*FLOORS)


def test_measuring_stands_above_the_package():
    """Nothing in the package imports it, and it needs neither the command line nor Ray."""
    for path in FILES:
        assert "benchmarks" not in {module.split(".")[0] for module in modules_in(tree_of(path))}
    measuring = sorted((HOUSE.parent / "benchmarks" / "bench").glob("*.py"))
    if not measuring:
        pytest.skip("not in a checkout")
    for path in measuring:
        assert not {"cli", "distributed", "runs", "tasks"} & rooms_in(tree_of(path)), path


@files
def test_a_room_imports_only_what_lies_below_it(path):
    room = room_of(path)
    if room == "__init__":
        pytest.skip("re-exports names of every room")
    # `from tinkering import data` names the package too; the rooms it names are what count.
    imported = rooms_in(tree_of(path)) - {room}
    if {"__init__"} & imported and len(imported) > 1:
        imported -= {"__init__"}
    (floor,) = (at for at, rooms in enumerate(FLOORS) if room in rooms)
    below = set().union(*FLOORS[:floor])
    assert imported <= below, f"{room} imports {sorted(imported - below)}"


def test_the_reader_of_imports_reads_them():
    source = """
import tinkering.models
from tinkering import data
from tinkering.runs.evolve import evolve
def f():
    from tinkering.noise import Dense
    console.print(1)
"""
    tree = ast.parse(source)
    assert rooms_in(tree) >= {"models", "data", "runs", "noise"}
    assert "print" in set(calls_in(tree))


@files
def test_only_the_command_line_and_the_demonstration_print(path):
    if room_of(path) == "cli":
        return
    tree = tree_of(path)
    if path == HOUSE / "models.py":
        (demonstration,) = (
            node for node in tree.body if getattr(node, "name", "") == "_demonstrate"
        )
        assert "print" in set(calls_in(demonstration))
        tree = ast.Module([node for node in tree.body if node is not demonstration], [])
    assert not {"print", "Console", "input"} & set(calls_in(tree))
    assert "rich.console" not in set(modules_in(tree))


@files
def test_only_the_data_run_and_native_rooms_touch_the_disk(path):
    if room_of(path) in ("data", "runs", "cli", "native"):
        return
    touching = {"open", "write_text", "write_bytes", "read_text", "read_bytes", "mkdir", "unlink"}
    assert not touching & set(calls_in(tree_of(path)))


@files
def test_only_the_native_room_loads_libraries_and_starts_programs(path):
    if room_of(path) == "native":
        return
    imported = {module.split(".")[0] for module in modules_in(tree_of(path))}
    assert not {"ctypes", "subprocess"} & imported


@files
def test_no_mistake_of_a_user_is_met_by_assert(path):
    """They are gone under ``python -O``."""
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree_of(path)))


@files
def test_every_file_says_what_it_is_for(path):
    assert ast.get_docstring(tree_of(path))


class TestPublicNames:
    def test_resolve_to_what_their_room_has(self):
        assert set(tinkering.__all__) == set(tinkering._ROOM_OF)
        assert len(tinkering.__all__) == len(set(tinkering.__all__))
        for name, room in tinkering._ROOM_OF.items():
            value = getattr(importlib.import_module(f"tinkering.{room}"), name)
            assert getattr(tinkering, name) is value
            assert value.__doc__
            assert value.__module__ == f"tinkering.{room}"
        assert set(tinkering.__all__) <= set(dir(tinkering))

    def test_are_the_same_for_type_checkers(self):
        (block,) = (
            node
            for node in tree_of(HOUSE / "__init__.py").body
            if isinstance(node, ast.If) and node.test.id == "TYPE_CHECKING"
        )
        declared = {}
        for node in block.body:
            for alias in node.names:
                assert alias.asname == alias.name  # the form that re-exports
                declared[alias.name] = node.module.removeprefix("tinkering.")
        assert declared == tinkering._ROOM_OF

    def test_a_name_that_does_not_exist(self):
        with pytest.raises(AttributeError, match="module 'tinkering' has no attribute 'Resnet'"):
            _ = tinkering.Resnet

    def test_the_version_is_that_of_the_project(self):
        project = HOUSE.parent / "pyproject.toml"
        if not project.exists():
            pytest.skip("not in a checkout")
        assert f'\nversion = "{tinkering.__version__}"\n' in project.read_text()


def test_importing_loads_no_torch_prints_nothing_and_writes_nothing(tmp_path):
    source = (
        "import sys, tinkering; "
        "loaded = {'torch', 'numpy', 'rich', 'matplotlib', 'tyro', 'pooch'} & set(sys.modules); "
        "assert not loaded, loaded; assert tinkering.__version__"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(HOUSE.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "MPLCONFIGDIR": str(tmp_path / "mpl"),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@files
def test_ray_is_imported_in_one_place_and_only_when_asked_for(path):
    assert "ray" not in {module.split(".")[0] for module in modules_in(tree_of(path))}
    if path != HOUSE / "distributed" / "cluster.py":
        assert '"ray"' not in path.read_text()
