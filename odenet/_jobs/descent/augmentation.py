"""Images changed at random without changing what they show, by a generator: the same one gives the same images."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


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
