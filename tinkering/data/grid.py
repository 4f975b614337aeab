"""A picture of a data set: a grid of its images, each with the name of its class."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from tinkering.data.dataset import Dataset
from tinkering.errors import ArgumentError, DataError

_COLUMNS = 10
# A picture may be 65,536 pixels high, and 2,000 digits take 16,800.
_MOST = 2000


def save_grid(
    dataset: Dataset,
    path: str | Path,
    *,
    half: str = "train",
    count: int = 100,
    seed: int = 0,
) -> Path:
    """Write a PNG of some images, ten a row, sorted by class, and return its path.

    Args:
        dataset: where the images come from.
        path: where the picture goes.
        half: ``"train"`` or ``"test"``.
        count: how many images, at most 2000, each class with its share; all of them,
            where there are fewer.
        seed: decides which images.

    Raises:
        ArgumentError: (a ``ValueError``) `half`, `count` or `seed` is out of range.
        DataError: nothing can be written at `path`.
    """
    if half not in ("train", "test"):
        raise ArgumentError("half", "train or test", repr(half))
    if not 1 <= count <= _MOST:
        raise ArgumentError("count", f"an integer from 1 to {_MOST}", count)
    count = min(count, len(getattr(dataset, half)))
    split = getattr(dataset.subset(**{half: count}, seed=seed), half)
    order = torch.argsort(split.y, stable=True)
    captions = [dataset.classes[label] for label in split.y[order].tolist()]
    picture = _draw(split.pixels[order].numpy(), captions)
    try:
        Path(path).write_bytes(picture)
    except OSError as fault:
        raise DataError(path, "a place for the picture", str(fault)) from fault
    return Path(path)


def _draw(images: UInt8[np.ndarray, "n height width"], captions: list[str]) -> bytes:
    """Return a PNG of the images, ten a row, each below its caption."""
    # Imported here, since most uses of this package draw nothing; and not pyplot, which
    # would choose a backend for the whole process.
    from matplotlib.figure import Figure

    height, width = images.shape[1:]
    above, gap = max(height // 2, 8), max(width // 7, 1)
    rows = -(-len(images) // _COLUMNS)
    step = (above + height, width + gap)
    canvas = np.full((rows * step[0] + gap, _COLUMNS * step[1] + gap), 255, dtype=np.uint8)
    # Two pixels of the picture for each of an image.
    figure = Figure(figsize=(canvas.shape[1] / 50, canvas.shape[0] / 50), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, _COLUMNS)
        top, left = row * step[0] + above, column * step[1] + gap
        # Ink on paper: the files have bright strokes on black.
        canvas[top : top + height, left : left + width] = 255 - image
        axes.text(
            left + width / 2,
            top - above / 2,
            caption,
            ha="center",
            va="center",
            fontsize=9,
            color="tab:blue",
            parse_math=False,
        )
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
