"""Operations without a form of their own, masks of members' own, and parts of images."""

import pytest
import torch
import torch.nn.functional as F
from small_nets import assert_close
from torch import nn

from tinkering import bind, plan
from tinkering.noise import Dense, LowRank
from tinkering.population import PerturbedPopulation, StackedPopulation

MEMBERS, EXAMPLES = 5, 3


class Does(nn.Module):
    """A forward of parameters that are handed in, which calls no layer."""

    def __init__(self, forward, **held):
        super().__init__()
        self._forward = forward
        for name, value in held.items():
            setattr(self, name, value if isinstance(value, nn.Module) else nn.Parameter(value))

    def forward(self, x):
        return self._forward(self, x)


def attends(x, bias):
    q = x.view(-1, 6, 2, 4).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q, q, bias).transpose(1, 2).reshape(x.shape)


def windows(m, x):
    """Attention inside two halves of the tokens, each with a mask of its own."""
    q = x.reshape(-1, 3, 2, 4).transpose(1, 2)
    mask = m.table.exp().repeat(x.shape[0], 1, 1, 1)
    return F.scaled_dot_product_attention(q, q, q, mask).transpose(1, 2).reshape(x.shape)


def film(m, x):
    frames = m.depth(F.relu(m.norm(m.conv(x.flatten(0, 1)))))
    return frames.unflatten(0, (-1, 4)).flatten(2).mean(1)


FORWARDS = {
    "a mask that is a parameter": (
        lambda m, x: attends(x, m.mask),
        {"mask": torch.randn(6, 6)},
        (6, 8),
        set(),
    ),
    "a mask that is made": (
        lambda m, x: attends(x, m.mask[None] * 2),
        {"mask": torch.randn(2, 6, 6)},
        (6, 8),
        {"aten.mul.Tensor", "aten.unsqueeze.default"},
    ),
    "windows": (windows, {"table": torch.randn(2, 2, 3, 3)}, (6, 8), {"aten.exp.default"}),
    "frames": (
        film,
        {
            "conv": nn.Conv2d(2, 4, 3),
            "norm": nn.BatchNorm2d(4),
            "depth": nn.Conv2d(4, 4, 3, groups=4),
        },
        (4, 2, 6, 6),
        set(),
    ),
    "a weight that is made": (
        lambda m, x: F.linear(x, m.weight * m.mask.sigmoid(), m.bias),
        {"weight": torch.randn(3, 8), "mask": torch.randn(3, 8), "bias": torch.randn(3)},
        (8,),
        {"aten.sigmoid.default", "aten.mul.Tensor", "aten.linear.default"},
    ),
    "used twice": (
        lambda m, x: (x @ m.weight) @ m.weight.T,
        {"weight": torch.randn(8, 8)},
        (8,),
        {"aten.permute.default", "aten.numpy_T.default", "aten.t.default"},
    ),
    "no rule": (
        lambda m, x: torch.cdist(x, m.centres),
        {"centres": torch.randn(4, 8)},
        (6, 8),
        None,
    ),
}


@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("noise", [LowRank(1), Dense()], ids=str)
@pytest.mark.parametrize("own", [True, False], ids=["own", "shared"])
def test_equals_a_loop(name, noise, own):
    torch.manual_seed(0)
    forward, held, shape, lifted = FORWARDS[name]
    model = Does(forward, **held).eval()
    population = PerturbedPopulation(model, MEMBERS, 0.3, noise, antithetic=False)
    x = torch.randn(*([MEMBERS] if own else []), EXAMPLES, *shape)
    dims = (0, 0 if own else None)
    expected = torch.stack([population.materialise(i)(x[i] if own else x) for i in range(MEMBERS)])
    for members in (population, population.stack()):
        bound = bind(model, members, x, in_dims=dims)
        assert_close(bound(x), expected)
        if lifted is None:
            continue
        assert bound.plan.engine in ("factored", "batched")
        said = {note.partition(" has no form")[0] for note in bound.plan.notes}
        assert said <= lifted
        assert bool(said) == bool(lifted)


def test_the_plan_says_what_is_built_and_counts_it():
    model = Does(lambda m, x: x * m.scale.exp(), scale=torch.randn(1 << 20)).eval()
    population = PerturbedPopulation(model, 4, 0.3)
    found = plan(model, population, torch.randn(2, 1 << 20), engine="factored")
    (note,) = found.notes
    assert note == (
        "aten.exp.default has no form of its own for scale (4,194,304 bytes a member): "
        "its values are built."
    )
    assert found.needed >= found.tiles.members * (4 << 20)


@pytest.mark.parametrize("examples", [1, 3])
def test_what_is_returned_is_the_callers_own(examples):
    model = Does(
        lambda m, x: (m.token.expand(x.shape[0], -1), (m.token * 2).expand(x.shape[0], -1), x + 1),
        token=torch.randn(1, 4),
    ).eval()
    population = PerturbedPopulation(model, MEMBERS, 0.3, antithetic=False)
    x = torch.randn(MEMBERS, examples, 4)
    for members in (population, population.stack()):
        bound = bind(model, members, x, in_dims=(0, 0))
        first = bound(x)
        copies = [value.clone() for value in first]
        for value in first:
            value.zero_()
        for again, copy in zip(bound(x), copies, strict=True):
            assert torch.equal(again, copy)


@pytest.mark.parametrize("engine", ["auto", "batched"])
def test_members_that_share_everything(engine):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    shared = {n: p.detach().expand(MEMBERS, *p.shape) for n, p in model.named_parameters()}
    members, x = StackedPopulation(shared, {}, model), torch.randn(MEMBERS, EXAMPLES, 4)
    result = bind(model, members, x, in_dims=(0, 0), engine=engine)(x)
    torch.testing.assert_close(result, model(x).detach())
