"""A wide network that computes what a narrow one does, from its numbers alone.

Chen, Goodfellow and Shlens 2015, "Net2Net: Accelerating Learning via Knowledge Transfer" (arXiv
1511.05641), Net2WiderNet: every channel is there twice, and what read it reads a share of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tinkering.errors import ArgumentError
from tinkering.noise import Stream

_SPREAD = 0.5
"""Standard deviation of a share, whose mean is a half: then the weights of twice as many inputs
have the same sum of squares, as those of a network that begins wide."""


def widened(
    narrow: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], stream: Stream
) -> dict[str, Tensor]:
    """Return parameters and buffers with which a network of twice the channels computes the same.

    It does where channels are met by nothing but convolutions and linear layers that read all of
    them, norms and functions of each on its own, pooling, flattening and sums. Copies stand
    behind all originals.

    Args:
        narrow: tensors by name: weights ``[outputs, inputs, ...]``, and whatever has a number for
            each output, ``[outputs]``.
        shapes: those of the wide network, by name: as many outputs and inputs, or twice as many.
        stream: decides the shares. They differ, as copies that were read alike would stay alike
            whatever gradient they follow.

    Raises:
        ArgumentError: (a ``ValueError``) names differ, or a shape is another.

    Example:
        >>> from torch import nn
        >>> narrow, wide = (nn.Sequential(nn.Linear(3, n), nn.Linear(n, 2)) for n in (4, 8))
        >>> shapes = {name: value.shape for name, value in wide.state_dict().items()}
        >>> wide.load_state_dict(widened(narrow.state_dict(), shapes, Stream(0, 0)))
        <All keys matched successfully>
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(wide(x), narrow(x), atol=1e-6)
        True
    """
    if narrow.keys() != shapes.keys():
        first = min(narrow.keys() ^ shapes.keys())
        here, there = (repr(first), "none") if first in narrow else ("none", repr(first))
        raise ArgumentError("shapes", f"the names of the tensors, with {here}", there)
    return {name: _widened(name, value, shapes[name], stream) for name, value in narrow.items()}


def require_wider(narrow: Mapping[str, Sequence[int]], shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse shapes that parameters of others cannot be widened to.

    Args:
        narrow: shapes of what is there, by name.
        shapes: those after it, by name; there may be more.

    Raises:
        ArgumentError: (a ``ValueError``) one is missing, or another than `widened` makes.
    """
    for name, shape in narrow.items():
        if name not in shapes:
            raise ArgumentError("shapes", f"one for {name!r}, as for every parameter", "none")
        _times(name, shape, shapes[name])


def _times(name: str, narrow: Sequence[int], shape: Sequence[int]) -> list[int]:
    """Return how often a tensor is repeated along each axis."""
    before = list(narrow)
    times = [after // length for length, after in zip(before, shape, strict=False)]
    # Outputs and inputs, then a kernel, which stays as it is.
    most = [2, 2, *(1 for _ in before[2:])]
    as_needed = len(before) == len(shape) and all(
        1 <= factor <= limit and factor * length == after
        for factor, limit, length, after in zip(times, most, before, shape, strict=False)
    )
    if not as_needed:
        needed = f"{before}, or twice as many outputs or inputs, for {name!r}"
        raise ArgumentError("shapes", needed, list(shape))
    return times


def _widened(name: str, value: Tensor, shape: Sequence[int], stream: Stream) -> Tensor:
    times = _times(name, value.shape, shape)
    wide = value.repeat(times)
    if times[1:2] != [2]:
        return wide
    copied, copies = wide.chunk(2, 1)
    drawn = stream.normals(f"{name}, shares", range(1), copied.numel()).view(copied.shape)
    shares = (0.5 + _SPREAD * drawn).to(wide)
    return torch.cat([copied * shares, copies * (1 - shares)], 1)
