"""`odenet benchmark work-precision`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from odenet import _flags, _registry
from odenet._tables import console
from odenet.compare.machine import machine
from odenet.compare.progress import watch
from odenet.compare.results import require_writable, set_aside
from odenet.compare.units import error, seconds
from odenet.work_precision.measure import measure
from odenet.work_precision.plan import Plan
from odenet.work_precision.results import Results, read
from odenet.work_precision.row import Row
from odenet.work_precision.table import tables

_PLURAL = {"problem": "problems", "backend": "backends", "solver": "solvers", "rtol": "tolerances"}


@click.command("work-precision", context_settings={"help_option_names": ["-h", "--help"]})
@_flags.problems("detest-b5,detest-c5,detest-d5")
@_flags.backends(",".join(_registry.available()) or "all")
@_flags.solvers("bosh3,dopri5,dopri8")
@_flags.tolerances("1e-3..1e-9")
@_flags.atol()
@_flags.dtype("float64")
@_flags.device()
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Times each cell is timed.")
@click.option(
    "--max-steps", type=click.IntRange(min=1), default=20000, show_default=True, help="Steps tried in a solve."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("results/work-precision"),
    show_default=True,
    help="Folder of the results. An earlier run's results.* are kept there as results.previous.*.",
)
@click.option("--resume", is_flag=True, help="Go on from the results in --out: only missing and failed cells are run.")
@click.pass_context
def command(context: click.Context, out: Path, resume: bool, **options: Any) -> None:
    """Error against field evaluations and against seconds, for all backends in one figure.

    Each problem is solved by each solver to each tolerance, by every backend in turn. What a backend does not offer is
    skipped with a line. Ctrl-C keeps what is done. Exit status: 0, 1 if a cell failed, 130 after Ctrl-C.

    \b
    Examples:
      odenet benchmark work-precision
      odenet benchmark work-precision --problem detest-d5 --backend torch,jax --solver dopri5,tsit5 --rtol 1e-3..1e-9
      odenet benchmark work-precision --resume --solver dopri8
      odenet benchmark work-precision --problem robertson,oregonator --backend diffrax --solver kvaerno3,kvaerno5
    """
    # read by OpenMP when a framework is loaded: two threads that spin on two busy cores time each other's waiting
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    plan = Plan(**{_PLURAL.get(name, name): value for name, value in options.items()})
    context.exit(work_precision(plan, out, resume, console(), console(stderr=True)))


def work_precision(plan: Plan, out: Path, resume: bool, screen: Console, messages: Console) -> int:
    """Run a plan and show it.

    Args:
        plan: what to solve.
        out: folder of the results.
        resume: whether to go on from what is there.
        screen: for the tables.
        messages: for progress and where the files are.

    Returns:
        the exit status: 0; 1 if a cell failed; 130 if the run was interrupted.

    Raises:
        FileError: `out` cannot be written to, or holds results that cannot be resumed.
        InputError: the results there have other options.
        BackendUnavailableError: none of the backends is installed.
    """
    plan.require_a_backend()
    require_writable(out)
    here = machine(plan.backends)
    earlier = read(out) if resume else None
    results = Results(plan, here) if earlier is None else earlier.resumed(plan, here)
    if resume and earlier is None:
        messages.print(f"there are no results in {out} yet: starting from the beginning", markup=False)
    interrupted = False
    cells = results.todo()
    try:
        with watch(messages, cells, _said) as progress:
            for row in measure(results.plan, cells):
                if not resume and not results.rows:
                    _say(messages, "kept the earlier results as", set_aside(out))
                results = results.add(row)
                results.write(out)
                progress.finished(row)
    except KeyboardInterrupt:
        interrupted = True
        messages.print(f"interrupted: {results.missing()} cells are left; writing the report of the rest")
    from odenet.work_precision.report import write_report  # matplotlib takes a second: not before cells are timed

    for made in tables([row for row in results.rows if not row.skipped]):
        screen.print(made)
    if results.rows:  # an earlier report is not replaced by an empty one
        _say(messages, "wrote", [path for path in write_report(results, out) if path.suffix != ".svg"])
    if interrupted:
        messages.print("go on with: the same command and --resume", markup=False)
        return 130
    return 1 if any(row.failed for row in results.rows) else 0


def _said(row: Row) -> str:
    if not row.ok:
        return row.result or row.status
    return f"error {error(row.error)}, {row.f_evaluations} f, {seconds(row.solve_seconds)}"


def _say(messages: Console, what: str, paths: list[Path]) -> None:
    if paths:
        messages.print(f"{what} {', '.join(map(str, paths))}", markup=False)
