"""DETEST (Hull, Enright, Fellen, Sedgwick 1972): its 25 problems by every adaptive solver, rtol = atol, float64.

A ratio is the error at t = 20, the largest |y - reference| / (1 + |reference|) of an entry, over the tolerance. worst
and median: over the problems, by JAX. scipy: SciPy's solver of the same order, RK23 for orders 2 and 3, RK45 for 5 and
DOP853 for 8. beyond 100: problems whose error is more than 100 times the tolerance although SciPy's is not, with their
ratio and SciPy's. same steps: cells in which torch and JAX accepted and rejected equally many; torch is run where JAX
tried at most 3000 steps. not run: problems that need more than four million steps. evaluations: the median over
problems.

fehlberg2 estimates the error of its first-order solution, which the coefficients make small (1/256 of Heun's), and goes
on with the second-order one: its steps are too long for its tolerance, in torchdiffeq as here (detest.csv has both).

The rows behind it are in detest.csv. A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import csv
import functools
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from scipy.integrate import solve_ivp

import odenet
from odenet import PIDController, Result, Solution, Stats, _tree
from odenet._files import write_text
from odenet._report.rows import as_csv, column, from_json
from odenet._test_problems.detest import DETEST
from odenet._test_problems.reference import TestProblem, arrays, flattened, mixed_error, reference

TITLE = "DETEST"
SOLVERS = ("heun", "fehlberg2", "bosh3", "dopri5", "tsit5", "dopri8")
TOLERANCES = tuple(float(f"1e-{k}") for k in range(3, 10))
SCIPY = {"heun": "RK23", "fehlberg2": "RK23", "bosh3": "RK23", "dopri5": "RK45", "tsit5": "RK45", "dopri8": "DOP853"}
MOST = {
    "jax": 4_000_000,
    "torch": 3_000,
    "torchdiffeq": 1_000,
    "diffrax": 20_000,
}  # steps, by JAX's count for the others
RESULTS = Path(__file__).parent / "results" / "detest.csv"
PARTIAL = RESULTS.with_suffix(".partial.csv")


@dataclass(frozen=True)
class Run:
    """One solve; the fields are the columns of detest.csv."""

    by: str = column("torch, jax, scipy, torchdiffeq or diffrax", "")
    problem: str = column("of DETEST", "")
    solver: str = column("by odenet's name, SciPy's by its own", "")
    tolerance: float = column("rtol = atol", 0.0)
    result: str = column("success, or why there is no error", "")
    error: float | None = column("at t = 20: largest |y - reference| / (1 + |reference|)")
    ratio: float | None = column("error / tolerance")
    f_evaluations: int | None = column("of the field")
    accepted: int | None = column("steps")
    rejected: int | None = column("steps")

    @property
    def key(self) -> tuple[str, str, str, float]:
        """What was run."""
        return self.by, self.problem, self.solver, self.tolerance


Key = tuple[str, str, str, float]


def rows() -> Iterator[dict[str, Any]]:
    """A row for each solver and tolerance."""
    runs = measured()
    for solver in SOLVERS:
        for tolerance in TOLERANCES:
            yield _row(runs, solver, tolerance)


def measured() -> dict[Key, Run]:
    """Every run, those of an interrupted run before this one among them."""
    runs = read(PARTIAL)
    for by, solvers in offered().items():
        for problem in DETEST.values():
            for solver in solvers:
                found = [_run(by, problem, solver, tolerance, runs) for tolerance in TOLERANCES]
                if any(run.key not in runs for run in found):
                    runs |= {run.key: run for run in found}
                    write_text(PARTIAL, as_csv(Run, runs.values()))
            print(f"{by} {problem.name}", file=sys.stderr, flush=True)
        jax.clear_caches()
    write_text(RESULTS, as_csv(Run, runs.values()))
    PARTIAL.unlink()
    return runs


def read(path: Path) -> dict[Key, Run]:
    """The runs in a file; none where there is no file."""
    if not path.exists():
        return {}
    found = {}
    with path.open(newline="") as file:
        for plain in csv.DictReader(file):
            row: dict[str, Any] = {name: value or None for name, value in plain.items()}
            for name in ("f_evaluations", "accepted", "rejected"):
                row[name] = None if row[name] is None else int(row[name])
            run = from_json(Run, row)
            found[run.key] = run
    return found


def offered() -> dict[str, tuple[str, ...]]:
    """The solvers that each can be asked for, JAX first, since its steps say what is affordable."""
    every = {"jax": SOLVERS, "scipy": tuple(dict.fromkeys(SCIPY.values())), "torch": SOLVERS}
    for peer in ("torchdiffeq", "diffrax"):
        entry = odenet.available().get(peer)
        if entry is not None:
            gradient = odenet.gradient("backprop")
            every[peer] = tuple(s for s in SOLVERS if entry.offers(odenet.solver(s), gradient, adaptive=True))
    return every


def _run(by: str, problem: TestProblem, solver: str, tolerance: float, runs: dict[Key, Run]) -> Run:
    blank = Run(by, problem.name, solver, tolerance)
    if blank.key in runs:
        return runs[blank.key]
    if by == "scipy":
        return _scipy(blank, problem)
    if by != "jax":
        known = runs["jax", problem.name, solver, tolerance]
        if known.accepted is None or known.accepted + (known.rejected or 0) > MOST[by]:
            return replace(blank, result="not run: many steps")
    backend = odenet.backend(by)
    with backend.prepare("float64", "cpu"):
        try:
            ys, counts, outcome = _program(by, problem, solver)(
                arrays(problem.y0), arrays(problem.weights), tolerance, tolerance
            )
        except (RuntimeError, odenet.OdenetError) as error:  # a framework's own; nothing here depends on which
            return replace(blank, result=f"{type(error).__name__}: {str(error).splitlines()[0][:80]}")
        accepted, rejected, evaluations = map(int, counts)
        stats = Stats(by, solver, "backprop", accepted, evaluations, rejected=rejected)
        solution = Solution(None, _tree.map(backend.to_numpy, ys), stats, None if outcome is None else int(outcome))
    if solution.result is not Result.SUCCESS:
        return replace(blank, result=solution.result.name.lower())
    error = mixed_error(solution.y1, reference(problem).state)
    return replace(
        blank,
        result="success",
        error=error,
        ratio=error / tolerance,
        f_evaluations=evaluations,
        accepted=accepted,
        rejected=rejected,
    )


@functools.lru_cache(maxsize=1)  # the tolerances of a problem and solver follow each other
def _program(by: str, problem: TestProblem, solver: str) -> Callable[..., Any]:
    control = PIDController(max_steps=MOST["jax"], throw=False)

    def solve(y0: Any, weights: Any, rtol: Any, atol: Any) -> Any:
        found = odenet.solve(
            problem.field, y0, weights, t1=problem.t1, rtol=rtol, atol=atol, control=control, solver=solver, backend=by
        )
        return found.ys, (found.stats.steps, found.stats.rejected, found.stats.f_evaluations), found.outcome

    return jax.jit(solve) if by in ("jax", "diffrax") else solve


def _scipy(blank: Run, problem: TestProblem) -> Run:
    field, start, tree = flattened(problem)
    found = solve_ivp(
        field, (problem.t0, problem.t1), start, method=blank.solver, rtol=blank.tolerance, atol=blank.tolerance
    )
    if found.status != 0:
        return replace(blank, result=str(found.message)[:80])
    error = mixed_error(tree(found.y[:, -1]), reference(problem).state)
    return replace(
        blank,
        result="success",
        error=error,
        ratio=error / blank.tolerance,
        f_evaluations=int(found.nfev),
        accepted=len(found.t) - 1,
    )


def _row(runs: dict[Key, Run], solver: str, tolerance: float) -> dict[str, Any]:
    def of(by: str, name: str = solver) -> dict[str, Run]:
        every = (runs[by, problem, name, tolerance] for problem in DETEST)
        return {run.problem: run for run in every if run.ratio is not None}

    ours, torch, scipy = of("jax"), of("torch"), of("scipy", SCIPY[solver])
    beyond = {
        name: max(run.ratio, torch[name].ratio if name in torch else 0.0)
        for name, run in ours.items()
        if max(run.ratio, torch[name].ratio if name in torch else 0.0) > 100 >= scipy[name].ratio
    }
    same = sum(
        (run.accepted, run.rejected) == (ours[name].accepted, ours[name].rejected) for name, run in torch.items()
    )
    return {
        "solver": solver,
        "tolerance": f"{tolerance:.0e}",
        "worst": max(run.ratio for run in ours.values()),
        "median": statistics.median(run.ratio for run in ours.values()),
        "scipy worst": max(run.ratio for run in scipy.values()),
        "scipy median": statistics.median(run.ratio for run in scipy.values()),
        "evaluations": statistics.median(run.f_evaluations for run in ours.values()),
        "scipy evaluations": statistics.median(run.f_evaluations for run in scipy.values()),
        "beyond 100": "; ".join(f"{_short(k)} {v:.0f} (scipy {scipy[k].ratio:.0f})" for k, v in beyond.items())
        or "none",
        "same steps": f"{same} of {len(torch)}",
        "not run": ", ".join(_short(name) for name in DETEST if name not in ours) or "none",
    }


def _steps(run: Run) -> tuple[int | None, int | None]:
    return run.accepted, run.rejected


def _short(problem: str) -> str:
    return problem.removeprefix("detest-").upper()
