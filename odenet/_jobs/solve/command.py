"""`odenet solve`: one test problem, by every chosen backend and solver, at several numbers of steps or tolerances."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem
from rich.progress import Progress

import odenet
from odenet import _tree
from odenet._backend.registry import available, entry, require
from odenet._errors import FileError, OdenetError
from odenet._files import write_atomically, write_text
from odenet._jobs import flags as _flags
from odenet._jobs.solve.convergence import Run, as_csv, as_json, fitted_order, observed_order, series
from odenet._jobs.solve.tolerances import once
from odenet._jobs.work_precision.plan import Plan
from odenet._problem.solution import Result, Solution
from odenet._report.terminal import console, table
from odenet._solvers.names import AnySolver
from odenet._test_problems.named import PROBLEMS, problem_named
from odenet._test_problems.record import TestProblem
from odenet._test_problems.reference import Reference, arrays, numerical, reference, relative_error

_DRAWN = 400  # points of the reference curve


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
        found = [problem for problem in PROBLEMS.values() if problem.name.startswith(incomplete)]
        return [CompletionItem(problem.name, help=problem.summary) for problem in found]


def _default_backend() -> str:
    """torch where it is installed, else the first backend that is."""
    names = tuple(available())
    return "torch" if "torch" in names or not names else names[0]


_file = click.Path(dir_okay=False, path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
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
@click.option("--plot", type=_file, help="Write a figure here: error against steps, and the solution; against work.")
@click.option("--csv", "csv_path", type=_file, help="Write the table here, one row a run.")
@click.option("--json", "json_path", type=_file, help="Write the table here, with the orders of convergence.")
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
    --rtol, with steps that follow the error, at several tolerances.

    PROBLEM is one that `odenet list problems` names. The error is that of the state at t1, relative, in the maximum
    norm. --solver is then dopri5 by default, and --atol as --rtol.

    \b
    Examples:
      odenet solve lotka-volterra
      odenet solve kepler --solver euler,heun,rk4,dopri8 --depth 64..1024
      odenet solve rotation --backend torch,jax --dtype float32
      odenet solve arenstorf --solver dopri8 --plot orbit.png --csv orbit.csv
      odenet solve kepler --solver dopri5,tsit5 --rtol 1e-3..1e-9
    """
    from odenet._jobs.solve.figure import draw, figure_format

    if (depths or atol is not None) and bool(depths) == bool(rtol):
        raise click.UsageError("take --depth, or --rtol with or without --atol")
    steps = tuple(sorted({count for group in depths for count in group})) or problem.depths
    for path in (plot, csv_path, json_path):
        _check_writable(path)
    kind = figure_format(plot) if plot is not None else ""
    if rtol:
        if context.get_parameter_source("solver") is ParameterSource.DEFAULT:
            solver = (odenet.solver("dopri5"),)
        plan = Plan((problem,), backend, solver, rtol, atol, dtype, device, repeats=0)
        return once(plan, None if plot is None else (plot, kind), csv_path, json_path)
    for name in backend:  # all that can be wrong with the choices is said before the first run
        for chosen in solver:
            require(entry(name), chosen, odenet.gradient("backprop"))
        with odenet.backend(name).prepare(dtype, device):
            pass

    truth = reference(problem)
    runs: list[Run] = []
    screen = console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task(problem.name, total=len(backend) * len(solver) * sum(steps))
        for name in backend:
            for chosen in solver:
                for count in steps:
                    progress.update(task, description=f"{problem.name}: {name} {chosen.name}, {count} steps")
                    runs.append(_run(problem, name, chosen, count, dtype, device, truth.state))
                    progress.advance(task, count)
    _report(problem, runs, truth)
    if csv_path is not None:
        write_text(csv_path, as_csv(runs))
    if json_path is not None:
        write_text(json_path, as_json(problem, runs, truth))
    if plot is not None:
        finest = _finest(problem, runs, dtype, device)
        ts = [problem.t0 + (problem.t1 - problem.t0) * n / _DRAWN for n in range(_DRAWN + 1)]
        curve = ts, _stacked(numerical(problem, ts, 1e-9, 1e-9))
        write_atomically(plot, lambda file: draw(file, kind, problem, runs, truth.uncertainty, finest, curve))
    for path in (csv_path, json_path, plot):
        if path is not None:
            click.echo(f"wrote {path}", err=True)


def _solve(problem: TestProblem, backend: str, solver: AnySolver, steps: int, dtype: str, ts: Any) -> Solution:
    return odenet.solve(
        problem.field,
        arrays(problem.y0, dtype),
        arrays(problem.weights, dtype),
        t0=problem.t0,
        t1=problem.t1,
        steps=steps,
        ts=ts,
        solver=solver,
        backend=backend,
    )


def _run(problem: TestProblem, name: str, solver: AnySolver, steps: int, dtype: str, device: str, truth: Any) -> Run:
    backend = odenet.backend(name)
    with backend.prepare(dtype, device):
        start = time.perf_counter()
        solution = _solve(problem, name, solver, steps, dtype, None)
        state = _tree.map(backend.to_numpy, solution.y1)  # waits for the device
        seconds = time.perf_counter() - start
        result = solution.result
    return Run(
        problem=problem.name,
        backend=name,
        solver=solver.name,
        order=solver.order,
        dtype=dtype,
        device=device,
        steps=steps,
        f_evaluations=solution.stats.f_evaluations,
        relative_error=relative_error(state, truth),
        seconds=seconds,
        result="success" if result is Result.SUCCESS else "not finite",
    )


def _finest(
    problem: TestProblem, runs: Sequence[Run], dtype: str, device: str
) -> tuple[Run, Sequence[float], Any] | None:
    """The best of the runs with the most steps, once more with every step kept."""
    ended = [run for run in runs if run.result == "success"]
    if not ended:
        return None
    best = min(ended, key=lambda run: (-run.steps, run.relative_error))
    backend = odenet.backend(best.backend)
    with backend.prepare(dtype, device):
        solution = _solve(problem, best.backend, odenet.solver(best.solver), best.steps, dtype, "all")
        return best, backend.to_numpy(solution.ts).tolist(), _tree.map(backend.to_numpy, solution.ys)


def _stacked(states: Sequence[Any]) -> Any:
    import numpy as np

    return _tree.map(lambda *leaves: np.stack(leaves), *states)


def _report(problem: TestProblem, runs: Sequence[Run], truth: Reference) -> None:
    rows: list[tuple[str, ...]] = []
    for found in series(runs).values():
        fitted = fitted_order(found, truth.uncertainty)
        for index, run in enumerate(found):
            before = observed_order(found[index - 1], run) if index else None
            rows.append(
                (
                    run.backend,
                    f"{run.solver} ({run.order})",
                    str(run.steps),
                    str(run.f_evaluations),
                    f"{run.relative_error:.2e}",
                    _number(before),
                    _number(fitted) if run is found[-1] else "",
                    f"{run.seconds:.3f}",
                    run.result,
                )
            )
    columns = "backend|solver|>steps|>f|>error|>order|>fitted|>seconds|result".split("|")
    exact = f"relative to {truth.uncertainty:.0e}" if truth.uncertainty else "exact"
    caption = (
        "solver: with its order. "
        f"error: relative, max norm, at t = {problem.t1:.6g}, against {truth.method} ({exact}). "
        "order: from the row above. fitted: over rows with errors between rounding and 0.5. "
        "seconds: one call, compilation included; `odenet compare` measures with a warm-up."
    )
    console().print(table(f"{problem.name}: {problem.summary}", columns, rows, caption))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _check_writable(path: Path | None) -> None:
    """Raises FileError now rather than after the work, unless a file can be made there."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        raise FileError(
            f"{path} cannot be written ({reason})", "a folder you may write to", "choose another path"
        ) from error
