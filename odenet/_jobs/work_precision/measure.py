"""Running the cells of a diagram, one row each."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from odenet import _tree
from odenet._backend import registry as _registry
from odenet._backend.solve import solve
from odenet._backend.timing import seconds
from odenet._errors import OdenetError
from odenet._gradients.names import Backprop
from odenet._jobs.cells.row import NOT_AVAILABLE, NOT_OFFERED, OK
from odenet._jobs.work_precision.plan import SolveCell, SolvePlan, groups
from odenet._jobs.work_precision.results import AdaptiveSolve
from odenet._problem.solution import Result, Solution, Stats
from odenet._solvers.controller import PIDController
from odenet._test_problems.reference import arrays, mixed_error, reference, relative_error

_FAILURES = (OdenetError, RuntimeError, MemoryError)
_BUDGET = 2.0  # seconds that the repeats of a group may take


def measure(plan: SolvePlan, cells: Iterable[SolveCell]) -> Iterator[AdaptiveSolve]:
    """One row for each of these cells, a group at a time: its backends are timed in turn, so that what else the machine
    does disturbs them alike.

    A cell that cannot be run still has its row, whose status says why: `not offered` (the backend has no such solver
    with tolerances), `not available` (its framework is not installed), or the error.
    """
    programs = _Programs(plan)
    for group in groups(cells):
        rows, again = [], {}
        for cell in group:
            row, run = _first(plan, cell, programs)
            rows.append(row)
            if run is not None:
                again[cell.key] = run
        if plan.repeats and again:
            gc.collect()  # now, rather than while the clock runs
            medians = dict(zip(again, seconds(list(again.values()), plan.repeats, _BUDGET), strict=True))
            rows = [replace(row, solve_seconds=medians.get(row.key)) for row in rows]
        yield from rows


@dataclass
class _Programs:
    """The compiled solve of each problem, backend and solver: tolerances are among its arguments."""

    plan: SolvePlan
    compiled: dict[tuple[str, str, str], Callable[..., Any]] = field(default_factory=dict)

    def of(self, cell: SolveCell) -> Callable[..., Any]:
        name = cell.problem.name, cell.backend, cell.solver.label
        if name not in self.compiled:
            control = PIDController(max_steps=self.plan.max_steps, throw=False)

            def timed_solve(y0: Any, weights: Any, rtol: Any, atol: Any) -> Any:
                solution = solve(
                    cell.problem.field,
                    y0,
                    weights,
                    t0=cell.problem.t0,
                    t1=cell.problem.t1,
                    rtol=rtol,
                    atol=atol,
                    control=control,
                    solver=cell.solver,
                    backend=_registry.entry(cell.backend),
                )
                counts = solution.stats.steps, solution.stats.rejected, solution.stats.f_evaluations
                # arrays: all that a compiled function can return
                return solution.ts, solution.ys, counts, solution.outcome

            self.compiled[name] = _registry.backend(cell.backend).compiled(timed_solve)
        return self.compiled[name]


def _first(plan: SolvePlan, cell: SolveCell, programs: _Programs) -> tuple[AdaptiveSolve, Callable[[], object] | None]:
    """The row without times, and what is to be timed."""
    atol = cell.rtol if plan.atol is None else plan.atol
    row = AdaptiveSolve(
        problem=cell.problem.name,
        backend=cell.backend,
        solver=cell.solver.label,
        order=cell.solver.order,
        rtol=cell.rtol,
        atol=atol,
        dtype=plan.dtype,
        device=plan.device,
    )
    entry = _registry.entry(cell.backend)
    if not cell.solver.estimates_error:
        return replace(row, status=f"{NOT_OFFERED}: {cell.solver.label} estimates no error"), None
    if not entry.offers(cell.solver, Backprop(), adaptive=True):
        return replace(row, status=f"{NOT_OFFERED} by {cell.backend}"), None
    if not entry.available:
        return replace(row, status=f"{NOT_AVAILABLE}: {entry.framework} is not installed; {entry.install}"), None
    truth = reference(cell.problem).state
    backend = _registry.backend(cell.backend)

    def run() -> Solution:
        with backend.prepare(plan.dtype, plan.device):
            inputs = arrays(cell.problem.y0, plan.dtype), arrays(cell.problem.weights, plan.dtype)
            ts, ys, counts, outcome = programs.of(cell)(*inputs, cell.rtol, atol)
            ys = _tree.map(backend.to_numpy, ys)  # waits for the device
            # None where a peer does not tell: diffrax does not count the evaluations of implicit solvers
            steps, rejected, evaluations = (None if count is None else int(count) for count in counts)
            stats = Stats(cell.backend, cell.solver.label, "backprop", steps, evaluations, rejected=rejected)
            return Solution(ts, ys, stats, None if outcome is None else int(outcome))

    start = time.perf_counter()
    try:
        solution = run()
    except _FAILURES as error:
        own = isinstance(error, OdenetError)
        return replace(row, status=str(error) if own else f"{type(error).__name__}: {error}"), None
    elapsed = time.perf_counter() - start
    result = solution.result
    row = replace(
        row,
        status=OK,
        result=result.name.lower().replace("_", " "),
        f_evaluations=solution.stats.f_evaluations,
        accepted=solution.stats.accepted,
        rejected=solution.stats.rejected,
        first_seconds=elapsed,
    )
    if result is not Result.SUCCESS:
        return row, None
    error, relative = mixed_error(solution.y1, truth), relative_error(solution.y1, truth)
    return replace(row, error=error, relative_error=relative), run
