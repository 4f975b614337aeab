"""Where images are in a graph's values, told by what each image alone makes of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_nets import captured
from torch import fx, nn

from tinkering.graph.batch_axis import Placement, place_images


class Does(nn.Module):
    def __init__(self, given):
        super().__init__()
        self.given = given
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.given(self, x)


def tokens_first(m, x):
    return m.linear(x.transpose(0, 1)).transpose(0, 1).flatten(1)


def merged_inside(m, x):
    """[images, 7, 4] -> [images * 7, 4]"""
    return m.linear(x.reshape(-1, 4)).view(-1, 7, 2).flatten(1)


def merged_outside(m, x):
    """[images, 7, 4] -> [7 * images, 4]"""
    rows = m.linear(x.transpose(0, 1).reshape(-1, 4))
    return rows.view(7, -1, 2).transpose(0, 1).flatten(1)


def merged_between(m, x):
    """[images, 7, 4, 1] -> [7, images, 4] -> [28 * images], with axes on both sides of them."""
    return x.transpose(0, 1).reshape(-1).view(7, -1, 4).transpose(0, 1) @ m.linear.weight.T


def last(m, x):
    return m.linear(x).movedim(0, -1).relu().movedim(-1, 0)


FORWARDS = {
    "first": lambda m, x: m.linear(x).flatten(1),
    "tokens first": tokens_first,
    "merged, images outside": merged_inside,
    "merged, images inside": merged_outside,
    "merged, images in between": merged_between,
    "last": last,
}


def values_of(taken, model, x):
    """The value of every node, by the node's name."""
    values = taken.values({name: value.detach() for name, value in model.named_parameters()})

    class Remember(fx.Interpreter):
        def run_node(self, node):
            result = super().run_node(node)
            if isinstance(result, torch.Tensor):
                self.seen[node.name] = result
            return result

    interpreter = Remember(fx.GraphModule({}, taken.graph))
    interpreter.seen = {}
    names = [node.name for node in taken.graph.nodes if node.op == "placeholder"]
    interpreter.run(*[x if name in taken.inputs else values[name] for name in names])
    return interpreter.seen


@pytest.mark.parametrize("name", FORWARDS)
def test_each_image_is_where_it_would_be_alone(name):
    model = Does(FORWARDS[name]).eval()
    x = torch.randn(5, 7, 4)
    taken = captured(model, x)
    together = values_of(taken, model, x)
    alone = [values_of(taken, model, x[i : i + 1]) for i in range(5)]
    placed = 0
    for node in taken.graph.nodes:
        if node.op == "output" or node.name in taken.parameters:
            continue
        placement = place_images(node, taken.examples)
        value = together[node.name]
        if placement is None:  # an axis of all of them was taken apart or is behind a merged one
            assert name.startswith("merged")
            continue
        placed += 1
        separate = placement.first(value, 5)
        assert separate.shape[0] == 5
        for i in range(5):
            expected = placement.first(alone[i][node.name], 1)[0]
            torch.testing.assert_close(separate[i], expected)
        assert torch.equal(placement.back(separate), value)
        # No other place gives each image its own.
        assert placement.is_first == (
            separate.shape[1:].numel() == value[0].numel() and value.shape[0] == 5
        )
    assert placed >= 3


def place(model, x, target):
    """Where the images are in what an operation makes."""
    taken = captured(model.eval(), x)
    (node,) = (node for node in taken.graph.nodes if node.name == target)
    return place_images(node, taken.examples)


class TestPlaces:
    def test_merged_axes(self):
        x = torch.zeros(2, 7, 4)
        assert place(Does(tokens_first), x, "linear") == Placement(1)
        assert place(Does(merged_inside), x, "reshape") == Placement(0, inner=7)
        assert place(Does(merged_outside), x, "reshape") == Placement(0, outer=7)
        assert place(Does(merged_between), x, "reshape") == Placement(0, outer=7, inner=4)

    def test_axes_that_were_merged_before(self):
        again = Does(lambda m, x: m.linear(m.linear(x.reshape(-1, 4)).reshape(-1, 2, 4)))
        x = torch.zeros(2, 8, 4)
        assert place(again, x, "linear") == Placement(0, inner=8)
        assert place(again, x, "reshape_1") == Placement(0, inner=2)
        apart = Does(lambda m, x: m.linear(x.reshape(-1, 4)).reshape(-1, 8, 2))
        assert place(apart, x, "reshape_1") == Placement(0)
        moved = Does(lambda m, x: m.linear(x.reshape(-1, 2, 4).transpose(0, 1)))
        assert place(moved, x, "transpose") == Placement(1, inner=4)

    @pytest.mark.parametrize(
        ("forward", "target"),
        [
            (lambda m, x: m.linear(x.sum((0, 1)).expand(3, 4)), "sum_1"),
            (lambda m, x: m.linear(torch.cat([x, x])), "cat"),
            (lambda m, x: x.flatten(1) * (m.linear.weight @ m.linear.weight.T).sum(), "matmul"),
        ],
    )
    def test_unknown(self, forward, target):
        assert place(Does(forward), torch.zeros(2, 8, 4), target) is None


sizes = st.lists(st.integers(1, 3), max_size=2).map(tuple)


@given(sizes, sizes, st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_there_and_back(before, behind, outer, images, inner):
    """The numbers of an image's entries are its own number."""
    which = torch.arange(images).view(1, images, 1).expand(outer, images, inner).reshape(-1)
    spread = which.view(*[1] * len(before), -1, *[1] * len(behind))
    x = spread.expand(*before, outer * images * inner, *behind)
    placement = Placement(len(before), outer, inner)
    first = placement.first(x, images)
    assert first.shape == (images, *before, outer, inner, *behind)
    for i in range(images):
        assert (first[i] == i).all()
    unlike = torch.randn(x.shape)
    assert torch.equal(placement.back(placement.first(unlike, images)), unlike)
    assert placement.is_first == (before == () and outer == inner == 1)
