"""The tanh networks of the reproductions without training: `y' = tanh(y a(s) + b(s))`, on any backend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

WIDTH, BATCH = 16, 8
NOISE = {"a": WIDTH**-0.5, "b": 1.0}
"""Standard deviations of what rough weights have more than smooth ones, in each entry."""

Weights = dict[str, np.ndarray]


def tanh(u: Any) -> Any:
    """tanh of any backend's arrays, by arithmetic only."""
    return 1 - 2 / (1 + math.e ** (2 * u))


def field(t: Any, y: Any, w: Any) -> Any:
    """`tanh(y a + b)`, shapes (batch, width), (width, width) and (width,)."""
    return tanh(y @ w["a"] + w["b"])


def states(seed: int) -> np.ndarray:
    """A batch y(0), shape (BATCH, WIDTH)."""
    return np.random.default_rng([seed, 1]).standard_normal((BATCH, WIDTH))


def smooth_weights(seed: int, nodes: np.ndarray) -> Weights:
    """A smooth random function of depth, `cos(pi s / 2) w0 + sin(pi s / 2) w1`, at these s in [0, 1]."""
    generator = np.random.default_rng([seed, 2])
    weights = {}
    for name, shape, scale in (("a", (WIDTH, WIDTH), WIDTH**-0.5), ("b", (WIDTH,), 0.5)):
        first, second = (scale * generator.standard_normal(shape) for _ in range(2))
        angle = (np.pi / 2 * nodes).reshape(-1, *[1] * len(shape))
        weights[name] = np.cos(angle) * first + np.sin(angle) * second
    return weights


def rough_weights(seed: int, nodes: np.ndarray) -> Weights:
    """The smooth function with noise on it that is drawn for each node on its own."""
    generator = np.random.default_rng([seed, 3, len(nodes)])
    smooth = smooth_weights(seed, nodes)
    return {name: leaf + NOISE[name] * generator.standard_normal(leaf.shape) for name, leaf in smooth.items()}
