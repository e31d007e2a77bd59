"""How far a ResNet is from its Neural ODE (section 2, Proposition 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from odenet._backend import registry as _registry
from odenet._backend.solve import solve
from odenet._jobs.reproduce.drawing import finish, over_depth, slope
from odenet._jobs.reproduce.network import Weights, field, rough_weights, smooth_weights, states
from odenet._jobs.reproduce.reproduction import Choices, CurveCell, Point, Reproduction, values
from odenet._jobs.reproduce.verdict import Verdict, below, falls, stays
from odenet._problem.depth import Depth, Kind
from odenet._solvers.names import solver as solver_named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISTANCE, BOUND, REFINEMENT = "distance", "bound of Proposition 1", "error of the Neural ODE's solution"
SMOOTH, ROUGH = "smooth weights", "rough weights"
_AVERAGED = 64
"""Independent layers first average out, as N^-1/2: from here on what is left of the distance is its limit."""
_WEIGHTS = {SMOOTH: smooth_weights, ROUGH: rough_weights}


def cells(choices: Choices) -> tuple[CurveCell, ...]:
    """N = 4 to 512."""
    return choices.cells([SMOOTH, ROUGH], choices.depths(4, 512, quick=256))


def measure(cell: CurveCell, choices: Choices) -> tuple[Point, ...]:
    """The largest distance over layers and batch, with the bound and the error of what it is measured against."""
    n = cell.depth
    weights = _WEIGHTS[cell.curve](cell.seed, np.arange(n + 1) / n)
    layers = {name: leaf[:-1] for name, leaf in weights.items()}
    network = _trajectory(cell, choices, layers, "piecewise", "euler", n)
    substeps = max(8, 256 // n)
    ode = _trajectory(cell, choices, weights, "linear", "rk4", n * substeps)
    # of order 4, so that half the steps have 16 times the error
    coarse = _trajectory(cell, choices, weights, "linear", "rk4", n * substeps // 2)
    return (
        cell.point(DISTANCE, _apart(network, ode[::substeps])),
        cell.point(BOUND, bound(weights, ode)),
        cell.point(REFINEMENT, _apart(coarse, ode[::2]) / 15),
    )


def bound(weights: Weights, ode: np.ndarray) -> float:
    """`(e^L - 1) / (2 N L) max |x''|`, with `x'' = d_s phi + d_x phi [phi]` (Proposition 1).

    Args:
        weights: N + 1 nodes, linear between them.
        ode: the Neural ODE's states at equal steps, a multiple of N; shape (steps + 1, batch, width). The largest
            second derivative is taken over these, from both sides where the weights have a kink.
    """
    n = len(weights["a"]) - 1
    substeps = (len(ode) - 1) // n
    lipschitz = max(float(np.linalg.norm(a, 2)) for a in weights["a"])  # |tanh'| is at most 1, and norms are convex
    ahead = np.arange(substeps + 1).reshape(-1, 1, 1) / (n * substeps)
    largest = 0.0
    for interval in range(n):
        rate_a, rate_b = (n * (weights[name][interval + 1] - weights[name][interval]) for name in ("a", "b"))
        a, b = weights["a"][interval] + ahead * rate_a, weights["b"][interval] + ahead * rate_b
        x = ode[interval * substeps : (interval + 1) * substeps + 1]
        slope = np.tanh(x @ a + b)
        second = (1 - slope**2) * (slope @ a + x @ rate_a + rate_b)
        largest = max(largest, float(np.linalg.norm(second, axis=2).max()))
    return float(np.expm1(lipschitz)) / (2 * n * lipschitz) * largest


def _trajectory(cell: CurveCell, choices: Choices, weights: Weights, kind: Kind, solver: str, steps: int) -> np.ndarray:
    backend = _registry.backend(cell.backend)
    with backend.prepare("float64", choices.device):
        return backend.to_numpy(_states(cell.backend, kind, solver, steps)(states(cell.seed), weights))


@cache
def _states(backend: str, kind: Kind, solver: str, steps: int) -> Callable[[Any, Any], Any]:
    """All states of a solve; compiled once for all seeds."""

    def trajectory(y0: Any, tree: Any) -> Any:
        return solve(
            field,
            y0,
            Depth(tree, kind),
            steps=steps,
            solver=solver_named(solver),
            ts="all",
            backend=_registry.entry(backend),
        ).ys

    return _registry.backend(backend).compiled(trajectory)


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other, axis=2).max())


def draw(points: Sequence[Point], figure: Figure) -> None:
    """Distances with their bounds."""
    axes = figure.subplots()
    for index, curve in enumerate((SMOOTH, ROUGH)):
        over_depth(axes, values(points, curve, DISTANCE), curve, index)
        over_depth(axes, values(points, curve, BOUND), f"{curve}: {BOUND}", index, "--")
    slope(axes, values(points, SMOOTH, DISTANCE), 1, "1/N")
    finish(axes, "largest distance over layers and batch", "A ResNet and its Neural ODE")


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """Orders, the bound, and whether the Neural ODE was solved well enough to say so."""
    smooth, rough = (values(points, curve, DISTANCE) for curve in (SMOOTH, ROUGH))
    return (
        falls("smooth weights: the distance falls as 1/N", smooth, 1, 0.15, least_depth=8),
        stays("rough weights: the distance does not fall", rough, 0.15, least_depth=_AVERAGED),
        *(
            below(f"{curve}: the distance is below the bound of Proposition 1", found, values(points, curve, BOUND))
            for curve, found in ((SMOOTH, smooth), (ROUGH, rough))
        ),
        *(
            below(f"{curve}: the Neural ODE's own error is small", values(points, curve, REFINEMENT), found, 1e-3)
            for curve, found in ((SMOOTH, smooth), (ROUGH, rough))
        ),
    )


REPRODUCTION = Reproduction(
    "distance",
    "Section 2, Proposition 1: a ResNet is within (e^L - 1) / (2 N L) max |d_s φ + d_x φ[φ]| of the Neural ODE through "
    "its weights. That is O(1/N) if the weights are smooth in depth, and says nothing if they are not.",
    "Tanh networks of width 16, a batch of 8, float64. The Neural ODE has weights that are linear between the layers' "
    "and is solved by rk4 with at least 8 steps in each interval (at least 256 in all), so that no kink of the weights "
    "lies inside a step; its error is seen by halving them. Rough weights are the smooth ones with independent noise.",
    cells,
    measure,
    draw,
    verdicts,
)
