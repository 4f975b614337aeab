"""State as JSON and tensors: what goes in comes out, and nothing else is made."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from fractions import Fraction
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tinkering.errors import ArgumentError
from tinkering.runs.plain import classes_of, from_plain, to_plain


class Pair(NamedTuple):
    left: int
    right: float


@dataclass(frozen=True)
class Inner:
    value: object = None


@dataclass(frozen=True)
class Outer:
    inner: Inner
    pairs: tuple[Pair, ...] = ()
    named: Mapping[str, Inner] = field(default_factory=dict)
    maybe: Inner | None = None


CLASSES = {"Pair": Pair, "Inner": Inner, "Outer": Outer}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@st.composite
def tensor(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    values = draw(st.lists(st.integers(0, 255), min_size=27, max_size=27))
    count = math.prod(shape)
    return torch.tensor(values[:count]).to(draw(st.sampled_from(DTYPES))).reshape(shape)


ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | tensor()
KEYS = st.text(max_size=3) | st.integers() | st.tuples(st.integers(), st.booleans())
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.builds(Inner, inner)
        | st.builds(Outer, st.builds(Inner, inner))
        | st.builds(Pair, st.integers(), st.floats())
    ),
    max_leaves=12,
)


def there_and_back(value, classes=CLASSES):
    tensors = {}
    plain = json.loads(json.dumps(to_plain(value, tensors), allow_nan=False))
    return from_plain(plain, tensors, classes)


def same(a, b):
    """Equal in value, in type and in order; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (
            a == b and math.copysign(1, a) == math.copysign(1, b)
        )
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(same, a.items(), b.items()))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return same(vars(a), vars(b)) if is_dataclass(a) else a == b


@given(VALUES)
@example({"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)})
@example({1: torch.zeros(1), "1": torch.ones(1)})
@example({"tensor": "state", "class": "Inner", "fields": {}, "float": "nan", "tuple": []})
@example([math.nan, math.inf, -math.inf, -0.0, 5e-324, 2**80, True, 1, 1.0])
def test_what_goes_in_comes_out(value):
    assert same(there_and_back(value), value)


def test_tensors_are_copies():
    value = torch.zeros(2)
    tensors = {}
    to_plain([value, value], tensors)
    value += 1
    assert {name: kept.tolist() for name, kept in tensors.items()} == {
        "state.0": [0, 0],
        "state.1": [0, 0],
    }


def test_a_part_of_a_tensor_is_kept_alone():
    tensors = {}
    to_plain(torch.arange(1000)[::100], tensors)
    assert tensors["state"].untyped_storage().nbytes() == 10 * 8


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {2}]}, "state.a.1: needed numbers, text, None, tensors, and .*, got set."),
        (Inner(Fraction(1, 2)), "state.value: needed .*, got Fraction."),
        (Inner, "state: needed .*, got type."),
        (print, "state: needed .*, got builtin_function_or_method."),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_place(value, message):
    with pytest.raises(ArgumentError, match=message):
        to_plain(value, {})


def test_classes_are_those_that_annotations_name():
    assert classes_of(Outer(Inner())) == CLASSES
    assert classes_of(Inner()) == {"Inner": Inner}
    assert classes_of({"a": Outer(Inner())}) == {}


def test_no_other_class_is_made():
    made = []

    @dataclass
    class Evil:
        value: int = 0

        def __post_init__(self):
            made.append(self)

    plain = to_plain(Evil(), {})
    made.clear()
    with pytest.raises(KeyError):
        from_plain(plain, {}, CLASSES)
    assert made == []


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"tensor": "elsewhere"},
        {"tensor": []},
        {"float": "much"},
        {"mapping": [[[], 1]]},
        {"mapping": [[1]]},
        {"mapping": 3},
        {"tuple": 3},
        {"pickle": "gASV"},
        {"float": "1", "tuple": []},
        {"class": "Inner", "fields": {"other": 1}},
        {"class": "Pair", "fields": {"left": 1}},
        {"class": ["Inner"], "fields": {}},
        {"class": "Inner"},
    ],
    ids=str,
)
def test_what_was_not_made_here_is_refused(plain):
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_plain(plain, {}, CLASSES)
