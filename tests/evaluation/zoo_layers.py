"""Layers and operations that meet parameters: PyTorch's own, and what people write by hand."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from zoo import LENGTH, WIDE, WORDS, Entry


class By(nn.Module):
    """Layers and parameters by name, and a forward of ``(self, x)``."""

    def __init__(self, forward, **held):
        super().__init__()
        for name, value in held.items():
            module = isinstance(value, nn.Module)
            setattr(self, name, value if module else nn.Parameter(value))
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def by(forward, **shapes):
    """Return what builds a network with parameters of these shapes."""
    return lambda: By(forward, **{name: torch.randn(shape) for name, shape in shapes.items()})


def between(layer, outputs=6):
    """Return what builds a layer of six inputs between two linear ones."""
    return lambda: nn.Sequential(nn.Linear(5, 6), layer(), nn.Tanh(), nn.Linear(outputs, 2))


def convolutions(*layers):
    return lambda: nn.Sequential(nn.Conv2d(3, 6, 3, stride=4), *(layer() for layer in layers))


def attention(**settings):
    return nn.MultiheadAttention(WIDE, 2, **settings)


def time_first(m, x):
    x = x.transpose(0, 1)
    return m.attend(x, x, x, need_weights=False)[0].transpose(0, 1)


def unit(x):
    return F.normalize(x, dim=-1)


def with_token(m, x):
    return torch.cat([x, m.token.expand(x.shape[0], -1, -1)], 1)


LAYERS = {
    "nn.PReLU": Entry("rows", between(lambda: nn.PReLU(6))),
    "nn.RMSNorm": Entry("rows", between(lambda: nn.RMSNorm(6))),
    "nn.GLU": Entry("rows", between(nn.GLU, 3)),
    "nn.Bilinear": Entry("rows, rows", lambda: nn.Bilinear(5, 5, 3)),
    "nn.EmbeddingBag": Entry("words", lambda: nn.EmbeddingBag(WORDS, WIDE)),
    "nn.InstanceNorm2d": Entry("images", convolutions(lambda: nn.InstanceNorm2d(6, affine=True))),
    "nn.ConvTranspose2d": Entry("images", convolutions(lambda: nn.ConvTranspose2d(6, 4, 3, 2, 1))),
    "nn.Conv2d, padding='same'": Entry(
        "images", convolutions(lambda: nn.Conv2d(6, 4, 4, padding="same"))
    ),
    "nn.Conv2d, padding_mode='circular'": Entry(
        "images", convolutions(lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"))
    ),
    "nn.Conv2d, groups": Entry(
        "images",
        convolutions(lambda: nn.Conv2d(6, 4, 3, groups=2), lambda: nn.Conv2d(4, 8, 3, groups=4)),
    ),
    "weight_norm(nn.Linear)": Entry(
        "rows", between(lambda: parametrizations.weight_norm(nn.Linear(6, 6)))
    ),
    "spectral_norm(nn.Linear)": Entry(
        "rows", between(lambda: parametrizations.spectral_norm(nn.Linear(6, 6)))
    ),
    "nn.MultiheadAttention": Entry(
        "tokens",
        lambda: By(
            lambda m, x: m.attend(x, x, x, need_weights=False)[0],
            attend=attention(batch_first=True),
        ),
    ),
    "nn.MultiheadAttention, its weights": Entry(
        "tokens", lambda: By(lambda m, x: m.attend(x, x, x), attend=attention(batch_first=True))
    ),
    "nn.MultiheadAttention, time first": Entry(
        "tokens", lambda: By(time_first, attend=attention())
    ),
    "`x @ w + b`": Entry("rows", by(lambda m, x: x @ m.w + m.b, w=(5, 3), b=(3,))),
    "`x @ w`": Entry("pairs of rows", by(lambda m, x: x @ m.w, w=(5, 3))),
    "`x @ (a + b)`": Entry("rows", by(lambda m, x: x @ (m.a + m.b), a=(5, 3), b=(5, 3))),
    "`einsum('bi,ij->bj', x, w)`": Entry(
        "rows", by(lambda m, x: torch.einsum("bi,ij->bj", x, m.w), w=(5, 3))
    ),
    "`linear(x, w + a @ b)`": Entry(
        "rows", by(lambda m, x: F.linear(x, m.w + m.a @ m.b), w=(6, 5), a=(6, 2), b=(2, 5))
    ),
    "`x * scale.exp()`": Entry("rows", by(lambda m, x: x * m.scale.exp(), scale=(5,))),
    "`x + positions[arange]`": Entry(
        "tokens",
        by(lambda m, x: x + m.positions[torch.arange(LENGTH)], positions=(2 * LENGTH, WIDE)),
    ),
    "`cat([x, token.expand(...)])`": Entry("tokens", by(with_token, token=(1, 1, WIDE))),
    "`linear(normalize(x), normalize(w))`": Entry(
        "rows", by(lambda m, x: F.linear(unit(x), unit(m.w)), w=(3, 5))
    ),
    "`exp(-(x - centres) ** 2)`": Entry(
        "rows", by(lambda m, x: torch.exp(-((x[:, None] - m.centres) ** 2).sum(-1)), centres=(3, 5))
    ),
}
"""By the name that the second table of docs/modules.md has."""
