"""Running the cells that are left, on disk as they come, until all are done or Ctrl-C."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console

from odenet._files import require_writable
from odenet._jobs.cells.executor import ExecutorChoice, pool
from odenet._jobs.cells.plan import CellPlan
from odenet._jobs.cells.progress import watch
from odenet._jobs.cells.results import JSON, CellResults, set_aside
from odenet._jobs.cells.resume import nothing_there
from odenet._jobs.cells.shard import Shard
from odenet._jobs.cells.spread import ALONE, Spread, UnitPlan
from odenet._report.machine import joined, machine
from odenet._report.terminal import console

GO_ON = "go on with: the same command and --resume"
BEGIN = "nothing is kept; begin again with: the same command"
AnyResults = TypeVar("AnyResults", bound=CellResults[Any, Any])


@dataclass(frozen=True)
class JobOptions:
    """What every job over cells is told beside its plan.

    Args:
        out: folder of the results.
        resume: whether to go on from what is there.
        shard: the part of the plan to do; None for all.
        executor: who measures, see `odenet._jobs.cells.executor.pool`; None for this process.
        screen: for tables and what they say.
        messages: for progress and where the files are.
    """

    out: Path
    resume: bool = False
    shard: Shard | None = None
    executor: ExecutorChoice | None = None
    screen: Console = field(default_factory=console)
    messages: Console = field(default_factory=lambda: console(stderr=True))


@dataclass(frozen=True)
class CellJob(Generic[AnyResults]):
    """What differs between the jobs over cells.

    Args:
        results: the class of its results.
        measure: `measure(plan, cells)`, a row for each of the cells.
        in_words: what is said of a row as soon as it is there.
        show: prints tables of the results.
        write: writes the report into a folder and says what it wrote.
        carry: `carry(whole, parts, out)` copies what the merged parts have left beside their results.
    """

    results: type[AnyResults]
    measure: Callable[[Any, Any], Iterator[Any]]
    in_words: Callable[[Any], str]
    show: Callable[[AnyResults, Console], None]
    write: Callable[[AnyResults, Path], list[Path]]
    carry: Callable[[AnyResults, Mapping[Path, AnyResults], Path], AnyResults] | None = None


def one_thread() -> None:
    """Let a framework that is loaded from now on compute with one thread, unless OMP_NUM_THREADS says how many.

    OpenMP reads it when a framework is loaded: two threads that spin on two busy cores time each other's waiting.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def complete(job: CellJob[Any], plan: CellPlan, options: JobOptions) -> int:
    """Measure the cells of a plan that are left, show the results, and write their report.

    Each row is on disk before the next cell is measured.

    Returns:
        the exit status: 0; 1 if a cell failed, is left or none was measured; 130 if the run was interrupted.

    Raises:
        FileError: `out` cannot be written to, holds results that cannot be resumed, or has none to resume.
        InputError: the results there have other settings, or are of another machine.
        BackendUnavailableError: none of the backends is installed.
    """
    plan.require_a_backend()
    out, resume, messages = options.out, options.resume, options.messages
    fresh = job.results(plan, machine(plan.backends), shard=options.shard)
    earlier = fresh.read(out) if resume else None
    if resume and earlier is None:
        raise nothing_there(out, JSON, "no results.json")
    require_writable(out)
    results = fresh if earlier is None else earlier.resumed(fresh.plan, fresh.machine, fresh.shard)
    cells, interrupted = results.todo(), False
    by_key = {cell.key: cell for cell in cells}
    try:
        with (
            measured(job.measure, results.plan, cells, options) as (rows, machines),
            watch(messages, cells) as progress,
        ):
            for row, grown in results.growing(rows):
                if not resume and not results.rows:
                    say_paths(messages, "kept the earlier results as", set_aside(out))
                results = replace(grown, machine=joined([grown.machine, *machines])) if machines else grown
                results.write(out)
                progress.finished(by_key[row.key], job.in_words(row), row.ok)
    except KeyboardInterrupt:
        messages.print(f"interrupted: {len(results.left())} cells are left; writing the report of the rest")
        interrupted = True
    job.show(results, options.screen)
    if results.rows:  # an earlier report is not replaced by an empty one
        say_paths(messages, "wrote", job.write(results, out))
    if interrupted:
        messages.print(GO_ON if results.rows or resume else BEGIN, markup=False)
        return 130
    if not any(row.ok for row in results.rows):
        messages.print("nothing was measured: no cell is offered by what is installed", markup=False)
        return 1
    left = len(results.left())
    if left:
        messages.print(f"{left} cells are left; {GO_ON}", markup=False)
    return 1 if left or any(row.failed for row in results.rows) else 0


@contextmanager
def measured(
    measure: Callable[[Any, Any], Iterator[Any]],
    plan: UnitPlan,
    cells: Sequence[Any],
    options: JobOptions,
) -> Iterator[tuple[Iterator[Any], list[Mapping[str, str]]]]:
    """The rows of cells as they come, here or by an executor's workers, and what machines these turn out to be."""
    executor, messages = options.executor, options.messages
    if executor is None:
        yield measure(plan, cells), []
        return

    def lost(unit: Sequence[Any], error: BaseException) -> None:
        names = ", ".join(map(str, unit))
        messages.print(f"given up after {ALONE} tries alone ({type(error).__name__}: {error}): {names}", markup=False)

    workers = pool(executor)
    try:
        spread = Spread(workers, measure, plan, partial(machine, plan.backends), lost)
        spread.machines.append({"executor": executor if isinstance(executor, str) else type(executor).__name__})
        yield spread.results(plan.units(cells)), spread.machines
    finally:
        workers.close()


def say_paths(messages: Console, lead: str, paths: list[Path]) -> None:
    """One line on the paths, if there are any; figures are named once, by their PNG."""
    names = [str(path) for path in paths if path.suffix != ".svg"]
    if names:
        messages.print(f"{lead} {', '.join(names)}", markup=False)
