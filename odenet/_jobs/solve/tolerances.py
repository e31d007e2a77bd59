"""`odenet solve --rtol`: one problem, each solve once."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress

from odenet._errors import OdenetError, UnsupportedError
from odenet._files import write_atomically, write_text
from odenet._jobs.output import say_written, screen
from odenet._jobs.solve.choices import require_offered
from odenet._jobs.work_precision.measure import measure
from odenet._jobs.work_precision.plan import SolvePlan
from odenet._jobs.work_precision.results import AdaptiveSolve, WorkPrecision
from odenet._jobs.work_precision.table import tables
from odenet._problem.problem import adaptive_solvers
from odenet._report.machine import machine
from odenet._report.rows import as_csv
from odenet._report.terminal import console


def solve_to_tolerances(plan: SolvePlan, figure: tuple[Path, str] | None, csv: Path | None, json: Path | None) -> None:
    """Solve, show a table, and write what was asked for.

    Args:
        plan: of one problem; each cell is called once, without a warm-up.
        figure: path and format of the work-precision figure.
        csv, json: paths of the table.

    Raises:
        OdenetError: a choice that cannot be used, before anything is solved; or the first failure after all were tried.
    """
    for chosen in plan.solvers:
        if not chosen.estimates_error:
            raise UnsupportedError(
                f"solver {chosen.label!r} with tolerances: it estimates no error",
                ", ".join(adaptive_solvers()),
                "take one of these, or --depth",
            )
    require_offered(plan.backends, plan.solvers, plan.dtype, plan.device, adaptive=True)
    messages, cells, rows = console(stderr=True), plan.cells(), []
    with Progress(console=messages, transient=True, disable=not messages.is_terminal) as progress:
        task = progress.add_task(plan.problems[0].name, total=len(cells))
        for row in measure(plan, cells):
            rows.append(row)
            progress.advance(task)
    for table in tables(rows):
        screen(csv, json).print(table)
    if csv is not None:
        write_text(csv, as_csv(AdaptiveSolve, rows))
    if json is not None:
        write_text(json, WorkPrecision(plan, machine(plan.backends), tuple(rows)).text())
    if figure is not None:
        _draw(rows, *figure)
    say_written(csv, json, figure and figure[0])
    for row in rows:
        if row.failed:
            raise OdenetError(f"{row.backend} {row.solver} with rtol={row.rtol:g} failed: {row.status.rstrip('.')}")


def _draw(rows: list[AdaptiveSolve], path: Path, kind: str) -> None:
    from odenet._jobs.work_precision.figure import diagram
    from odenet._report.figures import render  # matplotlib takes a second

    drawn = diagram(rows)
    if drawn is not None:
        write_atomically(path, lambda file: file.write(render(drawn, kind)))
