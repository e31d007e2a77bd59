"""Small networks of the reproductions: `y' = tanh(y a(s) + b(s))` without training, and one that learns digits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from odenet._backend import registry as _registry
from odenet._gradients.names import Backprop, Gradient
from odenet._jobs.data.digits import batch
from odenet._jobs.reproduce.methods import BLOCKS, Errors, built, errors
from odenet._nets.spec import NetSpec
from odenet._problem.depth import Depth
from odenet.theory import smoothness

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


_IMAGES = 64  # in a batch of digits
_WIDTH = 32
_RATE, _MOMENTUM, _DECAY = 0.1, 0.9, 5e-4
_SEEDS = 1000  # batches of one seed; the last of them is not trained on


@dataclass(frozen=True)
class DigitsNetwork:
    """A small network on digits, blocks `w2 relu(w1 y + b1) + b2` of width 32, to be trained and differentiated.

    Args:
        backend, device: by which, and where; in float64.
        solver, along: names of the solver and of how weights go along depth.
        depth: steps.
        seed: of the batches.
    """

    backend: str
    device: str
    solver: str
    along: Any
    depth: int
    seed: int

    @property
    def spec(self) -> NetSpec:
        """What its weights are, and their shapes."""
        return NetSpec("mlp", self.depth, width=_WIDTH, hidden=_WIDTH, along=self.along)

    @property
    def tied(self) -> DigitsNetwork:
        """The same network with one block for all depths."""
        return replace(self, along="shared")

    def descend(self, weights: Mapping[str, np.ndarray], steps: int) -> Descended:
        """Train by backpropagation and gradient descent with momentum, each step on a batch of its own.

        Args:
            weights: to start from.
            steps: at least one.
        """
        trainer = _registry.backend(self.backend).trainer(
            self._built(weights, Backprop()), momentum=_MOMENTUM, weight_decay=_DECAY
        )
        loss = correct = float("nan")
        for step in range(steps):
            done = trainer.step(*batch(_IMAGES, _SEEDS * self.seed + step), _RATE)
            loss, correct = done.loss, done.correct
        return Descended(trainer.read(), loss, correct / _IMAGES)

    def errors(self, weights: Mapping[str, np.ndarray], methods: Mapping[str, Gradient]) -> dict[str, Errors]:
        """The errors of each method's gradient of one batch, by name of the method."""
        examples = batch(_IMAGES, _SEEDS * self.seed + _SEEDS - 1)
        return errors(self.backend, self.device, self.spec, weights, self.solver, examples, methods)

    def smoothness(self, weights: Mapping[str, np.ndarray]) -> float:
        """How smooth the weights of the blocks are in depth, see `odenet.theory.smoothness`."""
        return smoothness(Depth({name: w for name, w in weights.items() if name.startswith(BLOCKS)}, self.along))

    def _built(self, weights: Mapping[str, np.ndarray], method: Gradient) -> Any:
        return built(self.backend, self.device, self.spec, weights, self.solver, method, "float64")


@dataclass(frozen=True)
class Descended:
    """Where training went.

    Args:
        weights: in the end.
        loss, accuracy: of the last batch, before the step on it.
    """

    weights: dict[str, np.ndarray]
    loss: float
    accuracy: float
