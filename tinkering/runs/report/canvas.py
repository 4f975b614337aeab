"""What all pictures share: their look, the thinning of long lines, and PNG."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8
from matplotlib.axes import Axes

# Not pyplot, which would choose a backend for the whole process.
from matplotlib.figure import Figure
from matplotlib.image import imsave

# Okabe and Ito's colours, which most colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
DASHES = ("solid", (0, (5, 2)), (0, (1, 2)), (0, (6, 2, 1, 2)))
MOST_POINTS = 500
"""Points of a line, at most: more than that a picture of this size cannot show."""
_DPI = 150


@dataclass(frozen=True)
class Stroke:
    """How the line of one run looks in all pictures."""

    colour: str
    dashes: str | tuple[int, tuple[int, ...]]


def stroke(index: int) -> Stroke:
    """Return the look of the line of run number `index`: colours first, then dashes.

    Example:
        >>> stroke(0), stroke(7).colour, stroke(7).dashes
        (Stroke(colour='#0072b2', dashes='solid'), '#0072b2', (0, (5, 2)))
    """
    dashes = DASHES[index // len(COLOURS) % len(DASHES)]
    return Stroke(COLOURS[index % len(COLOURS)], dashes)


def new_figure(width: int | float, height: int | float) -> Figure:
    """Return an empty figure of this size in inches."""
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def tidy(axes: Axes) -> None:
    """Give axes the look of all: a light grid, no frame on two sides."""
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG."""
    picture = io.BytesIO()
    with warnings.catch_warnings():
        # A name may have letters that the font lacks; the page's text still shows them.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def image_png(pixels: UInt8[np.ndarray, "height width"]) -> bytes:
    """Return a grey image as a PNG, a pixel for a pixel, dark strokes on white."""
    picture = io.BytesIO()
    imsave(picture, 255 - pixels, cmap="gray", vmin=0, vmax=255, format="png")
    return picture.getvalue()


def stride_of(generations: int) -> int:
    """Return how many generations one point of a line stands for.

    Example:
        >>> stride_of(500), stride_of(501), stride_of(10_000)
        (1, 2, 20)
    """
    return max(math.ceil(generations / MOST_POINTS), 1)


def thin(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " points"]:
    """Return averages of neighbours, at most `MOST_POINTS` of them; NaN where all are NaN.

    Example:
        >>> thin(np.arange(4.0)), len(thin(np.arange(10_001.0)))
        (array([0., 1., 2., 3.]), 477)
    """
    stride = stride_of(len(values))
    if stride == 1:
        return values
    points = math.ceil(len(values) / stride)
    padded = np.full(points * stride, np.nan)
    padded[: len(values)] = values
    rows = padded.reshape(points, stride)
    known = np.isfinite(rows)
    total = np.where(known, rows, 0.0).sum(1)
    return np.where(known.any(1), total / np.maximum(known.sum(1), 1), np.nan)
