"""`odenet solve`: one test problem, by every chosen backend and solver, at several numbers of steps or tolerances."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from odenet._backend.registry import available, entry, require
from odenet._backend.registry import backend as backend_named
from odenet._errors import OdenetError, UnsupportedError
from odenet._files import require_target
from odenet._gradients.names import Backprop
from odenet._jobs import flags as _flags
from odenet._jobs.groups import WITH_SHORT_HELP
from odenet._jobs.output import FilePath, OutputFile, screen
from odenet._jobs.solve.solves import solve_in_equal_steps, solve_to_tolerances
from odenet._jobs.work_precision.results import SolvePlan
from odenet._problem.problem import adaptive_solvers
from odenet._solvers.names import AnySolver
from odenet._solvers.names import solver as solver_named
from odenet._test_problems.named import PROBLEMS, problem_named
from odenet._test_problems.reference import TestProblem


class _ProblemName(click.ParamType):
    name = "problem"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> TestProblem:
        if isinstance(value, TestProblem):
            return value
        try:
            return problem_named(value)
        except OdenetError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        problems = [problem for problem in PROBLEMS.values() if problem.name.startswith(incomplete)]
        return [CompletionItem(problem.name, help=problem.summary) for problem in problems]


def _default_backend() -> str:
    """torch where it is installed, else the first backend that is."""
    names = tuple(available())
    return "torch" if "torch" in names or not names else names[0]


@click.command(short_help="Solve a test problem: errors, orders of convergence.", context_settings=WITH_SHORT_HELP)
@click.argument("problem", type=_ProblemName())
@_flags.backends(_default_backend())
@_flags.solvers("rk4")
@click.option(
    "--depth",
    "depths",
    type=_flags.Depths(),
    multiple=True,
    show_default="five, up to the problem's own",
    help="Numbers of steps, repeatable or with commas, or a doubling range 16..256.",
)
@_flags.tolerances()
@_flags.atol()
@_flags.dtype("float64")
@_flags.device()
@click.option(
    "--plot", type=FilePath(dir_okay=False), help="Write a figure: error against steps or work, and the solution."
)
@click.option("--csv", "csv_path", type=OutputFile(), help="Write the table, one row for each solve; - is stdout.")
@click.option(
    "--json", "json_path", type=OutputFile(), help="Write the table and the orders of convergence; - is stdout."
)
@click.pass_context
def command(
    context: click.Context,
    problem: TestProblem,
    backend: tuple[str, ...],
    solver: tuple[AnySolver, ...],
    depths: tuple[tuple[int, ...], ...],
    rtol: tuple[float, ...],
    atol: float | None,
    dtype: Literal["float32", "float64"],
    device: str,
    plot: Path | None,
    csv_path: Path | None,
    json_path: Path | None,
) -> None:
    """Solve a test problem at several numbers of steps, and show the errors and the orders of convergence; or, with
    --rtol, with adaptive steps, at several tolerances.

    PROBLEM is one that `odenet list problems` names. The error is the relative error of the state at t1 in the maximum
    norm. With --rtol, --solver is dopri5 by default, and --atol equals --rtol.

    \b
    Examples:
      odenet solve lotka-volterra
      odenet solve kepler --solver euler,heun,rk4,dopri8 --depth 64..1024
      odenet solve rotation --backend torch,jax --dtype float32
      odenet solve arenstorf --solver dopri8 --plot orbit.png --csv orbit.csv
      odenet solve kepler --solver dopri5,tsit5 --rtol 1e-3..1e-9
    """
    from odenet._jobs.solve.convergence import figure_format

    if (depths or atol is not None) and bool(depths) == bool(rtol):
        raise click.UsageError("take --depth, or --rtol with or without --atol")
    screen(csv_path, json_path)  # refuses two files on stdout before anything is solved
    steps = tuple(sorted({count for group in depths for count in group})) or problem.depths
    for path in (plot, csv_path, json_path):
        if path is not None:
            require_target(path)  # now, rather than after the work
    if rtol and context.get_parameter_source("solver") is ParameterSource.DEFAULT:
        solver = (solver_named("dopri5"),)
    _require_offered(backend, solver, dtype, device, adaptive=bool(rtol))
    figure = (plot, figure_format(plot)) if plot is not None else None
    if rtol:
        plan = SolvePlan((problem,), backend, solver, rtol, atol, dtype, device, repeats=0)
        solve_to_tolerances(plan, figure, csv_path, json_path)
    else:
        solve_in_equal_steps(problem, backend, solver, steps, dtype, device, figure, csv_path, json_path)


def _require_offered(
    backends: Sequence[str], solvers: Sequence[AnySolver], dtype: str, device: str, *, adaptive: bool = False
) -> None:
    """Raises whatever is wrong with the choices, before the first of them is solved.

    Args:
        backends, solvers: all of them, each with each.
        dtype, device: of the state.
        adaptive: whether steps follow a tolerance.

    Raises:
        OdenetError: a backend that is not there, does not offer a solver, or has no such number type or device.
    """
    for solver in solvers:
        if adaptive and not solver.estimates_error:
            raise UnsupportedError(
                f"solver {solver.label!r} with tolerances: it estimates no error",
                ", ".join(adaptive_solvers()),
                "take one of these, or --depth",
            )
    for name in backends:
        for solver in solvers:
            require(entry(name), solver, Backprop(), adaptive=adaptive)
        with backend_named(name).prepare(dtype, device):
            pass
