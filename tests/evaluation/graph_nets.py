"""Networks whose operations fuse in a known way, or must not."""

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """Some layers, and a forward of ``(net, images)``."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.given = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.given(self, x)


def conv(inputs=3, outputs=4, kernel=3, **changes):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **changes)


def norm(channels=4, **changes):
    return nn.BatchNorm2d(channels, **changes)


def row(layer, inputs=3):
    return nn.Linear(inputs, layer)


def in_place_branch(m, x):
    """A shortcut that is computed before its input is overwritten, and added after that."""
    x = m.first(x)
    shortcut = m.shortcut(x)
    return m.conv(F.relu(x, inplace=True)) + shortcut


def written_through_a_view(m, x):
    y = m.conv(x)
    y[:, :2].relu_()
    return m.last(y)


def residual_overwritten_before_relu(m, x):
    """What is added is written to between the addition and the rectifier."""
    y = torch.tanh(x)
    z = m.conv(x) + y
    y.mul_(0)
    return F.relu(z) + y


def used_again_after_addition(m, x):
    y = F.relu(m.first(x))
    z = m.conv(y) + y
    return m.last(z) + y


def two_branches_of_one_residual(m, x):
    y = m.first(x)
    return (m.conv(y) + y) * (m.last(y) + y)


def view_of_a_residual(m, x):
    y = m.first(x)
    flat = y.flatten(1)
    z = m.conv(y) + y
    return z.flatten(1) * flat


def output_in_between(m, x):
    y = m.conv(x)
    F.relu(y)
    return y


def shuffled_halves(m, x):
    """Layers on parts of a tensor's channels."""
    one, two = m.conv(x).chunk(2, 1)
    return m.last(one) + m.other(two)


FUSES = {
    "conv bn relu": (Net(lambda m, x: F.relu(m.bn(m.conv(x))), conv=conv(), bn=norm()), "CNR"),
    "conv relu": (Net(lambda m, x: m.conv(x).relu(), conv=conv()), "CR"),
    "conv bn and other functions": (
        Net(
            lambda m, x: F.gelu(m.linear(F.silu(m.bn(F.relu6(m.conv(x)))).mean((2, 3)))),
            conv=conv(),
            bn=norm(),
            linear=nn.Linear(4, 5),
        ),
        "Cclamp Nsilu mean Lgelu",
    ),
    "conv add and other functions": (
        Net(
            lambda m, x: F.gelu(m.last(F.hardswish(m.conv(x) + torch.tanh(x))), approximate="tanh"),
            conv=conv(outputs=3),
            last=conv(3),
        ),
        "tanh CAhardswish Cgelu_tanh",
    ),
    "conv bn add relu": (
        Net(
            lambda m, x: F.relu(m.bn(m.conv(x)) + torch.tanh(x)),
            conv=conv(outputs=3),
            bn=norm(3),
        ),
        "tanh CNAR",
    ),
    "add from the other side, in place": (
        Net(
            lambda m, x: m.bn(m.conv(y := m.first(x))).add_(y).relu_(),
            first=conv(outputs=4),
            conv=conv(4),
            bn=norm(),
        ),
        "C CNAR",
    ),
    "residual block": (
        Net(
            lambda m, x: F.relu(m.n2(m.c2(F.relu(m.n1(m.c1(x))))) + m.n3(m.c3(x))),
            c1=conv(bias=False),
            n1=norm(),
            c2=conv(4, bias=False),
            n2=norm(),
            c3=conv(kernel=1),
            n3=norm(affine=False),
        ),
        "CNR CN CNAR",
    ),
    "two convolutions added": (
        Net(lambda m, x: m.c1(x) + m.c2(x), c1=conv(), c2=conv(kernel=1)),
        "C CA",
    ),
    "linear bn": (
        Net(
            lambda m, x: F.relu(m.bn(m.linear(x.mean((2, 3))))),
            linear=row(5),
            bn=nn.BatchNorm1d(5),
        ),
        "mean LNR",
    ),
    "linear linear add": (
        Net(lambda m, x: m.l1(x.flatten(2).mT) + m.l2(x.flatten(2).mT), l1=row(4), l2=row(4)),
        "flatten m_t flatten m_t L LA",
    ),
    "pre-activation": (
        Net(
            lambda m, x: x + m.conv(F.relu(m.bn(x))),
            bn=norm(3),
            conv=conv(outputs=3),
        ),
        "NR C add",
    ),
    "dilated, grouped, along a line": (
        Net(
            lambda m, x: F.relu(m.bn(m.conv(x.flatten(2)))),
            conv=nn.Conv1d(3, 6, 3, stride=2, dilation=2, groups=3),
            bn=nn.BatchNorm1d(6),
        ),
        "flatten CNR",
    ),
}
"""The network, and its steps: layer (C, L or N), then Norm, Addition and Rectifier."""

FUSES_NOT = {
    "result used twice": (
        Net(lambda m, x: F.relu(y := m.conv(x)) * y, conv=conv()),
        "C relu mul",
    ),
    "norm's result used twice": (
        Net(lambda m, x: F.relu(y := m.bn(m.conv(x))) * y, conv=conv(), bn=norm()),
        "CN relu mul",
    ),
    "relu before addition": (
        Net(lambda m, x: F.relu(m.conv(x)) + torch.tanh(x), conv=conv(outputs=3)),
        "CR tanh add",
    ),
    "addition with alpha": (
        Net(lambda m, x: torch.add(m.conv(x), torch.tanh(x), alpha=2), conv=conv(outputs=3)),
        "C tanh add",
    ),
    "what is added is broadcast": (
        Net(
            lambda m, x: m.conv(x) + m.last(x).mean((2, 3), keepdim=True), conv=conv(), last=conv()
        ),
        "C C mean add",
    ),
    "result is broadcast": (
        Net(
            lambda m, x: m.conv(x.mean((2, 3), keepdim=True)) + m.last(x), conv=conv(), last=conv()
        ),
        "mean C C add",
    ),
    "added to itself": (Net(lambda m, x: (y := m.conv(x)) + y, conv=conv()), "C add"),
    "a number is added": (Net(lambda m, x: F.relu(m.conv(x) + 1.5), conv=conv()), "C add relu"),
    "weight computed in the forward": (
        Net(lambda m, x: F.relu(F.conv2d(x, m.conv.weight.abs())), conv=conv()),
        "abs conv2d relu",
    ),
    "norm over tokens": (
        Net(lambda m, x: m.bn(m.linear(x.mean(3))), linear=row(5, 6), bn=nn.BatchNorm1d(3)),
        "mean L N",
    ),
    "norm over another thing": (
        Net(lambda m, x: F.relu(m.bn(torch.exp(m.conv(x)))), conv=conv(), bn=norm()),
        "C exp NR",
    ),
    "output in between": (Net(output_in_between, conv=conv()), "C"),
    "sum that others read": (
        Net(used_again_after_addition, first=conv(), conv=conv(4), last=conv(4)),
        "CR CA CA",
    ),
    "one residual, two readers": (
        Net(two_branches_of_one_residual, first=conv(), conv=conv(4), last=conv(4)),
        "C CA CA mul",
    ),
    "residual seen through a view": (
        Net(view_of_a_residual, first=conv(), conv=conv(4)),
        "C flatten CA flatten mul",
    ),
    "input overwritten in between": (
        Net(in_place_branch, first=conv(), shortcut=conv(4), conv=conv(4)),
        "C relu C CA",
    ),
    "residual overwritten in between": (
        Net(residual_overwritten_before_relu, conv=conv(outputs=3)),
        "tanh mul CAR add",
    ),
    "written through a view": (
        Net(written_through_a_view, conv=conv(), last=conv(4)),
        "C slice slice relu slice slice_scatter slice_scatter C",
    ),
    "images overwritten": (Net(lambda m, x: m.conv(x.mul_(2)), conv=conv()), "mul C"),
    "parts of the channels": (
        Net(shuffled_halves, conv=conv(outputs=8), last=conv(4, 5), other=conv(4, 5)),
        "C chunk getitem getitem C CA",
    ),
    "in place on what others read": (
        Net(
            lambda m, x: F.relu(y := m.first(x)).add(y.add_(m.conv(y))),
            first=conv(),
            conv=conv(4),
        ),
        "C relu CA add",
    ),
}
"""Likewise, where something must stay apart."""


def residual():
    """Two blocks with norms, of which the first changes the channels."""

    def forward(m, x):
        y = F.relu(m.n1(m.c1(x)))
        y = F.relu(m.n2(m.c2(y)) + m.n3(m.c3(x)))
        y = F.relu(m.n5(m.c5(F.relu(m.n4(m.c4(y))))) + y)
        return m.last(y.mean((2, 3)))

    convs = {f"c{i}": conv(4, 4, bias=False) for i in (2, 4, 5)}
    convs |= {"c1": conv(2, 4), "c3": conv(2, 4, kernel=1, bias=False)}
    return Net(forward, **convs, **{f"n{i}": norm(4) for i in range(1, 6)}, last=nn.Linear(4, 5))


residual.shape = (2, 4, 4)
