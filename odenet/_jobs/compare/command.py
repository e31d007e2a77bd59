"""`odenet compare`: the main job."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from odenet._jobs import flags as _flags
from odenet._jobs.cells.flags import grid_flags, network_flags, number, plan_field, plan_of
from odenet._jobs.cells.grid import GridPlan
from odenet._jobs.cells.programs import keep_programs
from odenet._jobs.cells.run import CellJob, JobOptions, complete, one_thread
from odenet._jobs.compare.findings import findings, verdict
from odenet._jobs.compare.measure import measure
from odenet._jobs.compare.page import page, tables
from odenet._jobs.compare.results import Comparison, MeasuredGradient
from odenet._jobs.groups import WITH_SHORT_HELP
from odenet._report.units import error, seconds
from odenet._solvers.names import solver

FULL = GridPlan()
"""The convolutional network of the paper: minutes, most of which JAX compiles."""
DEFAULT = dataclasses.replace(
    FULL, solvers=tuple(map(solver, ("euler", "heun"))), block="mlp", activation="tanh", batch=100
)
"""A network without kinks, whose orders are clean, and which is measured in less than a minute."""


@click.command("compare", short_help="Compare solvers, gradient methods, backends.", context_settings=WITH_SHORT_HELP)
@click.option("--full", is_flag=True, help="The larger grid: conv blocks with ReLU and group normalisation, rk4, too.")
@grid_flags(DEFAULT)
@network_flags(DEFAULT)
@number("--repeats", "Timings of each cell, of which the median is taken.", DEFAULT)
@_flags.job("results/compare")
@click.pass_context
def command(context: click.Context, job: JobOptions, full: bool, **options: Any) -> None:
    """Compare solvers, gradient methods and backends on one network and real data (handwritten digits).

    Every cell is compared with exact backprop in float64 at the same depth. Ctrl-C keeps the finished cells. Exit
    status: 0, 1 if a cell failed, 130 after Ctrl-C. Set OMP_NUM_THREADS to time torch with more than one thread.

    \b
    Examples:
      odenet compare
      odenet compare --full
      odenet compare --backend torch --solver heun --depth 8..128 --out results/heun
      odenet compare --resume --gradient discrete-adjoint:iterations=2
      odenet compare --shard 1/4 --executor processes:4 --out part1
    """
    _flags.require_read(context, options["block"])
    one_thread()
    keep_programs()
    if full:
        unset = (name for name in options if context.get_parameter_source(name) is ParameterSource.DEFAULT)
        options |= {name: getattr(FULL, plan_field(name)) for name in unset}
    context.exit(complete(JOB, plan_of(options), job))


def show(results: Comparison, screen: Console) -> None:
    """The tables, and what they say."""
    for table in tables(results.rows, screen):
        screen.print(table)
    screen.print(verdict(results), style="bold", markup=False)
    for finding in findings(results):
        screen.print(f"• {finding}", markup=False)


def write(results: Comparison, folder: Path) -> list[Path]:
    """Write the figures (PNG and SVG) and `report.html`; finished cells are enough."""
    from odenet._jobs.compare.figures import figures  # matplotlib takes a second: not before cells are timed
    from odenet._report.figures import write_report

    return write_report(figures(results.rows), partial(page, results), folder)


def _in_words(row: MeasuredGradient) -> str:
    how = f"error {error(row.gradient_error)}" if row.ok else row.status
    return f"{how}, {seconds(row.cell_seconds)}"


JOB = CellJob(Comparison, measure, _in_words, show, write)
