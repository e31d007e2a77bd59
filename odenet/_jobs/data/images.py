"""A set of labelled images to train and test on, in memory or read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from odenet._errors import InputError

Shape = tuple[int, int, int]
CHUNK = 1024  # images read at once where all are read
MOST = 50_000  # images that mean and deviation are taken over; more change them by less than a thousandth


@dataclass(frozen=True)
class Images:
    """Labelled images, one after the other.

    Args:
        read: a 1-D array of indices to pixels, of shape (number of indices, *shape): uint8, or what a user's own have.
        labels: int64 of shape (number of images,), from 0.
        shape: of one image, (channels, height, width).
    """

    read: Callable[[np.ndarray], np.ndarray]
    labels: np.ndarray
    shape: Shape

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Images:
        """Some of these images; an index of the result is a place in `indices`."""
        return Images(lambda places: self.read(indices[places]), self.labels[indices], self.shape)


@dataclass(frozen=True)
class ImageSet:
    """Images for training and images for the test, which no choice may be made by.

    Args:
        name: what a user calls it.
        origin: where the images come from, as a sentence without a full stop, to be said beside every accuracy.
        classes: names; labels are places in it.
        train, test: images of one shape.
        mirrored: whether an image and its mirror image show the same class (digits: no).
    """

    name: str
    origin: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    mirrored: bool

    def __post_init__(self) -> None:
        for part, images in (("training", self.train), ("test", self.test)):
            if len(images) == 0:
                raise InputError(f"{self.name} without {part} images", "at least one")
            if images.labels.min() < 0 or images.labels.max() >= len(self.classes):
                raise InputError(
                    f"{part} labels from {images.labels.min()} to {images.labels.max()} of {self.name}",
                    f"0 to {len(self.classes) - 1}",
                )
        if self.train.shape != self.test.shape:
            raise InputError(f"training images {self.train.shape} and test images {self.test.shape}", "one shape")


def in_memory(pixels: np.ndarray, labels: np.ndarray) -> Images:
    """Images that are all at hand: uint8 of shape (number, channels, height, width), and their labels.

    Raises:
        InputError: other shapes or number types.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or labels.shape != pixels.shape[:1]:
        raise InputError(
            f"pixels {pixels.shape} of {pixels.dtype} with labels {labels.shape}",
            "uint8 (number, channels, height, width) and labels (number,)",
        )
    channels, height, width = pixels.shape[1:]
    return Images(lambda indices: pixels[indices], labels.astype(np.int64), (channels, height, width))


def moments(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, in units of a pixel (0 to 255).

    Of more than 50 000 images, that many evenly spread ones are read. Sums of integers are exact, so that they do not
    depend on the order of reading; real numbers are added up in float64. The deviation of a channel that is the same
    everywhere is given as 1.

    Returns:
        two float64 arrays of shape (channels,).
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), MOST)).astype(np.int64))
    total = squares = np.zeros(images.shape[0], np.int64)
    for start in range(0, len(chosen), CHUNK):
        pixels = images.read(chosen[start : start + CHUNK])
        pixels = pixels.astype(np.float64 if pixels.dtype.kind == "f" else np.int64)
        total = total + pixels.sum((0, 2, 3))
        squares = squares + (pixels**2).sum((0, 2, 3))
    count = len(chosen) * images.shape[1] * images.shape[2]
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    least = 1e-7 * np.abs(mean) if total.dtype.kind == "f" else 0.0  # what rounding leaves of a constant channel
    return mean, np.where(deviation > least, deviation, 1.0)
