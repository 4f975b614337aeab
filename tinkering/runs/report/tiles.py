"""Small images side by side: wrong predictions, and the filters of the first layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from tinkering.runs.predictions import Predictions
from tinkering.runs.report.canvas import new_figure
from tinkering.runs.report.wording import percent, shortened

_ACROSS = 8
_ENLARGED = 8
MOST_FILTERS = 64


def mistakes(
    predictions: Predictions, names: Sequence[str]
) -> list[tuple[UInt8[np.ndarray, "height width"], str, str, str]]:
    """Return the kept mistakes: the image, what was said, what it is, and how sure that was."""
    rows = []
    for position, image in zip(predictions.mistakes.tolist(), predictions.images, strict=True):
        said, label = predictions.predicted[position], predictions.labels[position]
        sure = percent(float(predictions.confidence[position]), digits=0)
        rows.append((image, names[said], names[label], sure))
    return rows


def draw_mistakes(predictions: Predictions, names: Sequence[str]) -> Figure:
    """Return the kept mistakes in rows of eight, each above what was said of it."""
    rows = mistakes(predictions, names)
    height, width = predictions.images.shape[1:]
    below, gap = max(height // 2, 8), max(width // 6, 1)
    down = -(-len(rows) // _ACROSS)
    canvas = np.full((down * (height + below) + gap, _ACROSS * (width + gap) + gap), 255, np.uint8)
    figure = new_figure(8, 8 * canvas.shape[0] / canvas.shape[1])
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for index, (image, said, label, _) in enumerate(rows):
        row, column = divmod(index, _ACROSS)
        top, left = row * (height + below) + gap, column * (width + gap) + gap
        # Ink on paper: the files have bright strokes on black.
        canvas[top : top + height, left : left + width] = 255 - image
        axes.text(
            left + width / 2,
            top + height + below / 3,
            f"said {shortened(said, 7)}, is {shortened(label, 7)}",
            ha="center",
            va="center",
            fontsize=7.5,
            parse_math=False,
        )
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    return figure


def draw_filters(weight: Float[np.ndarray, "filters channels height width"]) -> Figure:
    """Return filters as tiles on one scale: blue is negative, red positive, white 0."""
    tiles = weight.reshape(-1, *weight.shape[2:]).astype(np.float32)[:MOST_FILTERS]
    # Enlarged, so that the gaps can be narrower than a weight.
    tiles = tiles.repeat(_ENLARGED, 1).repeat(_ENLARGED, 2)
    gap = _ENLARGED // 2
    height, width = (size + gap for size in tiles.shape[1:])
    across = min(len(tiles), _ACROSS)
    down = -(-len(tiles) // across)
    canvas = np.full((down * height - gap, across * width - gap), np.nan, np.float32)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, across)
        top, left = row * height, column * width
        canvas[top : top + len(tile), left : left + tile.shape[1]] = tile
    figure = new_figure(6.4, max(6.4 * canvas.shape[0] / canvas.shape[1] * 0.9, 1.2))
    axes = figure.subplots()
    axes.set_axis_off()
    most = float(np.abs(tiles).max()) or 1.0
    shown = axes.imshow(canvas, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    scale = figure.colorbar(shown, ax=axes, shrink=0.9, aspect=12 * down, pad=0.02)
    scale.outline.set_visible(False)
    return figure
