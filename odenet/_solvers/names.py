"""Solvers by name: explicit Runge-Kutta methods, the reversible ones, and those that a backend's package brings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from odenet._errors import InputError, UnsupportedError
from odenet._names import Announced, load_entry_point, lookup, spelling
from odenet._solvers.bdia import BDIA, TwoStepMidpoint
from odenet._solvers.coupling import Hamiltonian, Leapfrog
from odenet._solvers.family import DELEGATED_SOLVERS, AnySolver, StagedSolver
from odenet._solvers.reversible import REVERSIBLE_SOLVERS, Coupled
from odenet._solvers.runge_kutta import RUNGE_KUTTA, Solver
from odenet._solvers.two_step import Momentum, TwoStep


def _read(point: Any) -> AnySolver:
    record = load_entry_point(point, AnySolver)
    if record.name != point.name:
        raise InputError(f"the entry point {point.name} = {point.value} is a solver called {record.name!r}", "its name")
    return record


TWO_STEP_SOLVERS: dict[str, TwoStep] = {
    record.name: record for record in (BDIA(), TwoStepMidpoint(), Momentum(), Hamiltonian(), Leapfrog())
}

_OWN: dict[str, AnySolver] = {**RUNGE_KUTTA, **REVERSIBLE_SOLVERS, **TWO_STEP_SOLVERS, **DELEGATED_SOLVERS}
_OWN_ALIASES = {alias: record.name for record in _OWN.values() for alias in record.aliases}

ALL_SOLVERS: Announced[AnySolver] = Announced("odenet.solvers", _OWN, _read)
"""Every solver by name: odenet's own, then those of installed packages (entry-point group `odenet.solvers`)."""


class _OfFamily(Mapping[str, Solver]):
    """The explicit Runge-Kutta methods among all solvers."""

    def __getitem__(self, name: str) -> Solver:
        record = ALL_SOLVERS[name]
        if not isinstance(record, Solver):
            raise KeyError(name)
        return record

    def __iter__(self) -> Iterator[str]:
        return (name for name, record in ALL_SOLVERS.items() if isinstance(record, Solver))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"{{{', '.join(map(repr, self))}}}"


SOLVERS: Mapping[str, Solver] = _OfFamily()


def register_solver(record: AnySolver) -> None:
    """Make a solver known by its name in this process; an installed package announces it in `odenet.solvers`.

    Raises:
        InputError: it is no solver, or its name is taken.
    """
    if not isinstance(record, AnySolver):
        raise InputError(f"a solver that is a {type(record).__name__}", "a record such as odenet.Solver")
    ALL_SOLVERS.register(record.name, record)


def solver_aliases() -> dict[str, str]:
    """Other names of solvers, and which one each means."""
    return {alias: record.name for record in ALL_SOLVERS.values() for alias in record.aliases}


def solver(name: str | AnySolver) -> AnySolver:
    """The solver of that name or alias; a record (a `Solver` of your own, say) is returned as it is.

    `reversible:rk4` and `reversible:rk4:coupling=0.99` make a Runge-Kutta method reversible. Options of others are
    spelled as their labels spell them: `bdia:gamma=-0.5:bits=9`.

    Raises:
        UnknownNameError: with the nearest names.
        InputError: an option that cannot be used.
    """
    if isinstance(name, AnySolver):
        return name
    if isinstance(name, str) and name in _OWN:  # as loops of users spell it, again and again
        return _OWN[name]
    if isinstance(name, str) and ":" in name:
        plain, _, options = name.partition(":")
        record = _named("solver", plain)
        return _with_options(record, name, options) if isinstance(record, TwoStep) else _coupled(name)
    return _named("solver", name)


def _named(kind: str, name: object) -> AnySolver:
    own = isinstance(name, str) and spelling(name) in {**_OWN, **_OWN_ALIASES}
    return lookup(kind, name, ALL_SOLVERS, _OWN_ALIASES if own else solver_aliases())


def staged(record: AnySolver, what: str) -> StagedSolver:
    """The solver, if odenet takes its steps itself.

    Raises:
        UnsupportedError: saying of what it is to be the solver.
    """
    if isinstance(record, StagedSolver):
        return record
    offered = ", ".join(name for name, other in ALL_SOLVERS.items() if isinstance(other, StagedSolver))
    raise UnsupportedError(
        f"{what} with solver {record.label}, whose steps its own package takes",
        offered,
        f"take one of these, or odenet.solve(..., solver={record.label!r}, backend=...)",
    )


def made_reversible(method: AnySolver) -> AnySolver:
    """The Runge-Kutta method as `reversible:NAME`; a reversible solver as it is."""
    return Coupled(method) if isinstance(method, Solver) else method


def _coupled(name: str) -> Coupled:
    plain, base, *options = name.split(":")
    if not isinstance(_named("solver", plain), Coupled) or len(options) > 1:
        raise InputError(f"solver {name!r}", "reversible:SOLVER or reversible:SOLVER:coupling=NUMBER behind a colon")
    method = lookup("solver to be made reversible", base, SOLVERS, solver_aliases())
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


def _with_options(record: TwoStep, name: str, options: str) -> TwoStep:
    """The record with options that are spelled `option=value`, "no" being None of what may be None."""
    readers = {field.name: field for field in dataclasses.fields(record)}
    changed: dict[str, Any] = {}
    for text in options.split(":"):
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"{text!r} in solver {name!r}", f"option=value; options are {', '.join(readers)}")
        field = lookup(f"option of {record.name}", key, readers)
        if field.name in changed:
            raise InputError(f"{field.name} twice in solver {name!r}", "each option once")
        changed[field.name] = _value(field, value, name)
    return dataclasses.replace(record, **changed)


def _value(field: dataclasses.Field[Any], text: str, name: str) -> Any:
    word, kind = text.strip().lower(), str(field.type)
    if kind == "bool" and word in ("yes", "no", "true", "false"):
        return word in ("yes", "true")
    if "None" in kind and word in ("no", "none"):
        return None
    try:
        return float(word) if kind == "float" else int(word)
    except ValueError:
        allowed = {"bool": "yes or no", "float": "a number"}.get(kind, "a whole number, or no")
        raise InputError(f"{field.name}={text!r} in solver {name!r}", allowed) from None
