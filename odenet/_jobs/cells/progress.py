"""Telling a person how far a job of many cells is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress

from odenet._report.terminal import progress_bar


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
