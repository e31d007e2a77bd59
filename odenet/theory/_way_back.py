"""The discrete adjoint's recovery of states, as a solver of its own."""

from __future__ import annotations

from odenet._errors import InputError
from odenet._gradients.adjoints import DiscreteAdjoint
from odenet._problem.depth import Depth
from odenet._solvers.runge_kutta import Solver
from odenet._solvers.tableau import Tableau
from odenet.theory._host import layers_at


def way_back(solver: Solver, method: DiscreteAdjoint) -> Solver:
    """The discrete adjoint's recovery of y[n] from y[n+1], as an explicit Runge-Kutta method.

    One step of it from y[n+1], backward in time, over the same step's weights, is what `method` recovers: the reversed
    step `z = y - D_n^reversed(y)`, then `z <- y - D_n(z)` for each further iteration, and once more for the
    correction. Each evaluates the solver's stages at a point that is y plus known multiples of earlier stages, which is
    what a Runge-Kutta method is. So any backend recovers all states by a solve from t1 to t0, with `reversed_depth`.

    Args:
        solver: of the forward solve.
        method: reversed steps only (`predictor="reverse"`), without tolerance and anchors.

    Raises:
        InputError: a method whose recovery depends on more than y[n+1].
    """
    evaluations = increments(method)
    forward = solver.tableau
    rows = [list(row) for row in forward.a]
    z = list(forward.b)  # the point reached, as multiples of all stages so far, in steps of size -h
    for _ in range(evaluations - 1):
        start = len(rows)
        for row in forward.a:  # stage z + h sum a k: forward, hence minus
            inner = [-entry for entry in row]
            rows.append([*z, *[0.0] * (start - len(z)), *inner])
        z = [*[0.0] * start, *forward.b]
    tableau = Tableau(tuple(map(tuple, rows)), tuple(z), tuple(float(sum(row)) for row in rows), 1)
    name = f"{solver.name} back by {method.label}"
    return Solver(name, tableau, "recovered states", "Sander, Ablin and Peyre 2022, section 4.1")


def reversed_depth(depth: Depth) -> Depth:
    """The same weights in reverse order, for a solve from t1 to t0."""
    return depth if depth.kind == "shared" else layers_at(depth, range(depth.layers)[::-1], depth.kind)


def increments(method: DiscreteAdjoint) -> int:
    """How often `method` evaluates the increment of a step to recover the state before it: each gains an order.

    Raises:
        InputError: a method whose recovery depends on more than y[n+1].
    """
    if method.extrapolates or method.tolerance is not None or method.anchors is not None:
        raise InputError(
            f"{method.label} as a Runge-Kutta method", "discrete-adjoint with iterations= and correct= alone"
        )
    return method.iterations + method.correct
