"""Images in batches, in an order and with an augmentation that the seed alone decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from odenet._errors import InputError
from odenet._jobs.data.images import Images

_SPLIT, _ORDER, _CHANGE = 1, 2, 3  # streams of random numbers of one seed


@dataclass(frozen=True)
class Split:
    """Training images in two parts: one to learn from, one to choose the best epoch by.

    Args:
        train, validation: without an image in common.
    """

    train: Images
    validation: Images


def split(images: Images, part: float, limit: int | None, seed: int) -> Split:
    """Divide training images at random.

    Args:
        images: all of them.
        part: of them for validation, above 0 and below 1.
        limit: divide this many, drawn at random, instead of all.
        seed: of the draw.

    Raises:
        InputError: a part or limit that leaves nothing on one side.
    """
    if limit is not None and not 2 <= limit <= len(images):
        raise InputError(f"a limit of {limit} training images", f"2 to {len(images)}")
    order = np.random.default_rng((seed, _SPLIT)).permutation(len(images))[:limit]
    count = round(part * len(order))
    if not 0 < count < len(order):
        raise InputError(f"{part} of {len(order)} images for validation", "a part that leaves images on both sides")
    return Split(images.take(order[count:]), images.take(order[:count]))


@dataclass(frozen=True)
class Batches:
    """Images as batches of numbers with mean 0 and deviation 1 in each channel.

    Args:
        images: what to take them from.
        size: images in a batch.
        mean, deviation: of each channel, of the images that are learnt from.
        dtype: "float32" or "float64" of a batch.
        seed: of order and changes.
        augment: whether images of `shuffled` are changed at random.
        mirrored: whether they may be mirrored, too.
    """

    images: Images
    size: int
    mean: np.ndarray
    deviation: np.ndarray
    dtype: str
    seed: int
    augment: bool = False
    mirrored: bool = False

    @property
    def steps(self) -> int:
        """Batches in an epoch: whole ones only, so that all have one size."""
        return len(self.images) // self.size

    def shuffled(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of an epoch, in a new order each; images that fill no batch have their turn another time.

        Returns:
            inputs (size, *shape) and labels (size,), `steps` times.
        """
        order = np.random.default_rng((self.seed, _ORDER, epoch)).permutation(len(self.images))
        for step in range(self.steps):
            chosen = order[step * self.size : (step + 1) * self.size]
            pixels = self.images.read(chosen)
            if self.augment:
                pixels = augmented(pixels, np.random.default_rng((self.seed, _CHANGE, epoch, step)), self.mirrored)
            yield self.numbers(pixels), self.images.labels[chosen]

    def plain(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All images once, in their order and unchanged; the last batch is filled up with the first image.

        Returns:
            inputs (size, *shape) and the labels of those that count, (size,) or fewer in the last batch.
        """
        for start in range(0, len(self.images), self.size):
            chosen = np.arange(start, start + self.size)
            filled = np.where(chosen < len(self.images), chosen, 0)
            yield self.numbers(self.images.read(filled)), self.images.labels[start : start + self.size]

    def numbers(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels normalised in float64 and then rounded to the number type, the same for every backend."""
        centred = pixels.astype(np.float64) - self.mean[:, None, None]
        return (centred / self.deviation[:, None, None]).astype(self.dtype)


def padding(height: int) -> int:
    """Pixels that a crop may move by: 4 of 32, as He et al. 2016 do for CIFAR-10, and as much of other sizes."""
    return height // 8


def cropped(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Each image surrounded by black and cut to its size again at a random place.

    Shapes: uint8 (batch, channels, height, width) in and out.
    """
    count, _, height, width = pixels.shape
    down, right = padding(height), padding(width)
    places = generator.integers(0, (2 * down + 1, 2 * right + 1), size=(count, 2))
    around = np.pad(pixels, ((0, 0), (0, 0), (down, down), (right, right)))
    windows = sliding_window_view(around, (height, width), axis=(2, 3))
    return windows[np.arange(count), :, places[:, 0], places[:, 1]]


def flipped(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Each image mirrored left to right with probability one half; shapes as `cropped`."""
    chosen = generator.integers(0, 2, size=len(pixels)).astype(bool)
    return np.where(chosen[:, None, None, None], pixels[..., ::-1], pixels)


def augmented(pixels: np.ndarray, generator: np.random.Generator, mirrored: bool) -> np.ndarray:
    """`cropped` and, where a mirror image shows the same, `flipped`."""
    moved = cropped(pixels, generator)
    return flipped(moved, generator) if mirrored else moved
