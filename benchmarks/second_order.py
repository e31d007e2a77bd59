"""heun and fehlberg2: where the evaluations go in which odenet and torchdiffeq differ at equal error, cause by cause.

DETEST, float64, tolerances 1e-3 to 1e-6, up to 10 000 steps. A loop of its own in NumPy takes the steps, with one
choice of torchdiffeq's after the other; with none of them it takes odenet's steps, with all of them torchdiffeq's
(as many: runs with as many evaluations as the library itself in detest.csv, within 3 %).

ratio: evaluations of odenet's choices over those that this choice needs for the same error; above 1, odenet needs more.
The means are geometric, over problems and tolerances. order: of the error in the evaluations, its median, with the two
tightest tolerances. error: over odenet's at the same tolerance, the median.

last slope: the slope of the last stage serves as the first of the next step. Neither method has it so: heun's last
stage is at Euler's prediction, fehlberg2's at the first-order solution, not at the state that the step ends with. A
step costs 1 and 2 evaluations then for 2 and 3, and is no function of the state alone any more: it depends on the step
before, so that an exact gradient, a restart and a reversal would need that slope as a part of the state.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.detest import RESULTS, read
from benchmarks.equal_error import interpolated
from odenet import PIDController, solver
from odenet._test_problems.detest import DETEST
from odenet._test_problems.reference import TestProblem, flattened, mixed_error, reference
from odenet.kit import landing, resumed

TITLE = "Where the evaluations of second-order pairs go"
SECOND_ORDER = ("heun", "fehlberg2")
SOLVERS = (*SECOND_ORDER, "bosh3", "dopri5")
TOLERANCES = tuple(float(f"1e-{k}") for k in range(3, 7))
MOST = 10_000


@dataclass(frozen=True)
class Choices:
    """Choices in which the libraries differ; the defaults are odenet's.

    Args:
        last_slope: the last stage's slope is the next step's first.
        safety: factor on every new step.
        never_shrinks: a step after an accepted one is at least as long.
        overshoots: the last step is not clipped to the end, and the state there is interpolated.
        proportional, integral: exponents of the controller, times the order of its estimate.
    """

    last_slope: bool = False
    safety: float = 0.85
    never_shrinks: bool = False
    overshoots: bool = False
    proportional: float = 0.0
    integral: float = 1.0


OF_ODENET = Choices()
OF_TORCHDIFFEQ = Choices(last_slope=True, safety=0.9, never_shrinks=True, overshoots=True)
CHOICES = {
    "odenet's": OF_ODENET,
    "last slope": Choices(last_slope=True),
    "safety 0.9": Choices(safety=0.9),
    "never shrinks": Choices(never_shrinks=True),
    "overshoots": Choices(overshoots=True),
    "all but the last slope": Choices(safety=0.9, never_shrinks=True, overshoots=True),
    "torchdiffeq's": OF_TORCHDIFFEQ,
    "PI 0.4, 0.3": Choices(proportional=0.4, integral=0.3),
}
LIBRARIES = {"odenet's": "jax", "torchdiffeq's": "torchdiffeq"}  # by whom a row's runs stand in detest.csv, too
Point = tuple[float, float]


def rows() -> Iterator[dict[str, Any]]:
    """A row for each solver and choice."""
    known = read(RESULTS)
    for name in SOLVERS:
        curves: dict[str, dict[str, list[Point]]] = {}
        same: dict[str, list[bool]] = {}
        for label, choices in CHOICES.items():
            if name not in SECOND_ORDER and choices.last_slope:
                continue  # theirs is the next step's first slope
            curves[label], same[label] = {}, []
            for problem in DETEST.values():
                points = curves[label].setdefault(problem.name, [])
                for tolerance in TOLERANCES:
                    run = _run(problem, name, tolerance, choices)
                    if run is None:
                        continue
                    error, evaluations = run
                    points.append((math.log(error), math.log(evaluations)))
                    peer = known.get((LIBRARIES.get(label, ""), problem.name, name, tolerance))
                    if peer is not None and peer.f_evaluations is not None:
                        same[label].append(abs(peer.f_evaluations - evaluations) <= 0.03 * evaluations)
            yield _row(name, label, curves, same[label])


def _row(name: str, label: str, curves: dict[str, dict[str, list[Point]]], same: list[bool]) -> dict[str, Any]:
    base, these = curves["odenet's"], curves[label]
    ratios = [
        evaluations - other
        for problem, points in base.items()
        for error, evaluations in points
        if (other := interpolated(these[problem], error)) is not None
    ]
    errors = [b[0] - a[0] for problem in base for a, b in zip(base[problem], these[problem], strict=False)]
    orders = [
        (points[-2][0] - points[-1][0]) / (points[-1][1] - points[-2][1])
        for points in these.values()
        if len(points) > 1 and points[-1][1] != points[-2][1]
    ]
    return {
        "solver": name,
        "choices": label,
        "points": len(ratios),
        "mean ratio": math.exp(statistics.fmean(ratios)),
        "median ratio": math.exp(statistics.median(ratios)),
        "10 %": math.exp(statistics.quantiles(ratios, n=10)[0]),
        "90 %": math.exp(statistics.quantiles(ratios, n=10)[-1]),
        "order": statistics.median(orders) if name in SECOND_ORDER else None,
        "error": math.exp(statistics.median(errors)),
        "as many": f"{sum(same)} of {len(same)}" if same else None,
    }


def _run(problem: TestProblem, name: str, tolerance: float, choices: Choices) -> tuple[float, int] | None:
    """The error at the end and the evaluations; None beyond `MOST` steps."""
    field, y, tree = flattened(problem)
    counted = 0

    def f(t: float, at: np.ndarray) -> np.ndarray:
        nonlocal counted
        counted += 1
        return field(t, at)

    end = _end(f, y, problem.t1, name, tolerance, choices)
    return None if end is None else (mixed_error(tree(end), reference(problem).state), counted)


def _end(
    f: Callable[[float, np.ndarray], np.ndarray],
    y: np.ndarray,
    end: float,
    name: str,
    tolerance: float,
    choices: Choices,
) -> np.ndarray | None:
    """The state at the end."""
    tableau = solver(name).tableau
    order, b = tableau.order_low + 1, np.array(tableau.b)
    difference, a = b - np.array(tableau.b_low), [np.array(row) for row in tableau.a]
    control = PIDController(
        tolerance, tolerance, pcoeff=choices.proportional, icoeff=choices.integral, safety=choices.safety
    )
    reuses = choices.last_slope or tableau.fsal
    tried = 0

    def norm(x: np.ndarray, scale: np.ndarray) -> float:
        return float(np.sqrt(np.mean((x / (tolerance + tolerance * scale)) ** 2)))

    t, past, first = 0.0, (1.0, 1.0), f(0.0, y)
    d0, d1 = norm(y, abs(y)), norm(first, abs(y))
    small = control.trial(d0, d1)
    size = control.first(order, small, d1, norm(f(small, y + small * first) - first, abs(y)) / small)
    with np.errstate(all="ignore"):
        while tried < MOST:
            tried += 1
            t1, lands = (t + size, t + size >= end) if choices.overshoots else landing(t, size, end, 1.0, 4e-15)
            h, k = t1 - t, [first]
            for row, c in zip(a[1:], tableau.c[1:], strict=True):
                k.append(f(t + c * h, y + h * (row @ np.array(k))))
            slopes = np.array(k)
            y1 = y + h * (b @ slopes)
            error = norm(h * (difference @ slopes), np.maximum(abs(y), abs(y1)))
            good, factor, past = control.judge(order, error, past)
            if not good:
                size = h * factor
                continue
            if lands:
                break
            if choices.never_shrinks:
                factor = max(factor, 1.0)
            size, t, y = resumed(h * factor, size, lands), t1, y1
            first = k[-1] if reuses else f(t, y)
        else:
            return None
    if not choices.overshoots:
        return y1
    s, last = (end - t) / h, k[-1] if reuses else f(t1, y1)  # Hermite's interpolant
    return (1 - s) * y + s * y1 + s * (s - 1) * ((1 - 2 * s) * (y1 - y) + (s - 1) * h * first + s * h * last)
