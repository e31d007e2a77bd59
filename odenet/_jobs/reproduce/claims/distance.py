"""How far a ResNet is from its Neural ODE (section 2, Proposition 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from odenet._backend import registry as _registry
from odenet._backend.solve import solve
from odenet._jobs.reproduce.controls import thresholds
from odenet._jobs.reproduce.drawing import finish, over_depth, slope
from odenet._jobs.reproduce.network import NOISE, Weights, field, rough_weights, smooth_weights, states
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, values
from odenet._jobs.reproduce.verdict import Verdict, below, falls, from_depth, stays
from odenet._problem.depth import Depth, Kind
from odenet._solvers.names import solver as solver_named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISTANCE, BOUND, REFINEMENT = "distance", "bound of Proposition 1", "error of the Neural ODE's solution"
SMOOTH, ROUGH, HELD, MEAN = "smooth weights", "rough weights, linear", "rough weights, held", "rough weights, mean ODE"
EXTREMAL = "extremal problem"
CURVES = (SMOOTH, ROUGH, HELD, MEAN, EXTREMAL)
"""Rough weights have no one ODE: their lines, the weights held over each step, or the mean field of their noise."""

LIMITS = thresholds("distance")
_WEIGHTS = {SMOOTH: smooth_weights, ROUGH: rough_weights}
_LIPSCHITZ, _CURVATURE = 1.0, 1.0  # L and max |x''| of the extremal problem
_QUADRATURE = 40  # nodes of the mean over the noise, exact for tanh to about 1e-9


def cells(choices: Settings) -> tuple[CurveCell, ...]:
    """The cells of the claim, of depths N = 4 to 512."""
    return choices.cells(list(CURVES), choices.depths(4, 512, quick=256), seeds=choices.sized(3, 5, 5))


def measure(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """The largest distance over layers and batch, with the bound and the error of what it is measured against."""
    n = cell.depth
    if cell.curve == EXTREMAL:
        return _extremal(cell, choices)
    weights = _WEIGHTS.get(cell.curve, rough_weights)(cell.seed, np.arange(n + 1) / n)
    layers = {name: leaf[:-1] for name, leaf in weights.items()}
    network = _trajectory(cell, choices, layers, "piecewise", "euler", n)
    substeps = max(2, 128 // n) if cell.curve == MEAN else max(8, 256 // n)  # the mean field has no kinks

    def solved(steps: int) -> np.ndarray:
        if cell.curve == MEAN:
            return _mean_ode(cell.seed, n * steps)
        if cell.curve == HELD:
            repeated = {name: np.repeat(leaf, steps, axis=0) for name, leaf in layers.items()}
            return _trajectory(cell, choices, repeated, "piecewise", "rk4", n * steps)
        return _trajectory(cell, choices, weights, "linear", "rk4", n * steps)

    ode = solved(substeps)
    coarse = solved(substeps // 2)  # of order 4, so that half the steps have 16 times the error
    points = (
        cell.point(DISTANCE, _apart(network, ode[::substeps])),
        cell.point(REFINEMENT, _apart(coarse, ode[::2]) / 15),
    )
    return points if cell.curve not in _WEIGHTS else (*points, cell.point(BOUND, bound(weights, ode)))


def _extremal(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """`x' = L x + C s - L C s²/2` from 0, whose solution is C s²/2: x'' is C throughout, and every error has one sign.

    Euler's error is then `C/(2 N L) ((1 + L/N)**N - 1)`, which over the bound tends to 1. The seed draws nothing.
    """
    n = cell.depth
    nodes = np.arange(n) / n
    backend = _registry.backend(cell.backend)
    with backend.prepare("float64", choices.device):
        solution = solve(
            lambda t, x, s: _LIPSCHITZ * x + _CURVATURE * (s - _LIPSCHITZ * s * s / 2),
            np.zeros(1),
            Depth(nodes.reshape(-1, 1), "piecewise"),
            solver="euler",
            ts="all",
            backend=_registry.entry(cell.backend),
        )
        states = backend.to_numpy(solution.ys)[:, 0]
    exact = _CURVATURE * (np.arange(n + 1) / n) ** 2 / 2
    most = np.expm1(_LIPSCHITZ) / (2 * n * _LIPSCHITZ) * _CURVATURE
    return cell.point(DISTANCE, np.abs(states - exact).max()), cell.point(BOUND, most)


def _mean_ode(seed: int, steps: int) -> np.ndarray:
    """`x' = E tanh(x (a + A) + b + B)` over the noise A, B of rough weights, by rk4: shape (steps + 1, BATCH, WIDTH).

    The argument of tanh is normal, with the variance |x|² NOISE["a"]² + NOISE["b"]² in every entry, so the mean is an
    integral over one number: Gauss and Hermite's quadrature.
    """
    places, shares = np.polynomial.hermite_e.hermegauss(_QUADRATURE)
    shares = shares / shares.sum()
    half = smooth_weights(seed, np.arange(2 * steps + 1) / (2 * steps))

    def slope(x: np.ndarray, node: int) -> np.ndarray:
        spread = np.sqrt((x**2).sum(1, keepdims=True) * NOISE["a"] ** 2 + NOISE["b"] ** 2)
        mean = x @ half["a"][node] + half["b"][node]
        return np.tanh(mean[..., None] + spread[..., None] * places) @ shares

    trajectory, h = [states(seed)], 1 / steps
    for step in range(steps):
        x = trajectory[-1]
        k1 = slope(x, 2 * step)
        k2 = slope(x + h / 2 * k1, 2 * step + 1)
        k3 = slope(x + h / 2 * k2, 2 * step + 1)
        k4 = slope(x + h * k3, 2 * step + 2)
        trajectory.append(x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    return np.stack(trajectory)


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


def _trajectory(
    cell: CurveCell, choices: Settings, weights: Weights, kind: Kind, solver: str, steps: int
) -> np.ndarray:
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
    """Distances with their bounds, and what rough weights are near."""
    bounds, rough = figure.subplots(1, 2)
    for index, curve in enumerate((SMOOTH, ROUGH, EXTREMAL)):
        over_depth(bounds, values(points, curve, DISTANCE), curve, index)
        over_depth(bounds, values(points, curve, BOUND), f"{curve}: bound" if index == 0 else "_", index, "--")
    slope(bounds, values(points, SMOOTH, DISTANCE), 1, "1/N")
    finish(bounds, "largest distance over layers and batch", "A ResNet and its Neural ODE (dashed: Proposition 1)")
    for index, curve in enumerate((ROUGH, HELD, MEAN)):
        over_depth(rough, values(points, curve, DISTANCE), curve, index)
    slope(rough, values(points, HELD, DISTANCE), 1, "1/N")
    slope(rough, values(points, MEAN, DISTANCE), 0.5, "N^-1/2")
    finish(rough, "", "Independent layers: three ODEs")


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """Orders, the bound and that it is attained, and whether the Neural ODE was solved well enough to say so."""
    apart = {curve: values(points, curve, DISTANCE) for curve in CURVES}
    most = {curve: values(points, curve, BOUND) for curve in CURVES}
    averaged, tolerance = int(LIMITS["averaged_from_depth"]), LIMITS["limit_tolerance"]
    deepest = max(apart[EXTREMAL], default=1)
    return (
        falls(
            f"{SMOOTH}: the distance falls as 1/N",
            apart[SMOOTH],
            LIMITS["smooth_order"],
            LIMITS["smooth_tolerance"],
            int(LIMITS["smooth_from_depth"]),
        ),
        stays(f"{ROUGH}: the distance does not fall", apart[ROUGH], LIMITS["rough_tolerance"], averaged),
        falls(
            f"{HELD}: the distance to the ODE of the held weights falls as 1/N",
            apart[HELD],
            LIMITS["held_order"],
            tolerance,
            averaged,
        ),
        falls(f"{MEAN}: the distance to the mean ODE falls as N^-1/2", apart[MEAN], LIMITS["mean_order"], tolerance),
        *(
            below(f"{curve}: the distance is below the bound of Proposition 1", apart[curve], most[curve])
            for curve in (SMOOTH, ROUGH, EXTREMAL)
        ),
        below(
            f"the bound is tight: the {EXTREMAL}'s distance is {LIMITS['tight']:g} of it at the largest N",
            from_depth(most[EXTREMAL], deepest),
            apart[EXTREMAL],
            1 / LIMITS["tight"],
        ),
        *(
            below(
                f"{curve}: the Neural ODE's own error is small",
                values(points, curve, REFINEMENT),
                apart[curve],
                LIMITS["own_error"],
            )
            for curve in (SMOOTH, ROUGH, HELD, MEAN)
        ),
    )


REPRODUCTION = Reproduction(
    "distance",
    "Section 2, Proposition 1: a ResNet is within (e^L - 1) / (2 N L) max |d_s φ + d_x φ[φ]| of the Neural ODE through "
    "its weights, and that is tight. It is O(1/N) if the weights are smooth in depth. If they are not, the bound says "
    "nothing, and which ODE a network is near is a matter of how it goes between the layers: it stays away from the "
    "one with linear weights, tends as 1/N to the one whose weights are held over each step, which is another one for "
    "every N, and as N^-1/2 to the one of the mean field (Chizat 2025, for networks in training).",
    "Tanh networks of width 16, a batch of 8, float64. The Neural ODE has weights that are linear between the layers' "
    "and is solved by rk4 with at least 8 steps in each interval (at least 256 in all), so that no kink of the weights "
    "lies inside a step; its error is seen by halving them. Rough weights are the smooth ones with independent noise. "
    "The extremal problem is x' = L x + C s - L C s²/2 with L = C = 1, where every inequality of the proof is one.",
    cells,
    measure,
    draw,
    verdicts,
    (12.0, 5.0),
)
