"""`odenet benchmark`: measurements of solves that need no network and no data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from odenet._backend import registry as _registry
from odenet._jobs import flags as _flags
from odenet._jobs.cells.programs import keep_programs
from odenet._jobs.cells.run import CellJob, JobOptions, complete, one_thread
from odenet._jobs.groups import WITH_SHORT_HELP, SuggestingGroup
from odenet._jobs.work_precision.measure import measure
from odenet._jobs.work_precision.results import COLUMNS, AdaptiveSolve, SolvePlan, WorkPrecision, tables
from odenet._report.html import details, document, figure, header
from odenet._report.units import error, seconds

FIGURE = "work_precision"
_CAPTION = (
    "Error at t1 against field evaluations (left) and seconds (right), a point for each tolerance. Lower and further "
    "left is better. Where backends coincide on the left, they took the same steps."
)
_PLURAL = {"problem": "problems", "backend": "backends", "solver": "solvers", "rtol": "tolerances"}


@click.group(cls=SuggestingGroup, context_settings=WITH_SHORT_HELP)
def command() -> None:
    """Measure solves of test problems.

    \b
    Examples:
      odenet benchmark work-precision
      odenet benchmark work-precision --problem kepler --backend torch,jax,torchdiffeq,diffrax --solver dopri5,tsit5
    """


@command.command(
    "work-precision", short_help="Error against evaluations and seconds.", context_settings=WITH_SHORT_HELP
)
@_flags.problems("detest-b5,detest-c5,detest-d5")
@_flags.backends(",".join(_registry.available()) or "all")
@_flags.solvers("bosh3,dopri5,dopri8")
@_flags.tolerances("1e-3..1e-9")
@_flags.atol()
@_flags.dtype("float64")
@_flags.device()
@click.option("--repeats", type=_flags.Whole(1), default=5, show_default=True, help="Timings of each cell.")
@click.option("--max-steps", type=_flags.Whole(1), default=20000, show_default=True, help="Most steps of a solve.")
@_flags.job("results/work-precision")
@click.pass_context
def _work_precision(context: click.Context, job: JobOptions, **options: Any) -> None:
    """Error against field evaluations and against seconds, for all backends in one figure.

    Each problem is solved by each solver to each tolerance, by the backends alternately. Combinations that a backend
    does not offer are skipped with a message. Ctrl-C keeps the finished cells. Exit status: 0, 1 if a cell failed, 130
    after Ctrl-C.

    \b
    Examples:
      odenet benchmark work-precision
      odenet benchmark work-precision --problem detest-d5 --backend torch,jax --solver dopri5,tsit5 --rtol 1e-3..1e-9
      odenet benchmark work-precision --resume --solver dopri8
      odenet benchmark work-precision --problem robertson,oregonator --backend diffrax --solver kvaerno3,kvaerno5
    """
    one_thread()
    keep_programs()
    plan = SolvePlan(**{_PLURAL.get(name, name): value for name, value in options.items()})
    context.exit(complete(JOB, plan, job))


def show(results: WorkPrecision, screen: Console) -> None:
    """Print the tables of the benchmark."""
    for table in tables([row for row in results.rows if not row.skipped]):
        screen.print(table)


def write(results: WorkPrecision, folder: Path) -> list[Path]:
    """Write the figure (PNG and SVG) and `report.html`; finished cells are enough."""
    from odenet._jobs.work_precision.figure import diagram  # matplotlib takes a second: not before cells are timed
    from odenet._report.figures import write_report

    drawn = diagram(results.rows)
    return write_report({} if drawn is None else {FIGURE: drawn}, partial(_page, results), folder, dpi=130)


def _page(results: WorkPrecision, drawings: Mapping[str, str]) -> str:
    plan = results.plan
    lead = f"{', '.join(plan.backends)} · {', '.join(solver.label for solver in plan.solvers)}"
    reached = sum(row.ok for row in results.rows)
    return document(
        "odenet benchmark work-precision",
        [
            header("Work and precision", (lead, f"{reached} of {len(plan.cells())} cells reached t1")),
            *(figure(svg, _CAPTION) for svg in drawings.values()),
            *details(results.rows, COLUMNS, "dopri5 torch 1e-06 …", plan.to_json(), results.machine),
        ],
    )


def _in_words(row: AdaptiveSolve) -> str:
    if not row.ok:
        return row.result or row.status
    return f"error {error(row.error)}, {row.f_evaluations} f, {seconds(row.solve_seconds)}"


JOB = CellJob(WorkPrecision, measure, _in_words, show, write)
