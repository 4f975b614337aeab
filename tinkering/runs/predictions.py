"""What the saved network said of the held-out images, as a run folder keeps it.

The report draws from it, so that it needs neither the data set nor the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from tinkering.errors import RunFolderError
from tinkering.runs.durable import replace_durably
from tinkering.runs.regular import open_by_name

PREDICTIONS = "predictions.safetensors"
MOST_MISTAKES = 40
"""Wrong images that are kept, at most."""
MOST_CLASSES = 1024
"""A file that names a higher one is none of ours: data sets have 256 at most."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """One prediction for each held-out image, and the images of the gravest mistakes.

    Args:
        labels: what each image is.
        predicted: what the network said.
        confidence: the probability that the network gave to what it said, 0 to 1.
        mistakes: positions of wrongly predicted images, the most confident first.
        images: the pixels of those.
    """

    labels: Int32[np.ndarray, " n"]
    predicted: Int32[np.ndarray, " n"]
    confidence: Float32[np.ndarray, " n"]
    mistakes: Int32[np.ndarray, " m"]
    images: UInt8[np.ndarray, "m height width"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> int:
        """How many predictions are right."""
        return int((self.labels == self.predicted).sum())


def gravest_mistakes(
    labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, most: int = MOST_MISTAKES
) -> Int32[np.ndarray, " m"]:
    """Return the positions of the wrong predictions, the most confident first.

    Args:
        labels: what each image is.
        predicted: what was said.
        confidence: how sure that was; what is not a number counts as not sure at all.
        most: how many to return at most.

    Example:
        >>> labels, said = np.array([0, 1, 2, 3]), np.array([0, 2, 0, 0])
        >>> gravest_mistakes(labels, said, np.array([0.9, 0.3, 0.8, 0.3])).tolist()
        [2, 1, 3]
    """
    wrong = np.flatnonzero(labels != predicted)
    # Stable, so that among equals the first image comes first.
    order = np.argsort(-np.nan_to_num(confidence[wrong], nan=0.0), kind="stable")
    return wrong[order[:most]].astype(np.int32)


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions as safetensors; the file is complete or as it was before."""
    tensors = {name: np.ascontiguousarray(value) for name, value in vars(predictions).items()}
    replace_durably(path, save(tensors))


def load_predictions(path: Path) -> Predictions:
    """Return the predictions of a run folder.

    Raises:
        RunFolderError: the file is missing or holds something else.
    """
    needed = "the predictions that a run saves at its end (safetensors)"
    try:
        with open_by_name(path) as name:
            tensors = load_file(name)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(path, needed, str(error)) from error
    missing = Predictions.__annotations__.keys() - tensors.keys()
    if missing:
        raise RunFolderError(path, needed, f"none called {', '.join(sorted(missing))}")
    if not _fit(tensors):
        shapes = ", ".join(f"{name} {value.dtype} {value.shape}" for name, value in tensors.items())
        raise RunFolderError(path, needed, f"tensors that do not fit each other ({shapes})")
    return Predictions(**{name: tensors[name] for name in Predictions.__annotations__})


def _fit(tensors: Mapping[str, np.ndarray]) -> bool:
    """Return whether the tensors describe the same images."""
    labels, predicted, confidence, shown, images = (
        tensors[name] for name in Predictions.__annotations__
    )
    integers = labels.dtype == predicted.dtype == shown.dtype == np.int32
    return bool(
        integers
        and confidence.dtype == np.float32
        and images.dtype == np.uint8
        and labels.ndim == shown.ndim == 1
        and images.ndim == 3
        and labels.shape == predicted.shape == confidence.shape
        and len(images) == len(shown)
        and ((labels >= 0) & (labels < MOST_CLASSES)).all()
        and ((predicted >= 0) & (predicted < MOST_CLASSES)).all()
        and ((shown >= 0) & (shown < len(labels))).all()
    )
