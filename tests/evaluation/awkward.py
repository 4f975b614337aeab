"""Modules that a graph, a copy or a tile can go wrong on, and those that no evaluation takes."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

CLASSES = 5


class Net(nn.Module):
    """Some layers, parameters and buffers, and a forward of ``(net, x)``."""

    def __init__(self, forward, buffers=(), **held):
        super().__init__()
        self.given = forward
        for name, value in held.items():
            setattr(self, name, value)
        for name, value in dict(buffers).items():
            self.register_buffer(name, value)

    def forward(self, x):
        return self.given(self, x)


def rows(outputs=CLASSES, inputs=4):
    return nn.Linear(inputs, outputs)


def parameter(*shape):
    return nn.Parameter(torch.randn(*shape) / 2)


def undecided(x):
    """Return `x` in a way that no graph can hold: Python looks at a number."""
    return x if x.sum() > -1e9 else -x


def add_one(x):
    x += 1
    return x


def view_added_to(m, x):
    h = m.conv(x)
    v = h.flatten(1)
    v += 1
    return h.sum((2, 3))


def rectified_view(m, x):
    h = m.conv(x)
    return m.last(m.relu(h.view(len(h), -1)))


def part_written(m, x):
    h = m.conv(x)
    h[:, 0] = 0.5
    one, two = h.chunk(2, 1)
    two.mul_(2)
    return torch.cat([one, two], 1).mean((2, 3))


def strided_copy(m, x):
    h = m.first(x)
    h.add_(1)
    h = h.view(-1, 2, 3).transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return m.last(h.as_strided((x.shape[0], 6), (6, 1)))


def complex_copy(m, x):
    h = m.first(x)
    h.add_(1)
    h = h.view(-1, 2, 3).transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return m.last(torch.view_as_complex(h).abs())


def positive(m, x):
    x = x.exp()
    if not torch.compiler.is_exporting() and x.min() < 0:
        raise ValueError("negative")
    return m.a(x)


def written_after_it_was_read(m, x):
    h = m.first(x)
    kept = m.second(h)
    h.mul_(0)
    return kept + h.sum(1, keepdim=True)


def without_gradients(m, x):
    with torch.no_grad():
        h = m.first(x)
    return m.second(torch.tanh(h))


def remembered(m, x):
    """An attribute that depends on nothing but this call's inputs is no state."""
    m.last_seen = m.first(x)
    return m.second(torch.tanh(m.last_seen))


def two_ways(threshold):
    return lambda m, x: m.first(x) if len(x) > threshold else m.second(x)


def tied():
    net = Net(lambda m, x: m.second(torch.tanh(m.first(x))), first=rows(4), second=rows(4))
    net.second.weight = net.first.weight
    return net


def hooked():
    net = nn.Sequential(rows(4), nn.Tanh(), rows())
    net[0].register_forward_hook(lambda _, given, result: result * 3 + given[0])
    net.register_forward_pre_hook(lambda _, given: (given[0] + 1,))
    return net


def in_train_mode_of_no_consequence():
    return nn.Sequential(rows(), nn.Dropout(0.0)).train()


def kernels_of_a_parameter():
    return Net(
        lambda m, x: F.conv2d(x, m.conv(m.kernel)).mean((2, 3)),
        conv=nn.Conv2d(1, 1, 3, padding=1),
        kernel=parameter(CLASSES, 1, 3, 3),
    )


def normed_parameter(norm):
    return lambda m, x: x @ norm(m, m.e).T


FEATURES, IMAGE = (4,), (1, 4, 4)
TAKEN = {
    "tied": (tied, FEATURES),
    "hooks": (hooked, FEATURES),
    "train mode": (in_train_mode_of_no_consequence, FEATURES),
    # in place, and views
    "input added to": (lambda: Net(lambda m, x: m.a(add_one(x)), a=rows()), FEATURES),
    "input added to, no graph": (
        lambda: Net(lambda m, x: m.a(add_one(undecided(x))), a=rows()),
        FEATURES,
    ),
    "view added to": (lambda: Net(view_added_to, conv=nn.Conv2d(1, CLASSES, 3)), IMAGE),
    "view rectified in place": (
        lambda: Net(
            rectified_view, conv=nn.Conv2d(1, 3, 3), relu=nn.ReLU(inplace=True), last=rows(5, 12)
        ),
        IMAGE,
    ),
    "parts written": (lambda: Net(part_written, conv=nn.Conv2d(1, 6, 3)), IMAGE),
    "written after it was read": (
        lambda: Net(written_after_it_was_read, first=rows(4), second=rows()),
        FEATURES,
    ),
    "strided after a copy": (lambda: Net(strided_copy, first=rows(6), last=rows(5, 6)), FEATURES),
    "complex in between": (lambda: Net(complex_copy, first=rows(6), last=rows(5, 3)), FEATURES),
    "vmap in between": (
        lambda: Net(lambda m, x: m.a(torch.vmap(lambda row: row * 2)(x)), a=rows()),
        FEATURES,
    ),
    "strided": (
        lambda: Net(
            lambda m, x: m.last(m.conv(x).as_strided((x.shape[0], 4), (8, 2))),
            conv=nn.Conv2d(1, 2, 3),
            last=rows(),
        ),
        IMAGE,
    ),
    # axes that come and go
    "squeeze": (lambda: Net(lambda m, x: m.a(x).squeeze(), a=rows(1)), FEATURES),
    "squeeze in between": (
        lambda: Net(lambda m, x: m.b(m.a(x).squeeze()[..., None]), a=rows(1), b=rows(5, 1)),
        FEATURES,
    ),
    "squeeze of the images": (lambda: Net(lambda m, x: m.a(x).squeeze(0), a=rows()), FEATURES),
    "squeeze, no graph": (
        lambda: Net(lambda m, x: m.a(undecided(x)).squeeze(), a=rows(1)),
        FEATURES,
    ),
    # other ways for other batches
    "one image or more": (lambda: Net(two_ways(1), first=rows(), second=rows()), FEATURES),
    "two images or more": (lambda: Net(two_ways(2), first=rows(), second=rows()), FEATURES),
    "sum of the batch": (lambda: Net(lambda m, x: m.a(x - x.mean(0) / 2), a=rows()), FEATURES),
    "image two places away": (lambda: Net(lambda m, x: m.a(x).roll(2, 0), a=rows()), FEATURES),
    "number of images": (
        lambda: Net(lambda m, x: m.a(x) * (1 + x.shape[0] // 3), a=rows()),
        FEATURES,
    ),
    "place among images": (
        lambda: Net(
            lambda m, x: m.a(x) + torch.arange(x.shape[0])[:, None].clamp(min=1) / 4, a=rows()
        ),
        FEATURES,
    ),
    "memory by number of images": (
        lambda: Net(lambda m, x: m.a(x) * m.kept.setdefault(len(x), 2.0), a=rows(), kept={}),
        FEATURES,
    ),
    # numbers that a module does not take
    "positive numbers": (lambda: Net(positive, a=rows()), FEATURES),
    "logarithms": (lambda: Net(lambda m, x: m.a(x.square().add(0.1).log()), a=rows()), FEATURES),
    # parameters of parameters
    "layer of a parameter": (
        lambda: Net(lambda m, x: x @ m.p(m.e).T, p=rows(4), e=parameter(CLASSES, 4)),
        FEATURES,
    ),
    "convolution of a parameter": (kernels_of_a_parameter, IMAGE),
    "norm of a parameter": (
        lambda: Net(normed_parameter(lambda m, e: m.n(e)), n=nn.LayerNorm(4), e=parameter(5, 4)),
        FEATURES,
    ),
    "batch norm of a parameter": (
        lambda: Net(normed_parameter(lambda m, e: m.n(e)), n=nn.BatchNorm1d(4), e=parameter(5, 4)),
        FEATURES,
    ),
    "statistics that are parameters": (
        lambda: Net(
            lambda m, x: F.batch_norm(m.a(x), m.mean, m.variance.exp()),
            a=rows(),
            mean=parameter(CLASSES),
            variance=parameter(CLASSES),
        ),
        FEATURES,
    ),
    "mean that is a parameter": (
        lambda: Net(
            lambda m, x: F.batch_norm(m.a(x), m.mean, m.variance),
            {"variance": torch.rand(CLASSES) + 0.5},
            a=rows(),
            mean=parameter(CLASSES),
        ),
        FEATURES,
    ),
    "images as weights": (
        lambda: Net(lambda m, x: F.linear(m.w, x).T, w=parameter(5, 4)),
        FEATURES,
    ),
    # buffers, constants, attributes
    "buffers": (
        lambda: Net(
            lambda m, x: m.a(x * m.mask) + m.offset,
            {"mask": torch.tensor([1.0, 0, 1, 1]), "offset": torch.randn(CLASSES)},
            a=rows(),
        ),
        FEATURES,
    ),
    "modules in a list": (
        lambda: Net(lambda m, x: m.a(m.others[0](x)), a=rows(), others=[rows(4)]),
        FEATURES,
    ),
    "a number of many digits": (
        lambda: Net(
            lambda m, x: m.a(x) + (m.large - 1e9).float(),
            {"large": torch.tensor(1e9 + 0.5, dtype=torch.float64)},
            a=rows(),
        ),
        FEATURES,
    ),
    "sparse": (
        lambda: Net(
            lambda m, x: m.a(torch.sparse.mm(m.eye, x.T).T),
            {"eye": torch.eye(4).to_sparse()},
            a=rows(),
        ),
        FEATURES,
    ),
    "constants": (
        lambda: Net(
            lambda m, x: m.a(x * m.scale) + torch.tensor([1.0, 2, 3, 4, 5]),
            a=rows(),
            scale=torch.tensor(2.0),
        ),
        FEATURES,
    ),
    "history": (
        lambda: Net(lambda m, x: m.a(x * m.scale), a=rows(), scale=parameter(1) * 2 + 3),
        FEATURES,
    ),
    "remembered": (lambda: Net(remembered, first=rows(4), second=rows()), FEATURES),
    "without gradients": (lambda: Net(without_gradients, first=rows(4), second=rows()), FEATURES),
    # parametrisations
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(rows(4)), nn.Tanh(), rows()),
        FEATURES,
    ),
    "spectral norm": (
        lambda: nn.Sequential(parametrizations.spectral_norm(rows(4)), nn.Tanh(), rows()),
        FEATURES,
    ),
    "orthogonal": (lambda: nn.Sequential(parametrizations.orthogonal(rows(4)), rows()), FEATURES),
    # kinds of parameters
    "renormalised table": (
        lambda: Net(
            lambda m, x: m.a(m.table(x.abs().mul(2).long().clamp(max=6)).mean(1)),
            table=nn.Embedding(7, 4, max_norm=0.5),
            a=rows(),
        ),
        FEATURES,
    ),
    "no numbers": (
        lambda: Net(lambda m, x: m.a(x) + m.none.sum(), a=rows(), none=parameter(0, 3)),
        FEATURES,
    ),
    "rectifier with a slope": (lambda: nn.Sequential(rows(), nn.RReLU()), FEATURES),
}
"""A module that is evaluated, in eval mode but for those of the first group, and its input."""


def with_old_weight_norm():
    with torch.no_grad():
        return nn.Sequential(weight_norm(rows(4)), nn.Tanh(), rows())


def assigned(m, x):
    m.h = m.h * 0.5 + m.a(x).mean()
    return m.a(x) + m.h


def moved(m, x):
    m.h.mul_(0.5).add_(1)
    return m.a(x) + m.h


def counted(m, x):
    m.calls += 1
    return m.a(x) * m.calls


def listed(m, x):
    m.seen.append(len(x))
    return m.a(x)


def delayed(m, x):
    """What is kept after a call is that call's alone, and yet the next one reads it."""
    before, m.h = m.h, m.a(x)
    return m.a(x) + before.mean()


H = torch.zeros(())
REFUSED = {
    "attribute": (lambda: Net(assigned, a=rows(), h=H.clone()), "'h'"),
    "buffer": (lambda: Net(assigned, {"h": H.clone()}, a=rows()), "'h'"),
    "buffer in place": (lambda: Net(moved, {"h": H.clone()}, a=rows()), "'h'"),
    "attribute in place": (lambda: Net(moved, a=rows(), h=H.clone()), "'h'"),
    "number": (lambda: Net(counted, a=rows(), calls=0), "'calls'"),
    "list": (lambda: Net(listed, a=rows(), seen=[]), "'seen'"),
    "delay": (lambda: Net(delayed, a=rows(), h=H.clone()), "what it returns the next time"),
    "no graph": (
        lambda: Net(lambda m, x: assigned(m, undecided(x)), a=rows(), h=H.clone()),
        "'h'",
    ),
    "inside": (lambda: nn.Sequential(Net(counted, a=rows(4), calls=0), rows()), "'0.calls'"),
    "spectral norm": (
        lambda: nn.Sequential(parametrizations.spectral_norm(rows()).train()),
        "'0.parametrizations.weight.0._u'",
    ),
}
"""A module whose forward changes it, and what it is said to change."""
