"""Labelled images in memory: bytes as they were stored, floats on demand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from tinkering.data.shuffle import Purpose, check_seed, permutation
from tinkering.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Split:
    """One half of a data set, for training or for testing.

    The pixels stay bytes: EMNIST byclass takes 640 MB so, and four times that as floats.

    Args:
        pixels: upright images, ``uint8 [n, height, width]``.
        labels: positions in the data set's ``classes``, ``int64 [n]``.
        mean: what normalising subtracts, on the scale from 0 to 1.
        std: what normalising divides by.

    Example:
        >>> one_image = torch.tensor([[[0, 255]]], dtype=torch.uint8)
        >>> split = Split(one_image, torch.tensor([3]), mean=0.5, std=0.25)
        >>> split.images()
        tensor([[[[-2., 2.]]]])
        >>> len(split)
        1
    """

    pixels: UInt8[Tensor, "n height width"]
    labels: Int64[Tensor, " n"]
    mean: float
    std: float

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor | None = None) -> Float32[Tensor, "m 1 height width"]:
        """Return images ready for a model, ``float32 [m, 1, height, width]``.

        A pixel becomes ``(pixel / 255 - mean) / std``.

        Args:
            indices: which images, ``int64 [m]``, such as `BatchOrder.order` gives; all of
                them by default.
        """
        pixels = self.pixels if indices is None else self.pixels[indices]
        # In place after the first step, so that the floats exist once.
        return pixels.to(torch.float32).div_(255).sub_(self.mean).div_(self.std).unsqueeze(1)

    @property
    def background(self) -> float:
        """What a pixel of 0 is in `images`."""
        return -self.mean / self.std

    @cached_property
    def x(self) -> Float32[Tensor, "n 1 height width"]:
        """All images, ``float32 [n, 1, height, width]``: made when first asked for, then kept."""
        return self.images()

    @property
    def y(self) -> Int64[Tensor, " n"]:
        """All labels, ``int64 [n]``."""
        return self.labels


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: images and labels to train with and to test with.

    Both halves are normalised with the mean and standard deviation of all pixels of the
    training half, ``mean`` and ``std``; what the test half looks like is never used.

    Args:
        name: what it was loaded as.
        train: the training half.
        test: the test half.
        classes: names of the classes; a label is a position in here.

    Example:
        >>> from tinkering.data import load
        >>> digits = load("mnist5k")
        >>> digits.train.x.shape, digits.test.y.shape, digits.classes[3]
        (torch.Size([4000, 1, 28, 28]), torch.Size([1000]), '3')
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]

    @property
    def mean(self) -> float:
        """Mean of the training pixels, on the scale from 0 to 1."""
        return self.train.mean

    @property
    def std(self) -> float:
        """Standard deviation of the training pixels, on the scale from 0 to 1."""
        return self.train.std

    def sha256(self) -> str:
        """Return what identifies the images and labels: the SHA-256 of them all, in hex.

        Example:
            >>> from tinkering.data import load
            >>> digits = load("mnist5k")
            >>> digits.sha256() == load("mnist5k").sha256() != digits.subset(train=50).sha256()
            True
        """
        digest = hashlib.sha256(repr((self.classes, self.mean, self.std)).encode())
        for split in (self.train, self.test):
            for part in (split.pixels, split.labels):
                digest.update(repr(tuple(part.shape)).encode())
                digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()

    def subset(self, train: int | None = None, test: int | None = None, seed: int = 0) -> Dataset:
        """Return a smaller data set in which each class keeps its share, in a shuffled order.

        A class's share is rounded so that the sizes are exact (largest remainder, lower
        label first). Normalisation stays that of the whole data set, so that an image
        looks the same in both.

        Args:
            train: training images to keep; all by default, in the order they have.
            test: test images to keep; likewise.
            seed: from 0 to 2**64 - 1; decides which images, and their order.

        Raises:
            ArgumentError: (a ``ValueError``) a size is not between 1 and what there is, or
                `seed` is out of range.

        Example:
            >>> from tinkering.data import load
            >>> small = load("mnist5k").subset(train=50, test=20)
            >>> small.train.y.bincount()
            tensor([5, 5, 5, 5, 5, 5, 5, 5, 5, 5])
        """
        check_seed(seed)
        halves = {}
        for half, size in (("train", train), ("test", test)):
            split: Split = getattr(self, half)
            if size is None:
                halves[half] = split
                continue
            if not 1 <= size <= len(split):
                raise ArgumentError(half, f"an integer from 1 to {len(split)}", size)
            chosen = torch.from_numpy(_stratified(split.labels.numpy(), size, seed))
            halves[half] = replace(split, pixels=split.pixels[chosen], labels=split.labels[chosen])
        return replace(self, train=halves["train"], test=halves["test"])


def make_dataset(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: tuple[str, ...],
) -> Dataset:
    """Return a `Dataset` with the normalisation of its training half.

    Args:
        name: what it is called.
        train: images, ``uint8 [n, height, width]``, and labels, ``int64 [n]``.
        test: likewise.
        classes: names of the classes.

    Example:
        >>> black_and_white = torch.tensor([[[0, 255], [0, 255]]], dtype=torch.uint8)
        >>> half = (black_and_white, torch.tensor([0]))
        >>> dataset = make_dataset("tiles", half, half, ("tile",))
        >>> dataset.mean, dataset.std
        (0.5, 0.5)
    """
    mean, std = _mean_and_std(train[0])
    return Dataset(name, Split(*train, mean, std), Split(*test, mean, std), classes)


def _mean_and_std(pixels: UInt8[Tensor, "n height width"]) -> tuple[float, float]:
    """Return the mean and the standard deviation of all pixels on the scale from 0 to 1."""
    # From how often each of the 256 values occurs: exact, and without a copy as floats.
    share = torch.bincount(pixels.flatten(), minlength=256).double() / pixels.numel()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (share * values).sum()
    std = (share * (values - mean).square()).sum().sqrt()
    # Images that are all of one grey are centred and no more.
    return mean.item(), std.item() or 1.0


def _stratified(
    labels: Int64[np.ndarray, " n"], size: int, seed: int
) -> Int64[np.ndarray, " size"]:
    """Return `size` indices, shuffled, with each label's share of them."""
    counts = np.bincount(labels)
    quotas, remainders = np.divmod(counts * size, len(labels))
    # Stable, so that among equal remainders the lower label comes first.
    rounded_up = np.argsort(-remainders, kind="stable")[: size - quotas.sum()]
    quotas[rounded_up] += 1
    order = permutation(len(labels), seed=seed, stream=0, purpose=Purpose.SUBSET)
    # Sorted by label, and by the random order within a label: the first few of each.
    by_label = order[np.argsort(labels[order], kind="stable")]
    starts = np.cumsum(counts) - counts
    chosen = np.concatenate([by_label[s : s + q] for s, q in zip(starts, quotas, strict=True)])
    shuffled: Int64[np.ndarray, " size"] = chosen[
        permutation(size, seed=seed, stream=1, purpose=Purpose.SUBSET)
    ]
    return shuffled
