"""Networks and gradient methods that the reproductions compare, and errors of their gradients, layer by layer; small
networks: `y' = tanh(y a(s) + b(s))` without training, and one that learns digits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from odenet._backend import registry as _registry
from odenet._backend.interface import Evaluation
from odenet._gradients.names import Backprop, DiscreteAdjoint, Gradient
from odenet._jobs.data.digits import batch
from odenet._nets.spec import NetSpec
from odenet._problem.depth import Depth
from odenet._report.difference import relative
from odenet._solvers.names import SOLVERS
from odenet.theory import smoothness

RESNET, HEUNNET = "ResNet", "HeunNet"
NETS: dict[str, tuple[str, Any]] = {RESNET: ("euler", "piecewise"), HEUNNET: ("heun", "linear")}
"""Solver, and how weights go along depth."""

BACKPROP, PAPER, CORRECTED, EXTRAPOLATED = "backprop", "paper", "corrected", "extrapolated"
METHODS: dict[str, Gradient] = {
    BACKPROP: Backprop(),
    PAPER: DiscreteAdjoint(correct=False),
    CORRECTED: DiscreteAdjoint(),
    EXTRAPOLATED: DiscreteAdjoint(predictor="extrapolate"),
}
"""The paper's method is the uncorrected discrete adjoint; the correction and the extrapolation are this library's."""


def built(
    backend: str,
    device: str,
    spec: NetSpec,
    weights: Mapping[str, np.ndarray],
    solver: str,
    gradient: Gradient,
    dtype: str = "float32",
) -> Any:
    """The network of a spec with these weights, solved and differentiated in this way by that backend."""
    loaded = _registry.backend(backend)
    return loaded.build(spec, weights, solver=SOLVERS[solver], gradient=gradient, dtype=dtype, device=device)


BLOCKS = "block."  # how names of the weights of the blocks begin


@dataclass(frozen=True)
class Errors:
    """How far a gradient g by the weights of all blocks is from backpropagation's.

    Args:
        whole: `|g - exact| / |exact|`.
        by_layer: the same of each layer's part.
        certificate: the reconstruction residual, where the method has one.
    """

    whole: float
    by_layer: np.ndarray
    certificate: float | None


def errors(
    backend: str,
    device: str,
    spec: NetSpec,
    weights: Mapping[str, np.ndarray],
    solver: str,
    batch: tuple[np.ndarray, np.ndarray],
    methods: Mapping[str, Gradient],
) -> dict[str, Errors]:
    """The errors of each method's gradient of the mean loss of a batch, in float64, by name of the method."""
    loaded = _registry.backend(backend)

    def gradient_of(method: Gradient) -> Evaluation:
        return loaded.evaluate(built(backend, device, spec, weights, solver, method, "float64"), *batch)

    with loaded.prepare("float64", device):
        exact = _of_blocks(gradient_of(Backprop()))
        return {name: _errors(gradient_of(method), exact) for name, method in methods.items()}


def _errors(evaluation: Evaluation, exact: np.ndarray) -> Errors:
    gradient = _of_blocks(evaluation)
    layers = [relative(one, other) for one, other in zip(gradient, exact, strict=True)]
    return Errors(relative(gradient.ravel(), exact.ravel()), np.array(layers), evaluation.certificate)


def _of_blocks(evaluation: Evaluation) -> np.ndarray:
    """The gradient by all weights of the blocks, shape (layers, weights of one)."""
    parts = [g.reshape(len(g), -1) for name, g in evaluation.gradients.items() if name.startswith(BLOCKS)]
    return np.concatenate(parts, axis=1)


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
