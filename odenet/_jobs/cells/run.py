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
from rich.progress import Progress

from odenet._files import require_writable
from odenet._jobs.cells.executor import ExecutorChoice, pool
from odenet._jobs.cells.plan import CellPlan, Shard
from odenet._jobs.cells.results import CSV, JSON, CellResults, set_aside
from odenet._jobs.cells.resume import OwnFile, nothing_there
from odenet._jobs.cells.spread import ALONE, Spread, UnitPlan
from odenet._report.machine import joined, machine
from odenet._report.terminal import console, progress_bar

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
        FileError: `out` cannot be written to, was written to by another run meanwhile, holds results that cannot be
            resumed, or has none to resume.
        InputError: the results there have other settings, or are of another machine.
        BackendUnavailableError, DeviceUnavailableError: none of the backends is installed, or sees the device here.
    """
    plan.require_a_backend()
    if options.executor is None:  # workers may be on machines that have others
        plan.require_a_device()
    out, resume, messages = options.out, options.resume, options.messages
    fresh = job.results(plan, machine(plan.backends), shard=options.shard)
    earlier = fresh.read(out) if resume else None
    if resume and earlier is None:
        raise nothing_there(out, JSON, "no results.json")
    require_writable(out)
    results = fresh if earlier is None else earlier.resumed(fresh.plan, fresh.machine, fresh.shard)
    cells, interrupted = results.todo(), False
    by_key, own = {cell.key: cell for cell in cells}, OwnFile(out / JSON)
    try:
        with (
            measured(job.measure, results.plan, cells, options) as (rows, machines),
            watch(messages, cells) as progress,
        ):
            for row, grown in results.growing(rows):
                first = not resume and not results.rows
                results = replace(grown, machine=joined([grown.machine, *machines])) if machines else grown
                own.write(partial(_write, results, out, messages, first))
                progress.finished(by_key[row.key], job.in_words(row), row.ok)
    except KeyboardInterrupt:
        messages.print(f"interrupted: {len(results.left())} cells are left; writing the report of the rest")
        interrupted = True
    job.show(results, options.screen)
    if results.rows:  # an earlier report is not replaced by an empty one
        own.write(partial(results.write, out))  # before a report of it: the folder may be gone, or another run's
        say_paths(messages, "wrote", job.write(results, out))
    if interrupted:
        messages.print(GO_ON if results.rows or resume else BEGIN, markup=False)
        return 130
    if not any(row.ok for row in results.rows):
        failed = any(row.failed for row in results.rows)
        why = "see above why its cells failed" if failed else "no cell is offered by what is installed"
        messages.print(f"nothing was measured: {why}", markup=False)
        return 1
    left = len(results.left())
    if left:
        messages.print(f"{left} cells are left; {GO_ON}", markup=False)
    return 1 if left or any(row.failed for row in results.rows) else 0


def _write(results: CellResults[Any, Any], out: Path, messages: Console, first: bool) -> None:
    """Write results; before the first of a new run, rename those of an earlier one."""
    if first:
        keep_earlier(messages, out)
    results.write(out)


def keep_earlier(messages: Console, out: Path, names: Sequence[str] = (CSV, JSON)) -> None:
    """Rename the results of an earlier run (see `set_aside`), and say so."""
    say_paths(messages, "kept the earlier results as", set_aside(out, names))


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


class CellProgress:
    """Says which cell runs, and how each ended: a bar on a terminal, a line a cell anywhere else."""

    def __init__(self, console: Console, cells: Sequence[Any], bar: Progress | None) -> None:
        self._console, self._left, self._bar, self._count = console, list(cells), bar, len(cells)
        self._task = bar.add_task("", total=len(cells)) if bar is not None else None
        self._announce()

    def finished(self, cell: Any, how: str, ok: bool = True) -> None:
        """A cell is done, and this is to be said of it; what is not ok stays on a terminal, too."""
        self._left.remove(cell)
        if self._bar is None:
            self._console.print(f"[{self._count - len(self._left)}/{self._count}] {cell}: {how}", markup=False)
        elif not ok:
            self._bar.console.print(f"{cell}: {how}", markup=False, style="red")
        self._announce()

    def _announce(self) -> None:
        if self._bar is not None and self._task is not None:
            description = str(self._left[0]) if self._left else "done"
            self._bar.update(self._task, completed=self._count - len(self._left), description=description)
            self._bar.refresh()


@contextmanager
def watch(console: Console, cells: Sequence[Any]) -> Iterator[CellProgress]:
    """A `CellProgress` over cells. The bar is drawn between cells only: a thread that redraws it would disturb times.

    Args:
        console: where it is told.
        cells: with a `str` each.
    """
    with progress_bar(console, auto_refresh=False, speed_estimate_period=600) as bar:
        yield CellProgress(console, cells, bar)
