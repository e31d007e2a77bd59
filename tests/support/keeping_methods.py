"""Gradient methods with every kind of record of states, for tests that count what is kept between the passes."""

from __future__ import annotations

import odenet

METHODS = (
    "checkpoint",
    "checkpoint:segments=4",
    "checkpoint:states=1",
    "checkpoint:states=3",
    "checkpoint:states=40",
    "discrete-adjoint",
    "discrete-adjoint:iterations=3",
    "discrete-adjoint:predictor=extrapolate:order=3",
    "discrete-adjoint:anchors=6",
    "discrete-adjoint:anchors=1",
    "continuous-adjoint",
    "continuous-adjoint:steps=40",
    "continuous-adjoint:interpolate=yes",
)
REVERSIBLE = ("reversible-heun", "alf", "reversible:euler", "reversible:dopri5")
PAIRS = [
    *((solver, gradient) for solver in odenet.SOLVERS for gradient in METHODS),
    *((solver, "reversible") for solver in REVERSIBLE),
]
