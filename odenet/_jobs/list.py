"""`odenet list`: what can be chosen by name, read from the registries.

Over 250 lines: four sections, each with its rows of plain values and its table.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import click

from odenet._backend import registry as _registry
from odenet._backend.entry import BackendEntry
from odenet._backend.registry import backend, broken, known
from odenet._gradients.names import ALIASES as GRADIENT_ALIASES
from odenet._gradients.names import GRADIENTS, Backprop, ContinuousAdjoint
from odenet._jobs.groups import WITH_SHORT_HELP
from odenet._report.terminal import Table, console, table
from odenet._solvers.family import DelegatedSolver, StagedSolver
from odenet._solvers.names import ALL_SOLVERS
from odenet._solvers.runge_kutta import Solver
from odenet._test_problems.named import PROBLEMS

Row = dict[str, Any]

_PARTS = ("f_forward", "f_backward", "vjp", "states")
_COST = (
    "For N steps of a solver with s field evaluations a step, and e before the first (1 for reversible-heun and alf, "
    "else 0). With a reversible solver, backprop and checkpoint take these e f forward and VJPs, too; checkpoint keeps "
    "c times the states (3 for reversible-heun, else 2), and takes neither states=K, memory nor bits. Beside the 2 of "
    "reversible stands the side information of solvers that round (bdia: 2 bits of each number and step). "
    "m iterations of the discrete adjoint, k the order of its extrapolation, at most L evaluations a step "
    "for a tolerance. Of checkpoint with K < N states, A = r N - C(K+r, r-1) for the least r with C(K+r, r) >= N; "
    "memory is as states=K for the K that fit. The continuous adjoint takes M steps of s' evaluations backwards, by "
    "default N and s; i is 1 where one of them lies inside the step, else 0; its certificate looks at two "
    "segments (one where there are no two) of d steps of the forward solve, 1 unless M is another number (then "
    "N / gcd(N, M), none beyond 16). "
    "f forward, f back: field "
    "evaluations, those inside VJPs left out. VJP: vector-Jacobian products of the field. states: copies of the state "
    "kept between "
    "the two passes."
)


def solvers() -> list[Row]:
    """A row for each solver, with plain values.

    What is of a tableau is None for a reversible solver; stages, too, for one that a backend brings from its package.
    `backends` names those that offer it, with equal steps or with tolerances.
    """
    return [
        {
            "name": solver.name,
            "aliases": list(solver.aliases),
            "order": solver.order,
            "family": solver.family,
            "stages": solver.stages if isinstance(solver, StagedSolver) else None,
            "tableau_stages": solver.tableau.stages if isinstance(solver, Solver) else None,
            "fsal": solver.tableau.fsal if isinstance(solver, Solver) else None,
            "embedded_order": solver.tableau.order_low if isinstance(solver, Solver) else None,
            "reversible": solver.reversible,
            "implicit": isinstance(solver, DelegatedSolver) and solver.implicit,
            "backends": [
                entry.name
                for entry in known().values()
                if any(entry.offers(solver, Backprop(), adaptive=adaptive) for adaptive in (False, True))
            ],
            "summary": solver.summary,
            "source": solver.source,
        }
        for solver in ALL_SOLVERS.values()
    ]


def gradients() -> list[Row]:
    """A row for each gradient method, with plain values.

    `cost` is the cost model's formulas as text, `variants` the same with an option.
    """
    return [
        {
            "name": kind.name,
            "aliases": [alias for alias, name in GRADIENT_ALIASES.items() if name == kind.name],
            "options": {field.name: field.default for field in dataclasses.fields(kind)},
            "exactness": kind.exactness,
            "cost": dict(zip(_PARTS, kind.formula, strict=True)),
            "variants": {label: dict(zip(_PARTS, counts, strict=True)) for label, counts in kind.variants.items()},
            "summary": kind.summary,
        }
        for kind in GRADIENTS.values()
    ]


def problems() -> list[Row]:
    """A row for each test problem, with plain values."""
    return [
        {
            "name": problem.name,
            "t0": problem.t0,
            "t1": problem.t1,
            "steps": problem.steps,
            "closed_form": problem.solution is not None,
            "autonomous": problem.autonomous,
            "stiff": problem.stiff,
            "period": problem.period,
            "summary": problem.summary,
            "source": problem.source,
        }
        for problem in PROBLEMS.values()
    ]


def backends(only: str | None = None) -> list[Row]:
    """A row for each announced backend, or for one, with plain values. Those available are loaded, to ask for devices.

    `solvers` (with equal steps) and `adaptive` (with tolerances) are all that it runs by name, `families` and
    `adaptive_families` those of which it runs every method, `gradients` what it does for each method: whether with
    tolerances, too, and which of its options (None: all). `trouble` says why a backend that should be available cannot
    be used.
    """
    if only is not None:
        return [_backend(_registry.entry(only))]
    return [_backend(entry) for entry in known().values()] + [_blank(name, str(e)) for name, e in broken().items()]


def _blank(name: str, trouble: str | None = None) -> Row:
    nothing: Row = {"framework": "", "available": False, "version": None, "devices": [], "networks": False}
    none: Row = {"families": [], "adaptive_families": [], "solvers": [], "adaptive": [], "gradients": {}, "install": ""}
    return {"name": name, **nothing, **none, "trouble": trouble}


def _backend(entry: BackendEntry) -> Row:
    ways = {name: entry.way(GRADIENTS[name]) for name in entry.gradients}
    row = _blank(entry.name) | {
        "framework": entry.framework,
        "available": entry.available,
        "version": _version(entry.framework) if entry.available else None,
        "networks": entry.networks,
        "families": list(entry.families),
        "adaptive_families": list(entry.adaptive_families),
        "solvers": list(entry.runs()),
        "adaptive": list(entry.runs(adaptive=True)),
        "gradients": {
            name: {"adaptive": way.adaptive is not None, "options": None if way.options is None else list(way.options)}
            for name, way in ways.items()
            if way is not None
        },
        "install": entry.install,
    }
    if entry.available:
        try:
            row["devices"] = list(backend(entry.name).devices())
        except Exception as error:  # a broken installation is what one runs this command to find
            row["trouble"] = f"{type(error).__name__}: {error}"
    return row


def _version(framework: str) -> str | None:
    """From the metadata of what is installed, without an import."""
    try:
        return metadata.version(framework)
    except metadata.PackageNotFoundError:
        names = metadata.packages_distributions().get(framework)  # slow, for a distribution of another name
        return metadata.version(names[0]) if names else None


def _names(solvers: Sequence[str], families: Sequence[str]) -> str:
    """The families that are run as a whole, then what else is."""
    others = [name for name in solvers if ALL_SOLVERS[name].family not in families]
    return "\n".join([*(f"all {family}" for family in families), *others])


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _backend_table(rows: Sequence[Row]) -> Table:
    def state(row: Row) -> str:
        if row["trouble"] is not None:
            return f"cannot be loaded: {row['trouble']}"
        return "available" if row["available"] else f"known, not available: {row['install']}"

    columns = ("name", "framework", "version", "state", "devices", "equal steps", "tolerances", "gradients", "networks")
    cells = [
        (
            row["name"],
            row["framework"],
            row["version"] or "",
            state(row),
            ", ".join(row["devices"]),
            _names(row["solvers"], row["families"]),
            _names(row["adaptive"], row["adaptive_families"]),
            "\n".join(row["gradients"]),
            _yes(row["networks"]),
        )
        for row in rows
    ]
    legend = (
        "equal steps, tolerances: the solvers offered with steps=N and with rtol, atol; of a family named with all, "
        "every one, yours included; with tolerances, those that estimate their error. networks: whether it builds "
        "networks, for compare, check, train and reproduce."
    )
    return table("Backends", columns, cells, legend)


def _solver_table(rows: Sequence[Row]) -> Table:
    columns = "name aliases >order >stages >tableau fsal >embedded reversible summary source".split()
    cells = [
        (
            row["name"],
            ", ".join(row["aliases"]),
            row["order"],
            row["stages"] or "",
            row["tableau_stages"] or "",
            "" if row["fsal"] is None else _yes(row["fsal"]),
            row["embedded_order"] or "",
            _yes(row["reversible"]),
            row["summary"] if row["stages"] else f"{row['summary']} (backend {' or '.join(row['backends']) or 'none'})",
            row["source"],
        )
        for row in rows
    ]
    legend = (
        "stages: field evaluations of a fixed step. tableau: those of the whole tableau, its error estimate included. "
        "fsal: the last stage is the first of the next step. "
        "embedded: order of the second solution, which estimates the error. "
        "reversible: what gradient=reversible needs; order and stages are those of reversible:heun."
    )
    return table("Solvers", columns, cells, legend)


def _gradient_table(rows: Sequence[Row]) -> Table:
    columns = ("name, options", ">f forward", ">f back", ">VJP", ">states", "exactness; summary")
    cells = []
    for row in rows:
        lines = [(row["name"], *row["cost"].values())]
        for name, value in row["options"].items():
            default = _default(row["name"], value)
            variants = [(label, cost) for label, cost in row["variants"].items() if label.partition("=")[0] == name]
            lines += [(f"  {label} ({default})", *cost.values()) for label, cost in variants]
            lines += [] if variants else [(f"  {name}={default}", "", "", "", "")]
        columns_of_lines = ("\n".join(column) for column in zip(*lines, strict=True))
        cells.append((*columns_of_lines, f"{row['exactness']}; {row['summary']}"))
    flags = (
        "A flag spells options as discrete-adjoint:correct=no; the default of one whose cost is shown is in brackets."
    )
    return table("Gradient methods", columns, cells, f"{_COST} {flags}")


def _default(method: str, value: Any) -> str:
    if value is None:
        return "forward's" if method == ContinuousAdjoint.name else "none"
    return _yes(value) if isinstance(value, bool) else str(value)


def _problem_table(rows: Sequence[Row]) -> Table:
    columns = ("name", ">t0", ">t1", ">steps", "solution", "autonomous", "summary", "source")
    cells = [
        (
            row["name"],
            f"{row['t0']:g}",
            f"{row['t1']:.5g}",
            row["steps"],
            "closed form" if row["closed_form"] else "Radau" if row["stiff"] else "DOP853",
            _yes(row["autonomous"]),
            row["summary"],
            row["source"],
        )
        for row in rows
    ]
    legend = (
        "steps: a sensible number for rk4. solution: what errors are relative to; DOP853 is SciPy's at rtol 1e-13, "
        "Radau, for stiff problems, which want an implicit solver, at 1e-9."
    )
    return table("Problems", columns, cells, legend)


@dataclass(frozen=True)
class _Section:
    rows: Callable[[], list[Row]]
    table: Callable[[Sequence[Row]], Table]


SECTIONS = {
    "backends": _Section(backends, _backend_table),
    "solvers": _Section(solvers, _solver_table),
    "gradients": _Section(gradients, _gradient_table),
    "problems": _Section(problems, _problem_table),
}


@click.command(short_help="List what can be chosen by name.", context_settings=WITH_SHORT_HELP)
@click.argument("what", type=click.Choice(list(SECTIONS)), required=False)
@click.option("--backend", "only", help="Show only this backend, and everything that it offers.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object with a list for each section.")
def command(what: str | None, only: str | None, as_json: bool) -> None:
    """List what can be chosen by name: backends, solvers, gradients and problems, or one of these.

    Installed backends are imported, to list their devices; this takes seconds.

    \b
    Examples:
      odenet list
      odenet list solvers
      odenet list backends --json
      odenet list --backend torch
    """
    if only is not None and what not in (None, "backends"):
        raise click.UsageError(f"--backend lists a backend, and not {what}")
    chosen = [what] if what is not None else ["backends"] if only is not None else list(SECTIONS)
    rows = {name: backends(only) if name == "backends" else SECTIONS[name].rows() for name in chosen}
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    screen = console()
    for name in chosen:
        screen.print(SECTIONS[name].table(rows[name]))
