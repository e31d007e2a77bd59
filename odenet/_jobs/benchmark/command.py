"""`odenet benchmark`: measurements of solves that need no network and no data."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from odenet._backend import registry as _registry
from odenet._jobs import flags as _flags
from odenet._jobs.cells.executor import ExecutorChoice
from odenet._jobs.cells.programs import keep_programs
from odenet._jobs.cells.run import complete, one_thread
from odenet._jobs.cells.shard import Shard
from odenet._jobs.groups import SuggestingGroup
from odenet._jobs.work_precision.measure import measure
from odenet._jobs.work_precision.plan import SolvePlan
from odenet._jobs.work_precision.results import AdaptiveSolve, WorkPrecision
from odenet._jobs.work_precision.table import tables
from odenet._report.machine import machine
from odenet._report.terminal import console
from odenet._report.units import error, seconds

_PLURAL = {"problem": "problems", "backend": "backends", "solver": "solvers", "rtol": "tolerances"}


@click.group(cls=SuggestingGroup, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Measure solves of test problems.

    \b
    Examples:
      odenet benchmark work-precision
      odenet benchmark work-precision --problem kepler --backend torch,jax,torchdiffeq,diffrax --solver dopri5,tsit5
    """


@command.command("work-precision", context_settings={"help_option_names": ["-h", "--help"]})
@_flags.problems("detest-b5,detest-c5,detest-d5")
@_flags.backends(",".join(_registry.available()) or "all")
@_flags.solvers("bosh3,dopri5,dopri8")
@_flags.tolerances("1e-3..1e-9")
@_flags.atol()
@_flags.dtype("float64")
@_flags.device()
@click.option("--repeats", type=_flags.Whole(1), default=5, show_default=True, help="Timings of each cell.")
@click.option("--max-steps", type=_flags.Whole(1), default=20000, show_default=True, help="Most steps of a solve.")
@_flags.out("results/work-precision")
@_flags.resume()
@_flags.shard()
@_flags.executor()
@click.pass_context
def _work_precision(
    context: click.Context, out: Path, resume: bool, shard: Shard | None, executor: str | None, **options: Any
) -> None:
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
    context.exit(work_precision(plan, out, resume, console(), console(stderr=True), shard, executor))


def work_precision(
    plan: SolvePlan,
    out: Path,
    resume: bool,
    screen: Console,
    messages: Console,
    shard: Shard | None = None,
    executor: ExecutorChoice | None = None,
) -> int:
    """Run a plan, and show it.

    Args:
        plan: what to solve.
        out: folder of the results.
        resume: whether to go on from what is there.
        screen: for the tables.
        messages: for progress and where the files are.
        shard: the part of the plan to do; None for all.
        executor: who measures; None for this process.

    Returns, raises: as `odenet._jobs.cells.run.complete`.
    """
    fresh = WorkPrecision(plan, machine(plan.backends), shard=shard)
    shown = partial(show, screen=screen)
    return complete(fresh, out, resume, measure, _in_words, shown, write, messages, executor)


def show(results: WorkPrecision, screen: Console) -> None:
    """Print the tables of the benchmark."""
    for table in tables([row for row in results.rows if not row.skipped]):
        screen.print(table)


def write(results: WorkPrecision, folder: Path) -> list[Path]:
    """Write the report of the benchmark."""
    from odenet._jobs.benchmark.report import write_report  # matplotlib takes a second: not before cells are timed

    return write_report(results, folder)


def _in_words(row: AdaptiveSolve) -> str:
    if not row.ok:
        return row.result or row.status
    return f"error {error(row.error)}, {row.f_evaluations} f, {seconds(row.solve_seconds)}"
