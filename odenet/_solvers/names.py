"""Solvers by name: explicit Runge-Kutta methods, the reversible ones, and those that a backend's package brings."""

from __future__ import annotations

from odenet._errors import InputError
from odenet._names import lookup
from odenet._solvers.delegated import DELEGATED_SOLVERS, DelegatedSolver
from odenet._solvers.reversible import REVERSIBLE_SOLVERS, Coupled, ReversibleSolver
from odenet._solvers.runge_kutta import ALIASES, SOLVERS, Solver

AnySolver = Solver | ReversibleSolver | DelegatedSolver

_ALL: dict[str, AnySolver] = {**SOLVERS, **REVERSIBLE_SOLVERS, **DELEGATED_SOLVERS}
SOLVER_NAMES = tuple(_ALL)
SOLVER_ALIASES = {
    **ALIASES,
    **{
        alias: found.name
        for found in (*REVERSIBLE_SOLVERS.values(), *DELEGATED_SOLVERS.values())
        for alias in found.aliases
    },
}


def solver(name: str | AnySolver) -> AnySolver:
    """The solver of that name or alias; a record (a `Solver` of your own, say) is returned as it is.

    `reversible:rk4` and `reversible:rk4:coupling=0.99` make a Runge-Kutta method reversible.

    Raises:
        UnknownNameError: with the nearest names.
        InputError: an option that cannot be used.
    """
    if isinstance(name, (Solver, ReversibleSolver, DelegatedSolver)):
        return name
    if isinstance(name, str) and ":" in name:
        return _coupled(name)
    return lookup("solver", name, _ALL, SOLVER_ALIASES)


def own_solvers() -> tuple[str, ...]:
    """Names of the solvers whose steps odenet takes itself."""
    return (*SOLVERS, *REVERSIBLE_SOLVERS)


def made_reversible(given: AnySolver) -> AnySolver:
    """The Runge-Kutta method as `reversible:NAME`; a reversible solver as it is."""
    return Coupled(given) if isinstance(given, Solver) else given


def _coupled(name: str) -> Coupled:
    plain, base, *options = name.split(":")
    if not isinstance(lookup("solver", plain, _ALL, SOLVER_ALIASES), Coupled) or len(options) > 1:
        raise InputError(f"solver {name!r}", "reversible:SOLVER or reversible:SOLVER:coupling=NUMBER behind a colon")
    method = lookup("solver to be made reversible", base, SOLVERS, ALIASES)
    if not options:
        return Coupled(method)
    key, _, value = options[0].partition("=")
    try:
        if key.strip().lower() != "coupling":
            raise ValueError
        coupling = float(value)
    except ValueError:
        raise InputError(f"option {options[0]!r} of solver {name!r}", "coupling=NUMBER, as in coupling=0.99") from None
    return Coupled(method, coupling)
