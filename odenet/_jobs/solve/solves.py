"""`odenet solve`: one problem by every backend and solver, in several numbers of equal steps or to tolerances."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from odenet import _tree
from odenet._backend import registry
from odenet._backend.registry import backend as backend_named
from odenet._backend.solve import solve
from odenet._errors import OdenetError
from odenet._files import write_atomically, write_text
from odenet._jobs.output import say_written, screen
from odenet._jobs.solve.convergence import EqualStepSolve, as_json, fitted_order, observed_order, series
from odenet._jobs.work_precision.measure import measure
from odenet._jobs.work_precision.results import AdaptiveSolve, SolvePlan, WorkPrecision, tables
from odenet._problem.solution import Result, Solution
from odenet._report.machine import machine
from odenet._report.rows import as_csv
from odenet._report.terminal import console, table
from odenet._solvers.names import AnySolver
from odenet._solvers.names import solver as solver_named
from odenet._test_problems.reference import Reference, TestProblem, arrays, numerical, reference, relative_error

_DRAWN = 400  # points of the reference curve


def solve_in_equal_steps(
    problem: TestProblem,
    backends: Sequence[str],
    solvers: Sequence[AnySolver],
    depths: Sequence[int],
    dtype: str,
    device: str,
    figure: tuple[Path, str] | None,
    csv: Path | None,
    json: Path | None,
) -> None:
    """Solve, show a table with the orders of convergence, and write what was asked for.

    Args:
        problem: what is solved.
        backends, solvers, depths: each backend and solver solves it in each of these numbers of steps, once.
        dtype, device: of the state.
        figure: path and format of the figure: errors over steps, and the solution.
        csv, json: paths of the table.

    Raises:
        OdenetError: a solve that failed.
    """
    truth = reference(problem)
    runs: list[EqualStepSolve] = []
    messages = console(stderr=True)
    with Progress(console=messages, transient=True, disable=not messages.is_terminal) as progress:
        task = progress.add_task(problem.name, total=len(backends) * len(solvers) * sum(depths))
        for backend in backends:
            for solver in solvers:
                for steps in depths:
                    progress.update(task, description=f"{problem.name}: {backend} {solver.name}, {steps} steps")
                    runs.append(_run(problem, backend, solver, steps, dtype, device, truth.state))
                    progress.advance(task, steps)
    _show(problem, runs, truth, screen(csv, json))
    if csv is not None:
        write_text(csv, as_csv(EqualStepSolve, runs))
    if json is not None:
        write_text(json, as_json(problem, runs, truth))
    if figure is not None:
        _draw(problem, runs, truth, dtype, device, *figure)
    say_written(csv, json, figure and figure[0])


def _solve(problem: TestProblem, backend: str, solver: AnySolver, steps: int, dtype: str, ts: Any) -> Solution:
    return solve(
        problem.field,
        arrays(problem.y0, dtype),
        arrays(problem.weights, dtype),
        t0=problem.t0,
        t1=problem.t1,
        steps=steps,
        ts=ts,
        solver=solver,
        backend=registry.entry(backend),
    )


def _run(
    problem: TestProblem, name: str, solver: AnySolver, steps: int, dtype: str, device: str, truth: Any
) -> EqualStepSolve:
    backend = backend_named(name)
    with backend.prepare(dtype, device):
        start = time.perf_counter()
        solution = _solve(problem, name, solver, steps, dtype, None)
        state = _tree.map(backend.to_numpy, solution.y1)  # waits for the device
        seconds = time.perf_counter() - start
        result = solution.result
    return EqualStepSolve(
        problem=problem.name,
        backend=name,
        solver=solver.name,
        order=solver.order,
        dtype=dtype,
        device=device,
        steps=steps,
        f_evaluations=solution.stats.f_evaluations,
        relative_error=relative_error(state, truth),
        seconds=seconds,
        result="success" if result is Result.SUCCESS else "not finite",
    )


def _show(problem: TestProblem, runs: Sequence[EqualStepSolve], truth: Reference, page: Console) -> None:
    """The table: one row a run, each backend and solver from few steps to many."""
    rows: list[tuple[str, ...]] = []
    for same_solver in series(runs).values():
        fitted = fitted_order(same_solver, truth.uncertainty)
        for index, run in enumerate(same_solver):
            observed = observed_order(same_solver[index - 1], run) if index else None
            rows.append(
                (
                    run.backend,
                    f"{run.solver} ({run.order})",
                    str(run.steps),
                    str(run.f_evaluations),
                    f"{run.relative_error:.2e}",
                    _number(observed),
                    _number(fitted) if run is same_solver[-1] else "",
                    f"{run.seconds:.3f}",
                    run.result,
                )
            )
    columns = "backend|solver|>steps|>f|>error|>order|>fitted|>seconds|result".split("|")
    exact = f"relative to {truth.uncertainty:.0e}" if truth.uncertainty else "exact"
    caption = (
        "solver: with its order. "
        f"error: relative, max norm, at t = {problem.t1:.6g}, against {truth.method} ({exact}). "
        "order: from the row above. fitted: over rows with errors between rounding and 0.5. "
        "seconds: one call, compilation included; `odenet compare` measures with a warm-up."
    )
    page.print(table(f"{problem.name}: {problem.summary}", columns, rows, caption))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _draw(
    problem: TestProblem,
    runs: Sequence[EqualStepSolve],
    truth: Reference,
    dtype: str,
    device: str,
    path: Path,
    kind: str,
) -> None:
    from odenet._jobs.solve.convergence import draw  # matplotlib takes a second

    finest = _finest(problem, runs, dtype, device)
    ts = [problem.t0 + (problem.t1 - problem.t0) * n / _DRAWN for n in range(_DRAWN + 1)]
    states = _tree.map(lambda *leaves: np.stack(leaves), *numerical(problem, ts, 1e-9, 1e-9))
    write_atomically(path, lambda file: draw(file, kind, problem, runs, truth.uncertainty, finest, (ts, states)))


def _finest(
    problem: TestProblem, runs: Sequence[EqualStepSolve], dtype: str, device: str
) -> tuple[EqualStepSolve, Sequence[float], Any] | None:
    """The best of the runs with the most steps, once more with every step kept."""
    ended = [run for run in runs if run.result == "success"]
    if not ended:
        return None
    best = min(ended, key=lambda run: (-run.steps, run.relative_error))
    backend = backend_named(best.backend)
    with backend.prepare(dtype, device):
        solution = _solve(problem, best.backend, solver_named(best.solver), best.steps, dtype, "all")
        return best, backend.to_numpy(solution.ts).tolist(), _tree.map(backend.to_numpy, solution.ys)


def solve_to_tolerances(plan: SolvePlan, figure: tuple[Path, str] | None, csv: Path | None, json: Path | None) -> None:
    """Solve, show a table, and write what was asked for.

    Args:
        plan: of one problem; each cell is called once, without a warm-up.
        figure: path and format of the work-precision figure.
        csv, json: paths of the table.

    Raises:
        OdenetError: the first failure, after all were tried.
    """
    messages, cells, rows = console(stderr=True), plan.cells(), []
    with Progress(console=messages, transient=True, disable=not messages.is_terminal) as progress:
        task = progress.add_task(plan.problems[0].name, total=len(cells))
        for row in measure(plan, cells):
            rows.append(row)
            progress.advance(task)
    for page in tables(rows):
        screen(csv, json).print(page)
    if csv is not None:
        write_text(csv, as_csv(AdaptiveSolve, rows))
    if json is not None:
        write_text(json, WorkPrecision(plan, machine(plan.backends), tuple(rows)).text())
    if figure is not None:
        _draw_tolerances(rows, *figure)
    say_written(csv, json, figure and figure[0])
    for row in rows:
        if row.failed:
            raise OdenetError(f"{row.backend} {row.solver} with rtol={row.rtol:g} failed: {row.status.rstrip('.')}")


def _draw_tolerances(rows: list[AdaptiveSolve], path: Path, kind: str) -> None:
    from odenet._jobs.work_precision.figure import diagram
    from odenet._report.figures import render  # matplotlib takes a second

    drawn = diagram(rows)
    if drawn is not None:
        write_atomically(path, lambda file: file.write(render(drawn, kind)))
