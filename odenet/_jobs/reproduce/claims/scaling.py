"""How large a step may be at a random start: identity, a limit or growth (Marion, Fermanian, Biau, Vert, JMLR 2025)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from odenet._backend import registry as _registry
from odenet._backend.solve import solve
from odenet._jobs.reproduce.controls import thresholds
from odenet._jobs.reproduce.drawing import COLOURS, finish, over_depth
from odenet._jobs.reproduce.network import BATCH, WIDTH, states, tanh
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, values
from odenet._jobs.reproduce.verdict import Verdict, falls, stays
from odenet._problem.depth import Depth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOVED = "how far the last state is from the first, relative"
LIMITS = thresholds("scaling")
HURST = (0.5, 0.7, 0.9)
"""Hurst exponents of the path whose increments are the layers: independent for 1/2, more correlated towards 1."""

APART = (-0.25, 0.0, 0.25)
"""What the scale L**-beta has more in its exponent than H: too little, what has a limit, and too much."""


def curve(hurst: float, apart: float) -> str:
    """The name of a start and a scale."""
    return f"H={hurst:g}, scale L^-{hurst + apart:g}"


CURVES = {curve(hurst, apart): (hurst, apart) for hurst in HURST for apart in APART}


def layers(seed: int, hurst: float, depth: int) -> np.ndarray:
    """Increments of fractional Brownian motion of variance 1, an own path for each entry: (depth, WIDTH, WIDTH)."""
    lags = np.abs(np.arange(depth)[:, None] - np.arange(depth)).astype(float)
    power = 2 * hurst
    covariance = ((lags + 1) ** power - 2 * lags**power + np.abs(lags - 1) ** power) / 2
    factor = np.linalg.cholesky(covariance + 1e-10 * np.eye(depth))
    noise = np.random.default_rng([seed, 7, depth]).standard_normal((depth, WIDTH * WIDTH))
    return (factor @ noise).reshape(depth, WIDTH, WIDTH) / WIDTH**0.5


def cells(choices: Settings) -> tuple[CurveCell, ...]:
    """The cells of the claim, of depths L = 16 to 1024."""
    return choices.cells(list(CURVES), choices.depths(16, 1024, quick=256), seeds=8)


def measure(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """One pass through a network at its start."""
    hurst, apart = CURVES[cell.curve]
    backend = _registry.backend(cell.backend)
    start = states(cell.seed)
    scaled = layers(cell.seed, hurst, cell.depth) * cell.depth ** (1 - hurst - apart)  # the solver's step has 1/L
    with backend.prepare("float64", choices.device):
        end = backend.to_numpy(_pass(cell.backend)(start, scaled))
    moved = np.linalg.norm(end - start, axis=1) / np.linalg.norm(start, axis=1)
    return (cell.point(MOVED, float(np.sqrt((moved**2).mean()))),)


@cache
def _pass(backend: str) -> Callable[[Any, Any], Any]:
    def last(y0: Any, w: Any) -> Any:
        weights = Depth(w, "piecewise")
        entry = _registry.entry(backend)
        return solve(lambda t, y, v: tanh(y) @ v, y0, weights, solver="euler", backend=entry).y1

    return _registry.backend(backend).compiled(last)


def draw(points: Sequence[Point], figure: Figure) -> None:
    """By regularity of the start, how far states go at three scales."""
    panels = figure.subplots(1, len(HURST), sharey=True)
    for axes, hurst in zip(panels, HURST, strict=True):
        for index, apart in enumerate(APART):
            over_depth(axes, values(points, curve(hurst, apart), MOVED), f"L^-{hurst + apart:g}", index)
            over = sorted(values(points, curve(hurst, apart), MOVED))
            if over:
                first = float(np.median(values(points, curve(hurst, apart), MOVED)[over[0]]))
                line = first * (np.array(over) / over[0]) ** -apart
                axes.loglog(over, line, ":", color=COLOURS[index], linewidth=1)
        finish(axes, "|y[L] - y[0]| / |y[0]|" if hurst == HURST[0] else "", f"H = {hurst:g} (dotted: L^(H - β))")


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """The exponent of how far a state goes is H - beta: no more than that tells the three regimes apart."""
    behaviour = {-0.25: "grows without limit, as L^0.25", 0.0: "has a limit", 0.25: "tends to the identity, as L^-0.25"}
    return tuple(
        _goes(f"{name}: the network {behaviour[apart]}", values(points, name, MOVED), apart)
        for name, (_, apart) in CURVES.items()
    )


def _goes(claim: str, over_seeds: dict[int, list[float]], order: float) -> Verdict:
    tolerance = LIMITS["tolerance"]
    return (
        stays(claim, over_seeds, tolerance)
        if order == 0
        else falls(claim, over_seeds, order, tolerance, straight=False)
    )


REPRODUCTION = Reproduction(
    "scaling",
    "Marion, Fermanian, Biau and Vert (JMLR 2025): at a start with independent layers the scale of a step that has a "
    "limit other than the identity is L^-1/2, a stochastic differential equation's, and not the 1/L of an ODE; with "
    "layers that are increments of fractional Brownian motion of exponent H it is L^-H, towards 1/L as they become "
    "alike. With a smaller scale a deep network is the identity, with a larger one it grows without limit.",
    f"Networks y + L^-β tanh(y) v[n] of width {WIDTH} at their start, a batch of {BATCH}, float64; entries of v are "
    "increments of variance 1 of fractional Brownian motion over the layers, by Cholesky. Since tanh is bounded, "
    "growth is a power of L here, and not an explosion. Their networks are wider, and they train them, too.",
    cells,
    measure,
    draw,
    verdicts,
    (13.0, 4.5),
)
