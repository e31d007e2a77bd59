"""The networks and gradient methods that the reproductions compare, by the names that their figures show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from odenet._backend import registry as _registry
from odenet._gradients.names import Backprop, DiscreteAdjoint, Gradient
from odenet._nets.spec import NetSpec
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
