"""Relative error |g - g_backprop| / |g_backprop| of the whole gradient (y0 and all weights) of |y(1)|^2 / 2.

The network: f = tanh(y A(t)^T + b(t)), width 16, batch 8, float64; A and b are a cos(1.5 pi t) + b sin(1.5 pi t) with
entries drawn from N(0, (3/4)^2) and N(0, 1/4), read at the layers; for `independent` each layer is drawn on its own.
Euler has N piecewise layers, the others N linear intervals. `order` is the slope of a log-log regression over N.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "conformance"))
import cases  # the network of the conformance suite

TITLE = "Order of the gradient error in depth"
DEPTHS = (16, 32, 64, 128)
METHODS = {
    "euler": (
        "discrete-adjoint:correct=no",
        "discrete-adjoint",
        "discrete-adjoint:iterations=2",
        "discrete-adjoint:predictor=extrapolate:order=1",
        "discrete-adjoint:predictor=extrapolate",
        "discrete-adjoint:predictor=extrapolate:order=3",
        "discrete-adjoint:predictor=extrapolate:order=4",
        "continuous-adjoint:interpolate=yes",
        "continuous-adjoint",
    ),
    "heun": ("discrete-adjoint:correct=no", "discrete-adjoint", "continuous-adjoint"),
    "rk4": (
        "discrete-adjoint:correct=no",
        "discrete-adjoint",
        "continuous-adjoint",
        "continuous-adjoint:interpolate=yes",
    ),
}


def rows() -> Iterator[dict[str, Any]]:
    """One row a backend, solver and method."""
    for backend in ("torch", "jax"):
        for solver, methods in METHODS.items():
            for weights in ("smooth", "independent"):
                exact = {n: cases.network_gradient(backend, solver, "backprop", n, weights)[0] for n in DEPTHS}
                for method in methods if weights == "smooth" or solver == "euler" else methods[:2]:
                    found = [cases.network_gradient(backend, solver, method, n, weights)[0] for n in DEPTHS]
                    errors = [cases.relative(g, exact[n]) for g, n in zip(found, DEPTHS, strict=True)]
                    order = -np.polyfit(np.log(DEPTHS), np.log(errors), 1)[0]
                    columns = {f"N={n}": error for n, error in zip(DEPTHS, errors, strict=True)}
                    head = {"backend": backend, "weights": weights, "solver": solver, "gradient": method}
                    yield {**head, **columns, "order": float(order)}
