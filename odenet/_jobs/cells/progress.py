"""Telling a person how far a job of many cells is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress

from odenet._report.progress import progress_bar


class CellProgress:
    """Says which cell runs, and how each ended: a bar on a terminal, a line a cell anywhere else."""

    def __init__(self, console: Console, cells: Sequence[Any], bar: Progress | None) -> None:
        self._console, self._cells, self._bar, self._done = console, cells, bar, 0
        self._task = bar.add_task("", total=len(cells)) if bar is not None else None
        self._announce()

    def finished(self, how: str, ok: bool = True) -> None:
        """The next cell is done, and this is to be said of it; what is not ok stays on a terminal, too."""
        self._done += 1
        if self._bar is None:
            cell = self._cells[self._done - 1]
            self._console.print(f"[{self._done}/{len(self._cells)}] {cell}: {how}", markup=False)
        elif not ok:
            self._bar.console.print(f"{self._cells[self._done - 1]}: {how}", markup=False, style="red")
        self._announce()

    def _announce(self) -> None:
        if self._bar is not None and self._task is not None:
            left = self._cells[self._done :]
            self._bar.update(self._task, completed=self._done, description=str(left[0]) if left else "done")
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
