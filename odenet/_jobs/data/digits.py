"""Handwritten digits, real and embedded: the 1797 images of 8x8 pixels that scikit-learn carries.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI machine learning repository, 1998
(its test set).
"""

from __future__ import annotations

from functools import cache

import numpy as np

from odenet._errors import FileError, InputError, shown
from odenet._jobs.data.images import ImageSet, in_memory

COUNT = 1797
TEST = 360  # images that are never trained on, a fifth
_SPLIT = 12_345  # seed of the split: part of what the set is, and no choice of a user


def digits() -> tuple[np.ndarray, np.ndarray]:
    """All images and their labels.

    Pixels (0 to 16 in the source) are shifted and scaled by two numbers, the mean and the standard deviation over all
    pixels of all images, so that the whole set has mean 0 and variance 1.

    Returns:
        inputs, float64 of shape (1797, 1, 8, 8), and labels, int64 of shape (1797,) from 0 to 9.

    Raises:
        FileError: scikit-learn, which carries the images, is not installed.
    """
    inputs, labels = _load()
    return inputs.copy(), labels.copy()


def batch(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A random batch without repeats, its classes as balanced as they can be.

    The number of images of two classes differs by at most one, until a class has none left.

    Args:
        size: number of images, 1 to 1797.
        seed: of NumPy's generator; the same seed gives the same batch, and a smaller batch of the same seed is the
            beginning of a larger one.

    Returns:
        inputs, float64 of shape (size, 1, 8, 8), and labels, int64 of shape (size,).

    Raises:
        InputError: a size that cannot be had, or a seed that is no whole number of at least 0.
        FileError: scikit-learn is not installed.
    """
    for name, value, least in (("size", size, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise InputError(f"{name}={shown(value)} of a batch of digits", f"a whole number, at least {least}")
    if size > COUNT:
        raise InputError(f"a batch of {size} digits", f"1 to {COUNT}: there are no more images", "take a smaller batch")
    inputs, labels = _load()
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(COUNT)
    rank = np.empty(COUNT, dtype=np.int64)  # how many of the same class come before, in the shuffled order
    for label in range(10):
        of_label = np.flatnonzero(labels[shuffled] == label)
        rank[of_label] = np.arange(len(of_label))
    dealt = shuffled[np.argsort(rank, kind="stable")]  # one of each class, then a second of each, and so on
    chosen = dealt[:size]
    return inputs[chosen], labels[chosen]


def digit_set() -> ImageSet:
    """The digits to train on: 1437 images, and always the same 360 for the test, drawn once.

    Pixels are those of the source, 0 to 16.

    Raises:
        FileError: scikit-learn is not installed.
    """
    pixels, labels = _pixels()
    order = np.random.default_rng(_SPLIT).permutation(COUNT)
    train, test = (in_memory(pixels[part], labels[part]) for part in (order[TEST:], order[:TEST]))
    origin = "the 1797 handwritten digits of 8x8 pixels that scikit-learn carries (Alpaydin and Kaynak, 1998)"
    return ImageSet("digits", origin, tuple("0123456789"), train, test, mirrored=False)


@cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = _pixels()
    pixels = pixels.astype(np.float64)
    return (pixels - pixels.mean()) / pixels.std(), labels


def _pixels() -> tuple[np.ndarray, np.ndarray]:
    """Pixels as they are in the source, uint8 (1797, 1, 8, 8), and labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise FileError(
            "the handwritten digits come with scikit-learn, which is not installed",
            "an installed scikit-learn",
            "pip install 'odenet[data]'",
        ) from error
    images, labels = load_digits(return_X_y=True)
    return np.asarray(images).astype(np.uint8).reshape(-1, 1, 8, 8), np.asarray(labels, dtype=np.int64)
