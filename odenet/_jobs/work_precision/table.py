"""The table that a person reads: one a problem, a row for each solver, backend and tolerance."""

from __future__ import annotations

from collections.abc import Sequence

from odenet._jobs.cells.results import OK
from odenet._jobs.work_precision.results import AdaptiveSolve
from odenet._report.terminal import Table, table
from odenet._report.units import error, seconds
from odenet._test_problems.named import PROBLEMS
from odenet._test_problems.reference import reference

_COLUMNS = "backend|solver|>rtol|>error|>error/rtol|>relative|>f|>accepted|>rejected|>first call|>time|result"


def tables(rows: Sequence[AdaptiveSolve]) -> list[Table]:
    """A table for each problem."""
    return [
        _table(problem, [row for row in rows if row.problem == problem])
        for problem in dict.fromkeys(row.problem for row in rows)
    ]


def _table(problem: str, rows: Sequence[AdaptiveSolve]) -> Table:
    truth = reference(PROBLEMS[problem])
    exact = f"good to {truth.uncertainty:.0e}" if truth.uncertainty else "exact"
    caption = (
        f"error: largest |y - r| / (1 + |r|) at t1 against r by {truth.method} ({exact}); relative: max norms. "
        "f: field evaluations. first call: with compilation."
    )
    timed = any(row.solve_seconds is not None for row in rows)
    columns = [column for column in _COLUMNS.split("|") if timed or column != ">time"]
    caption += " time: median of further calls." if timed else ""
    return table(f"{problem}: {PROBLEMS[problem].summary}", columns, (_cells(row, timed) for row in rows), caption)


def _cells(row: AdaptiveSolve, timed: bool) -> tuple[str, ...]:
    counts = (row.f_evaluations, row.accepted, row.rejected)
    return (
        row.backend,
        f"{row.solver} ({row.order})",
        f"{row.rtol:.0e}" if f"{row.rtol:.0e}" == f"{row.rtol:g}" else f"{row.rtol:g}",
        error(row.error),
        "–" if row.error is None else f"{row.error / row.rtol:.3g}",
        error(row.relative_error),
        *("–" if count is None else str(count) for count in counts),
        seconds(row.first_seconds),
        *([seconds(row.solve_seconds)] if timed else []),
        row.result if row.status == OK else row.status,
    )
