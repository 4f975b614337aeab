"""The network of a run: from settings to a module, and back from a run folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tinkering.errors import ArgumentError, RunFolderError
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.runs import folder

FIRST = "conv1.weight"
"""The first layer's weights, some for each channel of the first stage."""


def build(settings: Mapping[str, Any]) -> SimpleResNet:
    """Return the `SimpleResNet` of ``{"blocks": [...], "width": ..., "classes": ...}``."""
    return SimpleResNet(
        BasicBlock, settings["blocks"], num_classes=settings["classes"], width=settings["width"]
    )


def width_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the width of the `SimpleResNet` that has these parameters.

    Raises:
        KeyError: there is none that has.
    """
    return len(tensors[FIRST])


def widths(settings: Mapping[str, Any]) -> list[int]:
    """Return the widths that a run's network has, one after the other.

    Args:
        settings: ``width``, the last, and ``grow_from``, the first, None where it is the last.

    Raises:
        ArgumentError: (a ``ValueError``) doubling the first does not lead to the last.

    Example:
        >>> widths({"width": 64, "grow_from": 16})
        [16, 32, 64]
        >>> widths({"width": 20, "grow_from": 8})
        Traceback (most recent call last):
        tinkering.errors.ArgumentError: grow_from: needed --width of 20 halved once or more: 10 or
        5, got 8.
    """
    last, first = settings["width"], settings["grow_from"]
    if first is None:
        return [last]
    found = [last]
    while found[0] > 1 and found[0] % 2 == 0:
        found.insert(0, found[0] // 2)
    if first not in found[:-1]:
        smaller = " or ".join(map(str, reversed(found[:-1])))
        needed = f"--width of {last} halved once or more: {smaller}"
        if not smaller:
            needed = f"a --width that can be halved, which {last} cannot"
        raise ArgumentError("grow_from", needed, first)
    return found[found.index(first) :]


def count_parameters(blocks: Sequence[int], width: int, classes: int) -> int:
    """Return how many parameters `build` would make: by arithmetic, however many they are.

    Args:
        blocks: of each stage.
        width: channels of the first.
        classes: that the classifier tells apart.

    Example:
        >>> count_parameters((1, 1, 1, 1), width=64, classes=10)
        4902090
        >>> count_parameters((1, 1, 1, 10**9), width=10**6, classes=10) > 10**24
        True
    """
    count = 9 * width + 2 * width  # a convolution of one channel, and its norm
    inputs = width
    for stage, number in enumerate(blocks):
        planes = width << stage
        first = 9 * planes * (inputs + planes) + 4 * planes
        shortcut = planes * (inputs + 2) if stage else 0
        count += first + shortcut + (number - 1) * (18 * planes**2 + 4 * planes)
        inputs = planes
    return count + (inputs + 1) * classes


def initialise(settings: Mapping[str, Any], seed: int) -> nn.Module:
    """Return the network with PyTorch's default initialisation, drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(settings)


def load(run: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a run folder in eval mode, and the folder's settings.

    Raises:
        RunFolderError: a file is missing or cannot be used.
    """
    settings = folder.read_json(run / folder.CONFIG)
    tensors = folder.load_model(run / folder.MODEL)
    described = f"the parameters that {folder.CONFIG} describes"
    try:
        shape = settings["network"]
        if sum(map(abs, shape["blocks"])) > len(tensors):
            raise RunFolderError(run / folder.MODEL, described, f"{len(tensors)} tensors")
        shape = {**shape, "width": _came_to(settings, tensors)}
        # Without memory: a file that was tampered with may describe a network of any size.
        with torch.device("meta"):
            model = build(shape)
        data, pixels = settings["data"], settings["pixels"]
        if not isinstance(data, str) or not _are_usable(pixels["mean"], pixels["std"]):
            raise TypeError("data and pixels")
    except (KeyError, TypeError, ArgumentError, OverflowError, RuntimeError) as error:
        raise RunFolderError(
            run / folder.CONFIG, "the settings of a run", f"no usable {error}"
        ) from error
    for name, value in model.state_dict().items():
        if name in tensors and tensors[name].dtype != value.dtype:
            found = f"{name} in {tensors[name].dtype}"
            raise RunFolderError(run / folder.MODEL, f"{name} in {value.dtype}", found)
    difference = first_difference(model.state_dict(), tensors)
    if difference is not None:
        expected, found = difference
        raise RunFolderError(run / folder.MODEL, f"{described}: {expected}", found, NOT_TOGETHER)
    model.load_state_dict(tensors, assign=True)
    return model.eval(), settings


def _came_to(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """Return how wide a run's network was at its end, which may have come before the last width."""
    last: int = settings["network"]["width"]
    if settings.get("grow_from") is None or FIRST not in tensors:
        return last
    width = width_of(tensors)
    return width if width in widths(settings) else last


NOT_TOGETHER = f"The file and {folder.CONFIG} do not belong together."
"""What to say where a network or a checkpoint is not of the shapes that the settings lead to."""


def first_difference(
    needed: Mapping[str, Tensor], came: Mapping[str, Tensor]
) -> tuple[str, str] | None:
    """Return the first tensor that differs, as it should be and as it is.

    Args:
        needed: tensors by name, of the shapes that they should have; each, and no other, has to
            be there.
        came: those to compare.

    Example:
        >>> first_difference({"bias": torch.zeros(3)}, {"bias": torch.zeros(2)})
        ('bias of shape [3]', 'one of shape [2]')
        >>> first_difference({"bias": torch.zeros(3)}, {"bias": torch.ones(3)}) is None
        True
    """
    for name, value in needed.items():
        if name not in came:
            return f"{name} of shape {list(value.shape)}", "none of that name"
        if came[name].shape != value.shape:
            shapes = list(value.shape), list(came[name].shape)
            return f"{name} of shape {shapes[0]}", f"one of shape {shapes[1]}"
    more = [name for name in came if name not in needed]
    return (f"none called {more[0]!r:.80}", "it") if more else None


def _are_usable(mean: object, std: object) -> bool:
    """Return whether pixels can be normalised with these."""
    return (
        isinstance(mean, int | float)
        and isinstance(std, int | float)
        and math.isfinite(mean)
        and 0 < std < math.inf
    )
