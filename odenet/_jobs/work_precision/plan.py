"""Which problems are solved, by what, and how tightly."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from odenet._errors import InputError
from odenet._jobs.cells.plan import CellPlan
from odenet._solvers.names import AnySolver, solver
from odenet._test_problems.named import problem_named
from odenet._test_problems.record import TestProblem

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
