"""A work-precision diagram: which problems are solved, by what and how tightly, a row for each cell,
and its tables.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, final

from odenet._errors import InputError
from odenet._jobs.cells.plan import CellPlan
from odenet._jobs.cells.results import OK, CellResults, CellRow
from odenet._report.rows import column, columns
from odenet._report.terminal import Table, table
from odenet._report.units import error, seconds
from odenet._solvers.names import AnySolver, solver
from odenet._test_problems.named import PROBLEMS, problem_named
from odenet._test_problems.reference import TestProblem, reference

Key = tuple[str, str, str, float]


@dataclass(frozen=True)
class SolveCell:
    """One point of the diagram: this problem, solved by this backend and solver to this tolerance."""

    problem: TestProblem
    backend: str
    solver: AnySolver
    rtol: float

    @property
    def key(self) -> Key:
        """The cell as names, which is how a row on disk is recognised."""
        return self.problem.name, self.backend, self.solver.label, self.rtol

    def __str__(self) -> str:
        return f"{self.problem.name} {self.backend} {self.solver.label} rtol={self.rtol:g}"


@dataclass(frozen=True)
class SolvePlan(CellPlan):
    """All options of a diagram.

    Args:
        problems: test problems.
        backends: names of known backends.
        solvers: records; each estimates its error, or is a solver of the backend's own.
        tolerances: of a step, relative.
        atol: the absolute tolerance; None takes the relative one, DETEST's mixed measure.
        dtype: "float32" or "float64" of the state.
        device: as the backends name it.
        repeats: how often each cell is timed; the median counts. 0: not at all, the first call is all there is.
        max_steps: steps tried before a solve is given up.

    Raises:
        InputError: an option that cannot be used.
    """

    grid: ClassVar = ("problems", "backends", "solvers", "tolerances")
    records: ClassVar = {"problems": ("name", problem_named), "solvers": ("label", solver)}

    problems: tuple[TestProblem, ...]
    backends: tuple[str, ...]
    solvers: tuple[AnySolver, ...]
    tolerances: tuple[float, ...]
    atol: float | None = None
    dtype: Literal["float32", "float64"] = "float64"
    device: str = "cpu"
    repeats: int = 5
    max_steps: int = 20000

    def __post_init__(self) -> None:
        self.check("a work-precision diagram")
        if not all(0 < tolerance < 1 for tolerance in self.tolerances):
            raise InputError(f"tolerances {self.tolerances}", "numbers between 0 and 1")

    def cells(self) -> tuple[SolveCell, ...]:
        """Every cell, in the order in which they are run: those of a group, which differ in their backend alone, follow
        each other, since they are timed in turn."""
        return tuple(
            SolveCell(problem, backend, solver, tolerance)
            for problem in self.problems
            for solver in self.solvers
            for tolerance in self.tolerances
            for backend in self.backends
        )

    def units(self, cells: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Those that are timed in turn together."""
        return [tuple(group) for group in groups(cells)]

    def in_order(self) -> Self:
        """With tolerances that go down."""
        return dataclasses.replace(self, tolerances=tuple(sorted(self.tolerances, reverse=True)))


def groups(cells: Iterable[SolveCell]) -> Iterator[list[SolveCell]]:
    """Cells that follow each other and differ in their backend alone."""
    for _, group in itertools.groupby(cells, lambda cell: (cell.problem, cell.solver.label, cell.rtol)):
        yield list(group)


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
