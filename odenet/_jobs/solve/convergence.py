"""Runs of one problem at several step counts, and the orders of convergence that they show."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from odenet._report.rows import column
from odenet._test_problems.reference import Reference, TestProblem

_ROUNDING = {"float32": 2.0**-23, "float64": 2.0**-52}
_COARSE = 0.5  # relative error above which nothing of the solution was found


@dataclass(frozen=True)
class EqualStepSolve:
    """One solve of a test problem in equal steps; the fields are the columns of a results file."""

    problem: str = column("test problem, as `odenet list problems` names it", "")
    backend: str = column("backend that solved it", "")
    solver: str = column("solver by name", "")
    order: int = column("order that the solver promises", 0)
    dtype: str = column("number type of the state; the reference is float64 always", "")
    device: str = column("device it ran on", "")
    steps: int = column("equal steps from t0 to t1", 0)
    f_evaluations: int = column("field evaluations", 0)
    relative_error: float = column("at t1: largest |y - reference| / largest |reference|; nan: not finite", 0.0)
    seconds: float = column("wall time of this one solve, compilation included", 0.0)
    result: str = column("success, or what went wrong", "")


def floor(run: EqualStepSolve, uncertainty: float) -> float:
    """Relative error under which rounding, or the reference's own uncertainty, is what one sees.

    Rounding is counted as one unit in the last place a step, all with the same sign.
    """
    return max(_ROUNDING[run.dtype] * max(run.steps, 16), 10 * uncertainty)


def observed_order(coarse: EqualStepSolve, fine: EqualStepSolve) -> float | None:
    """`log(error ratio) / log(step ratio)` of two runs; None where an error is zero or not finite."""
    errors = coarse.relative_error, fine.relative_error
    if coarse.steps == fine.steps or not all(math.isfinite(error) and error > 0 for error in errors):
        return None
    return math.log(errors[0] / errors[1]) / math.log(fine.steps / coarse.steps)


def fitted_order(runs: Sequence[EqualStepSolve], uncertainty: float = 0.0) -> float | None:
    """The slope of log(error) against log(1 / steps) by least squares.

    Runs outside `floor < error < 1/2` are left out: they show rounding, or nothing. None with fewer than two runs left.
    """
    used = [run for run in runs if floor(run, uncertainty) < run.relative_error < _COARSE]
    xs = [-math.log(run.steps) for run in used]
    ys = [math.log(run.relative_error) for run in used]
    if len(set(xs)) < 2:
        return None
    return statistics.linear_regression(xs, ys).slope


def series(runs: Sequence[EqualStepSolve]) -> dict[tuple[str, str], list[EqualStepSolve]]:
    """The runs of each backend and solver, from few steps to many."""
    groups: dict[tuple[str, str], list[EqualStepSolve]] = {(run.backend, run.solver): [] for run in runs}
    for run in sorted(runs, key=lambda run: run.steps):
        groups[run.backend, run.solver].append(run)
    return groups


def as_json(problem: TestProblem, runs: Sequence[EqualStepSolve], truth: Reference) -> str:
    """The runs, the fitted orders and what they are relative to; null where an error is not finite."""

    def plain(run: EqualStepSolve) -> dict[str, Any]:
        error = run.relative_error if math.isfinite(run.relative_error) else None
        return {**dataclasses.asdict(run), "relative_error": error}

    whole = {
        "problem": problem.name,
        "t0": problem.t0,
        "t1": problem.t1,
        "reference": truth.method,
        "reference_uncertainty": truth.uncertainty,
        "orders": [
            {"backend": backend, "solver": solver, "fitted_order": fitted_order(group, truth.uncertainty)}
            for (backend, solver), group in series(runs).items()
        ],
        "runs": [plain(run) for run in runs],
    }
    return json.dumps(whole, indent=2, allow_nan=False) + "\n"
