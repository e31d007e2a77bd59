"""Which problems are solved, by what, and how tightly."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from odenet import _registry
from odenet._delegated import DelegatedSolver
from odenet._errors import BackendUnavailableError, FileError, InputError
from odenet._names import lookup
from odenet._problems import problem_named
from odenet._solver import AnySolver, solver
from odenet._solvers import Solver
from odenet._test_problem import TestProblem

Key = tuple[str, str, str, float]
_GRID = ("problems", "backends", "solvers", "tolerances")  # what may grow when a run is resumed


@dataclass(frozen=True)
class Cell:
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
class Plan:
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
        for name in _GRID:
            if not getattr(self, name):
                raise InputError(f"a work-precision diagram without {name}", f"at least one of {name}")
        lookup("number type", self.dtype, {"float32": 0, "float64": 0})
        for name in self.backends:
            _registry.entry(name)
        if not all(0 < tolerance < 1 for tolerance in self.tolerances):
            raise InputError(f"tolerances {self.tolerances}", "numbers between 0 and 1")

    def cells(self) -> tuple[Cell, ...]:
        """Every cell, in the order in which they are run: those of a group, which differ in their backend alone, follow
        each other, since they are timed in turn."""
        return tuple(
            Cell(problem, backend, solver, tolerance)
            for problem in self.problems
            for solver in self.solvers
            for tolerance in self.tolerances
            for backend in self.backends
        )

    def require_a_backend(self) -> None:
        """Raises BackendUnavailableError if none of the backends is installed."""
        entries = [_registry.entry(name) for name in self.backends]
        if not any(entry.available for entry in entries):
            raise BackendUnavailableError(
                f"none of the backends {', '.join(self.backends)} is available",
                "at least one that is installed",
                " or ".join(entry.install for entry in entries),
            )

    def to_json(self) -> dict[str, Any]:
        """Plain data: names instead of records."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "problems": [each.name for each in self.problems],
            "backends": list(self.backends),
            "solvers": [each.label for each in self.solvers],
            "tolerances": list(self.tolerances),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            FileError: data that is no plan of this version of odenet.
        """
        try:
            options: dict[str, Any] = {field.name: plain[field.name] for field in dataclasses.fields(cls)}
            options["problems"] = tuple(problem_named(name) for name in plain["problems"])
            options["solvers"] = tuple(solver(name) for name in plain["solvers"])
            options |= {name: tuple(options[name]) for name in _GRID}
            return cls(**options)
        except (KeyError, TypeError, InputError) as error:
            raise FileError(
                f"the plan in these results cannot be read ({error})", "a plan that odenet wrote"
            ) from error

    def continued_from(self, old: Plan) -> Plan:
        """This plan with the grid of an earlier one added, for a run that goes on where the earlier one stopped.

        Raises:
            InputError: options beside the grid differ.
        """
        changed = [
            f"{field.name} was {getattr(old, field.name)} and is {getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if field.name not in _GRID and getattr(old, field.name) != getattr(self, field.name)
        ]
        if changed:
            raise InputError(
                f"the results to resume have other options: {'; '.join(changed)}",
                f"the same options, but for {', '.join(_GRID)}",
                "leave --resume out, or choose another --out",
            )
        grown = {name: tuple(dict.fromkeys((*getattr(self, name), *getattr(old, name)))) for name in _GRID}
        return dataclasses.replace(self, **grown | {"tolerances": tuple(sorted(grown["tolerances"], reverse=True))})


def estimates(solver: AnySolver) -> bool:
    """Whether a solver estimates its error, without which it cannot follow a tolerance."""
    return isinstance(solver, DelegatedSolver) or (isinstance(solver, Solver) and solver.tableau.b_low is not None)


def groups(cells: Iterable[Cell]) -> Iterator[list[Cell]]:
    """Cells that follow each other and differ in their backend alone."""
    for _, group in itertools.groupby(cells, lambda cell: (cell.problem, cell.solver.label, cell.rtol)):
        yield list(group)
