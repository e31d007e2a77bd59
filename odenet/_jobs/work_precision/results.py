"""The results of a work-precision diagram: a row for each cell, see `odenet._jobs.cells.results`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from odenet._jobs.cells.results import CellResults, CellRow
from odenet._jobs.work_precision.plan import Key, SolvePlan
from odenet._report.rows import column, columns


@dataclass(frozen=True)
class AdaptiveSolve(CellRow):
    """What one cell gave; the fields are the columns of results.csv. None stands where nothing was measured."""

    problem: str = column("test problem, as `odenet list problems` names it", "")
    backend: str = column("backend that solved it", "")
    solver: str = column("solver by name", "")
    order: int = column("order that the solver promises", 0)
    rtol: float = column("relative tolerance of a step", 0.0)
    atol: float = column("absolute tolerance of a step", 0.0)
    dtype: str = column("number type of the state; the reference is float64 always", "")
    device: str = column("device it ran on", "")
    status: str = column("ok; not offered or not available; or the error that the cell ended with", "")
    result: str = column("success, or why the solve did not reach t1", "")
    error: float | None = column("at t1, mixed: largest |y - reference| / (1 + |reference|) of an entry")
    relative_error: float | None = column("at t1: largest |y - reference| / largest |reference|")
    f_evaluations: int | None = column("field evaluations, those of the first step size included")
    accepted: int | None = column("steps that were accepted")
    rejected: int | None = column("steps that were tried again with a smaller size")
    solve_seconds: float | None = column("median seconds of a solve, compiled where the backend compiles, and warm")
    first_seconds: float | None = column(
        "seconds of the first call, which compiles what this tolerance is first to need"
    )

    @property
    def key(self) -> Key:
        """The cell that the row belongs to."""
        return self.problem, self.backend, self.solver, self.rtol

    @property
    def ok(self) -> bool:
        """Whether the cell was solved, to t1."""
        return super().ok and self.result == "success"


COLUMNS: dict[str, str] = columns(AdaptiveSolve)
"""Each column and what it means."""


@final
@dataclass(frozen=True)
class WorkPrecision(CellResults[SolvePlan, AdaptiveSolve]):
    """The finished rows of a work-precision diagram."""

    form: ClassVar = "odenet work-precision 1"
    command: ClassVar = "odenet benchmark work-precision"
    plan_kind: ClassVar = SolvePlan
    row_kind: ClassVar = AdaptiveSolve
