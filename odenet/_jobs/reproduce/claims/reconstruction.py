"""How well the activations of a network are recovered from its output (section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from odenet._backend import registry as _registry
from odenet._backend.solve import solve
from odenet._gradients.names import DiscreteAdjoint
from odenet._jobs.reproduce.controls import thresholds
from odenet._jobs.reproduce.drawing import finish, over_depth
from odenet._jobs.reproduce.network import field, rough_weights, smooth_weights, states
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, values
from odenet._jobs.reproduce.verdict import Verdict, falls
from odenet._problem.depth import Depth, Kind
from odenet._solvers.names import SOLVERS
from odenet._solvers.names import solver as solver_named
from odenet.theory import reversed_depth, way_back

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ERROR = "largest relative error of a recovered state"
LIMITS = thresholds("reconstruction")
_PAPER, _CORRECTED = DiscreteAdjoint(correct=False), DiscreteAdjoint()
METHODS: dict[str, tuple[str, Kind, DiscreteAdjoint, float]] = {
    "Euler, paper": ("euler", "piecewise", _PAPER, 1),
    "Euler, corrected": ("euler", "piecewise", _CORRECTED, 2),
    "Euler, iterations=2": ("euler", "piecewise", DiscreteAdjoint(iterations=2), 3),
    "Heun, paper": ("heun", "linear", _PAPER, 3),
    "Heun, corrected": ("heun", "linear", _CORRECTED, 4),
}
"""Solver, weights along depth, method, and the order to be seen. Heun's is one above the paper's bound: the leading
error of a step of even order and that of the step back cancel."""

ROUGH: dict[str, tuple[str, Kind, DiscreteAdjoint, float]] = {
    "Euler, paper, rough": ("euler", "piecewise", _PAPER, 1.25),
    "Euler, corrected, rough": ("euler", "piecewise", _CORRECTED, 2.25),
    "Heun, paper, rough": ("heun", "linear", _PAPER, 1.25),
    "Heun, corrected, rough": ("heun", "linear", _CORRECTED, 2.25),
    "rk4, paper, rough": ("rk4", "linear", _PAPER, 1.25),
    "rk4, corrected, rough": ("rk4", "linear", _CORRECTED, 2.25),
}
"""The same with independent layers. A step that reads two layers' weights, which have nothing to do with each other,
loses h² whatever its solver. The mean of these losses adds up to O(h), what is random in them to O(h^1.5), as a random
walk: an order between 1 and 1.5, and one more with the correction."""

CURVES = METHODS | ROUGH


def cells(choices: Settings) -> tuple[CurveCell, ...]:
    """The cells of the claim, of depths N = 2 to 4096."""
    return choices.cells(list(CURVES), choices.depths(2, 4096, quick=256))


def measure(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """All states forward, then all states from the last one back."""
    kind = CURVES[cell.curve][1]
    along = rough_weights if cell.curve in ROUGH else smooth_weights
    nodes = np.arange(cell.depth + (kind == "linear")) / cell.depth
    backend = _registry.backend(cell.backend)
    with backend.prepare("float64", choices.device):
        there, back = _there_and_back(cell.backend, cell.curve)(states(cell.seed), along(cell.seed, nodes))
        ys, rebuilt = backend.to_numpy(there), backend.to_numpy(back)[::-1]
    errors = np.linalg.norm(rebuilt - ys, axis=(1, 2)) / np.linalg.norm(ys, axis=(1, 2))
    return (cell.point(ERROR, errors.max()),)


@cache
def _there_and_back(backend: str, curve: str) -> Callable[[Any, Any], tuple[Any, Any]]:
    """All states of both solves; compiled once for the seeds of a depth."""
    solver, kind, method, _ = CURVES[curve]
    reverse = way_back(SOLVERS[solver], method)

    def solves(y0: Any, tree: Any) -> tuple[Any, Any]:
        weights = Depth(tree, kind)
        there = solve(field, y0, weights, solver=solver_named(solver), ts="all", backend=_registry.entry(backend))
        around = reversed_depth(weights)
        back = solve(
            field, there.y1, around, t0=1.0, t1=0.0, solver=reverse, ts="all", backend=_registry.entry(backend)
        )
        return there.ys, back.ys

    return _registry.backend(backend).compiled(solves)


def draw(points: Sequence[Point], figure: Figure) -> None:
    """Draw the error of reconstruction over depth."""
    smooth, rough = figure.subplots(1, 2, sharey=True)
    for axes, curves in ((smooth, METHODS), (rough, ROUGH)):
        for index, curve in enumerate(curves):
            over_depth(axes, values(points, curve, ERROR), curve, index)
    finish(smooth, "largest relative error of a recovered state", "Weights smooth in depth")
    finish(rough, "", "Independent layers")


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """The verdicts on the orders that were measured."""
    least = int(LIMITS["from_depth"])
    return tuple(
        falls(
            f"{curve}: the error of recovered states",
            values(points, curve, ERROR),
            order,
            LIMITS["rough_tolerance" if curve in ROUGH else "paper_tolerance" if order == 1 else "tolerance"],
            least,
        )
        for curve, (_, _, _, order) in CURVES.items()
    )


REPRODUCTION = Reproduction(
    "reconstruction",
    "Section 4: the activations of a network can be rebuilt from its output, with an error of O(1/N) for a ResNet "
    "(Euler) whose residual functions are Lipschitz in their input, and of O(1/N²) for a HeunNet that is smooth in "
    "depth, too.",
    "Tanh networks of width 16 with random weights that are smooth in depth, a batch of 8, float64. Every state of the "
    "forward pass is compared with the one found on the way back. The correction and the iteration are this library's. "
    "Heun is one order better than the paper's bound, since the leading errors of a step of even order and of the step "
    "back cancel; it needs weights that are smooth in depth, since a step reads those of two layers. With independent "
    "layers Heun and rk4 have about Euler's orders, and the correction still gains one.",
    cells,
    measure,
    draw,
    verdicts,
    (12.0, 5.0),
)
