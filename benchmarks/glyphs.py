"""A data set that no setting was chosen by: distorted letters and digits, as a folder of IDX files.

    python -m benchmarks.glyphs --out runs/glyphs --picture runs/glyphs.png
    python -m benchmarks.glyphs --out runs/full --examples 60000 --test 10000 --classes digits
    tinkering evolve --data idx:runs/glyphs

Glyphs of the fonts that come with matplotlib are drawn in several thicknesses, and each image has
one that is turned, sheared, scaled, moved, bent, blurred, faded and covered with noise in its own
way. Training and test images have the same fonts and other distortions. The files depend on the
flags alone; their labels are numbers: the digits, if they are there, and then the letters.
"""

from __future__ import annotations

import argparse
import gzip
import string
import struct
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tinkering.data.dataset import make_dataset
from tinkering.data.grid import save_grid
from tinkering.data.idx import IMAGES_MAGIC, LABELS_MAGIC
from tinkering.errors import ArgumentError

CLASSES = {
    "digits": string.digits,
    "letters": string.ascii_uppercase,
    "all": string.digits + string.ascii_uppercase,
}
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmti10", "cmss10", "cmtt10"),
)
SIZE = 28
"""Pixels along the sides of an image."""
_FINE = 2 * SIZE
"""Those of what is distorted, before it is averaged."""
_CANVAS = 72
"""Those of what a font draws."""
_STROKES = 4
"""Thicknesses: a glyph as it is, and with 1 to 3 fine pixels around it."""
_LONGEST, _CAPITAL = 44.0, 36.0
"""Fine pixels that the longer side of a glyph, and the height of a capital, have at most."""
_AFFINE = torch.tensor([0.15, 0.15, 0.1, 0.1])
"""Standard deviations: radians, shear, logarithms of width and height."""
_MOVED, _KNOTS, _BENT = 4.0, 5, 1.7
"""Fine pixels at most; along a side, those that are bent apart; by how many fine pixels."""
_GRAIN = 0.1
"""Most of the noise's standard deviation, where ink is 1."""
_CHUNK = 1000
"""Images that are distorted at a time."""


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--out", type=Path, required=True, help="folder of the IDX files")
    flags.add_argument("--examples", type=int, default=14_400, help="training images")
    flags.add_argument("--test", type=int, default=1_800, help="test images")
    flags.add_argument("--classes", choices=list(CLASSES), default="all")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--picture", type=Path, help="PNG of some training images")
    given = flags.parse_args()
    name = write(given.out, given.examples, given.test, given.classes, given.seed)
    print(f"{name}: {given.examples:,} training images and {given.test:,} test images")
    if given.picture is not None:
        print(picture(given.picture, given.classes, given.seed))


def write(folder: Path, examples: int, test: int, classes: str = "all", seed: int = 0) -> str:
    """Write training and test images into a folder, and return what the data set is called.

    Args:
        folder: made where it is not there; files of these names are replaced.
        examples: training images, at least one of each class.
        test: test images.
        classes: ``"digits"``, ``"letters"`` or ``"all"``.
        seed: decides the images, from 0 to 2**32 - 1.

    Raises:
        ArgumentError: (a ``ValueError``) a number is out of range.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for half, count, stream in (("train", examples, 0), ("t10k", test, 1)):
        pixels, labels = glyphs(count, classes, seed, stream)
        images = struct.pack(">4I", IMAGES_MAGIC, *pixels.shape) + pixels.numpy().tobytes()
        numbers = struct.pack(">2I", LABELS_MAGIC, count) + labels.to(torch.uint8).numpy().tobytes()
        # Without the time, so that the same flags give the same bytes.
        for name, content in (("images-idx3", images), ("labels-idx1", numbers)):
            packed = gzip.compress(content, compresslevel=1, mtime=0)
            (folder / f"{half}-{name}-ubyte.gz").write_bytes(packed)
    return f"idx:{folder}"


def glyphs(
    count: int, classes: str = "all", seed: int = 0, stream: int = 0
) -> tuple[UInt8[Tensor, "count 28 28"], Int64[Tensor, " count"]]:
    """Return images, bright on black, and labels; each class has its share, in a random order.

    Args:
        count: images, at least one of each class.
        classes: ``"digits"``, ``"letters"`` or ``"all"``.
        seed: from 0 to 2**32 - 1.
        stream: which of the sets of images of that seed.

    Raises:
        ArgumentError: (a ``ValueError``) a number is out of range.
    """
    characters = CLASSES[classes]
    if count < len(characters):
        raise ArgumentError("count", f"at least {len(characters)}, one a class", count)
    if not 0 <= seed < 2**32:
        raise ArgumentError("seed", "an integer from 0 to 2**32 - 1", seed)
    generator = torch.Generator().manual_seed(2**32 * stream + seed)
    order = torch.randperm(count, generator=generator)
    labels = (torch.arange(count) % len(characters))[order]
    drawn = templates(characters)
    parts = [
        distorted(_chosen(drawn, part, generator), generator)
        for part in torch.split(labels, _CHUNK)
    ]
    return torch.cat(parts), labels


def picture(path: Path, classes: str = "all", seed: int = 0) -> Path:
    """Draw some of the training images, ten of each class, and return the picture's path."""
    made = glyphs(10 * len(CLASSES[classes]), classes, seed)
    dataset = make_dataset("glyphs", made, made, tuple(CLASSES[classes]))
    return save_grid(dataset, path, count=len(made[1]))


@cache
def templates(characters: str) -> UInt8[Tensor, "fonts strokes classes canvas canvas"]:
    """Return the glyphs as the fonts draw them, in the middle of a canvas."""
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    drawn = [
        [
            [_drawn(str(fonts / f"{font}.ttf"), one, stroke) for one in characters]
            for stroke in range(_STROKES)
        ]
        for font in FONTS
    ]
    return torch.from_numpy(np.array(drawn))


def _drawn(font: str, character: str, stroke: int) -> UInt8[np.ndarray, "canvas canvas"]:
    """Return a glyph of about the same size in any font, with `stroke` pixels around it."""
    left, top, right, bottom = ImageFont.truetype(font, 100).getbbox("H")
    capital = _CAPITAL / (bottom - top)
    left, top, right, bottom = ImageFont.truetype(font, 100).getbbox(character)
    scale = min(capital, _LONGEST / max(right - left, bottom - top))
    image = Image.new("L", (_CANVAS, _CANVAS))
    scaled = ImageFont.truetype(font, 100 * scale)
    left, top, right, bottom = scaled.getbbox(character, stroke_width=stroke)
    corner = ((_CANVAS - left - right) / 2, (_CANVAS - top - bottom) / 2)
    ImageDraw.Draw(image).text(corner, character, fill=255, font=scaled, stroke_width=stroke)
    return np.asarray(image)


def _chosen(
    drawn: UInt8[Tensor, "fonts strokes classes canvas canvas"],
    labels: Int64[Tensor, " n"],
    generator: torch.Generator,
) -> Float32[Tensor, "n 1 canvas canvas"]:
    """Return a glyph of each label, from 0 to 1, in a font and a thickness drawn for it."""
    font = torch.randint(len(drawn), labels.shape, generator=generator)
    stroke = torch.randint(drawn.shape[1], labels.shape, generator=generator)
    return drawn[font, stroke, labels].float().div_(255).unsqueeze(1)


def distorted(
    images: Float32[Tensor, "n 1 canvas canvas"], generator: torch.Generator
) -> UInt8[Tensor, "n 28 28"]:
    """Return each glyph turned, bent, blurred, faded and covered with noise in its own way."""
    count = len(images)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)

    places = _places(count, generator) * (2 / _CANVAS)
    image = F.avg_pool2d(F.grid_sample(images, places, align_corners=False), 2)
    image = torch.lerp(image, _blurred(image), between(0.0, 1.0))
    grain = torch.randn(image.shape, generator=generator)
    image = image * between(0.5, 1.0) + grain * between(0.0, _GRAIN)
    return image.clamp(0, 1).mul(255).round().to(torch.uint8).squeeze(1)


def _places(count: int, generator: torch.Generator) -> Float32[Tensor, "count fine fine 2"]:
    """Return where each fine pixel comes from, right and down from the middle of the canvas."""
    angle, shear, wide, high = torch.randn(4, count, generator=generator) * _AFFINE[:, None]
    # The drawn glyph's place is that of the image, taken back: moved, sheared, scaled, turned.
    turn = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], -1).view(-1, 2, 2)
    none = torch.zeros(count)
    skew = torch.stack([(-wide).exp(), shear, none, (-high).exp()], -1).view(-1, 2, 2)
    moved = (torch.rand(count, 1, 1, 2, generator=generator) * 2 - 1) * _MOVED
    steps = torch.arange(_FINE) - (_FINE - 1) / 2
    square = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
    straight = torch.einsum("nij,nyxj->nyxi", skew @ turn, square - moved)
    knots = _BENT * torch.randn(count, 2, _KNOTS, _KNOTS, generator=generator)
    bent = F.interpolate(knots, (_FINE, _FINE), mode="bicubic", align_corners=True)
    return straight + bent.permute(0, 2, 3, 1)


def _blurred(images: Float32[Tensor, "n 1 28 28"]) -> Float32[Tensor, "n 1 28 28"]:
    """Return images under a normal distribution of one pixel."""
    weights = torch.exp(-torch.arange(-3.0, 4.0).square() / 2)
    weights = weights / weights.sum()
    return F.conv2d(images, torch.outer(weights, weights)[None, None], padding=3)


if __name__ == "__main__":
    main()
