"""Networks and gradient methods that the reproductions compare, and errors of their gradients, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from odenet._backend import registry as _registry
from odenet._backend.interface import Evaluation
from odenet._gradients.names import Backprop, DiscreteAdjoint, Gradient
from odenet._nets.spec import NetSpec
from odenet._report.difference import relative
from odenet._solvers.names import SOLVERS

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
