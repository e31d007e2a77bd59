"""`odenet compare`: the main job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from odenet._tables import console
from odenet.compare.findings import findings
from odenet.compare.flags import grid_flags, network_flags, number, plan_of
from odenet.compare.grid import Plan
from odenet.compare.machine import machine
from odenet.compare.measure import measure
from odenet.compare.progress import watch
from odenet.compare.results import Results, read, require_writable, set_aside
from odenet.compare.table import tables


@click.command("compare", context_settings={"help_option_names": ["-h", "--help"]})
@grid_flags(depth=",".join(str(depth) for depth in Plan().depths))
@network_flags
@number("--repeats", "Times that each cell is timed; the median counts.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("results/compare"),
    show_default=True,
    help="Folder of the results. An earlier run's results.* are kept there as results.previous.*.",
)
@click.option("--resume", is_flag=True, help="Go on from the results in --out: only missing and failed cells are run.")
@click.pass_context
def command(context: click.Context, out: Path, resume: bool, **options: Any) -> None:
    """Compare solvers, gradient methods and backends on one network and real data (handwritten digits).

    Every cell is compared with exact backprop in float64 at the same depth. Ctrl-C keeps what is done. Exit status: 0,
    1 if a cell failed, 130 after Ctrl-C. Set OMP_NUM_THREADS to time torch with more than one thread.

    \b
    Examples:
      odenet compare
      odenet compare --backend torch --solver heun --depth 8..128 --activation tanh --out results/heun
      odenet compare --resume --gradient discrete-adjoint:iterations=2
    """
    # read by OpenMP when a framework is loaded: two threads that spin on two busy cores time each other's waiting
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context.exit(compare(plan_of(options), out, resume, console(), console(stderr=True)))


def compare(plan: Plan, out: Path, resume: bool, screen: Console, messages: Console) -> int:
    """Run a plan and show it.

    Args:
        plan: what to compare.
        out: folder of the results.
        resume: whether to go on from what is there.
        screen: for the tables and what they say.
        messages: for progress and where the files are.

    Returns:
        the exit status: 0; 1 if a cell failed; 130 if the run was interrupted.

    Raises:
        FileError: `out` cannot be written to, or holds results that cannot be resumed.
        InputError: the results there have other settings.
        BackendUnavailableError: none of the backends is installed.
    """
    plan.require_a_backend()
    require_writable(out)
    results = _begin(plan, out, resume, messages)
    interrupted = False
    cells = results.todo()
    try:
        with watch(messages, cells) as progress:
            for row in measure(results.plan, cells):
                if not resume and not results.rows:
                    _say(messages, "kept the earlier results as", set_aside(out))
                results = results.add(row)
                results.write(out)
                progress.finished(row)
    except KeyboardInterrupt:
        interrupted = True
        messages.print(f"interrupted: {results.missing()} cells are left; writing the report of the rest")
    from odenet.compare.report import write_report  # matplotlib takes a second: not before cells are timed

    for made in tables(results.rows, screen):
        screen.print(made)
    for finding in findings(results):
        screen.print(f"• {finding}", markup=False)
    if results.rows:  # an earlier report is not replaced by an empty one
        _say(messages, "wrote", [path for path in write_report(results, out) if path.suffix != ".svg"])
    if interrupted:
        messages.print("go on with: the same command and --resume", markup=False)
        return 130
    return 1 if any(row.failed for row in results.rows) else 0


def _begin(plan: Plan, out: Path, resume: bool, messages: Console) -> Results:
    here = machine(plan.backends)
    earlier = read(out) if resume else None
    if earlier is None:
        if resume:
            messages.print(f"there are no results in {out} yet: starting from the beginning", markup=False)
        return Results(plan, here)
    return earlier.resumed(plan, here)


def _say(messages: Console, what: str, paths: list[Path]) -> None:
    if paths:
        messages.print(f"{what} {', '.join(map(str, paths))}", markup=False)
