"""Telling a person how far a comparison is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from odenet.compare.grid import Cell
from odenet.compare.row import Row
from odenet.compare.units import error, seconds


class Watch:
    """Says which cell runs, and how each ended: a bar on a terminal, a line a cell anywhere else."""

    def __init__(self, console: Console, cells: Sequence[Cell], bar: Progress | None) -> None:
        self._console, self._cells, self._bar, self._done = console, cells, bar, 0
        self._task = bar.add_task("", total=len(cells)) if bar is not None else None
        self._announce()

    def finished(self, row: Row) -> None:
        """The next cell is done."""
        self._done += 1
        if self._bar is None:
            how = f"error {error(row.gradient_error)}" if row.ok else row.status
            cell = self._cells[self._done - 1]
            self._console.print(
                f"[{self._done}/{len(self._cells)}] {cell}: {how}, {seconds(row.cell_seconds)}", markup=False
            )
        elif not row.ok:
            self._bar.console.print(f"{self._cells[self._done - 1]}: {row.status}", markup=False, style="red")
        self._announce()

    def _announce(self) -> None:
        if self._bar is not None and self._task is not None:
            left = self._cells[self._done :]
            self._bar.update(self._task, completed=self._done, description=str(left[0]) if left else "done")
            self._bar.refresh()


@contextmanager
def watch(console: Console, cells: Sequence[Cell]) -> Iterator[Watch]:
    """A `Watch` over these cells. The bar is drawn between cells only: a thread that redraws it would disturb times."""
    if not console.is_terminal:
        yield Watch(console, cells, None)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    shape = (*columns, TextColumn("{task.description}", markup=False))
    with Progress(*shape, console=console, auto_refresh=False, transient=True, speed_estimate_period=600) as bar:
        yield Watch(console, cells, bar)
