"""Networks that others wrote: the numbers of a loop over members, and the engine that docs name."""

import logging
import warnings

import pytest
import torch
from signatures import members_of
from small_nets import assert_close
from torch.utils import _pytree
from zoo_table import MEMBERS, PARTS, ZOO, case_for, row, rows_of_the_page


def networks():
    marks = {True: [pytest.mark.long], False: []}
    return [pytest.param(name, marks=marks[entry.long]) for name, entry in ZOO.items()]


def tensors_in(tree):
    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@pytest.fixture(autouse=True)
def _quiet():
    """`transformers` says which kernels it would rather have."""
    logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.mark.parametrize("name", networks())
class TestNetworks:
    @pytest.mark.parametrize("stacked", [False, True], ids=["perturbed", "stacked"])
    def test_members_are_those_of_a_loop(self, name, stacked):
        case = case_for(name)
        kwargs = dict(case.entry.kwargs)
        bound = case.bound(case.perturbed.stack() if stacked else case.perturbed)
        outputs = tensors_in(bound(*case.inputs, **kwargs))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = tensors_in(
                members_of(
                    case.perturbed,
                    case.model,
                    lambda index: (tuple(each[index] for each in case.inputs), kwargs),
                )
            )
        for result, wanted in zip(outputs, expected, strict=True):
            assert len(result) == MEMBERS
            assert_close(result, wanted, 1e-5)

    def test_the_page_says_which_engine_it_gets(self, name):
        assert any(row(name) in rows_of_the_page(part) for part in PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_the_page_has_a_row_for_each_and_no_other(part):
    named = [line.split(" | ")[0].removeprefix("| ") for line in rows_of_the_page(part)]
    assert named == list(PARTS[part])
