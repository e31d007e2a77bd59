"""Tables on the terminal: plain cells, no markup, and no line broken at 80 columns where nobody looks at a screen."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

_GAP = 2  # spaces between columns
_WIDTH = 200  # of output into a file or a pipe, which has no width of its own


def console(stderr: bool = False, quiet: bool = False) -> Console:
    """A console that fits the terminal or COLUMNS, or is wide where there is neither; a quiet one prints nothing."""
    stream = sys.stderr if stderr else sys.stdout
    columns = os.environ.get("COLUMNS", "")
    chosen = int(columns) if columns.isdecimal() else None
    if chosen == 0:  # nobody's width, which rich would take
        chosen = shutil.get_terminal_size().columns
    if chosen is None and not stream.isatty():
        chosen = _WIDTH
    return Console(stderr=stderr, highlight=False, width=chosen, quiet=quiet)


@dataclass(frozen=True)
class Table:
    """A table that never drops or breaks a number: where its columns do not fit, rows are stacked, a line a cell.

    Args:
        title: above it.
        headings: of the columns; one that begins with ">" is of numbers, to the right.
        rows: the cells.
        caption: below it.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def fits(self, width: int) -> bool:
        """Whether every column has the room that it needs: a number whole, a text its longest word."""
        columns = range(len(self.headings))
        return sum(self._least(column) + _GAP for column in columns) + 1 <= width

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, "bold")
        if self.fits(options.max_width):
            yield self._grid()
        else:
            yield from self._stacked()
        if self.caption:
            yield Text(self.caption)
        yield Text("")  # between this and the next table

    def _grid(self) -> RichTable:
        grid = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        for index, heading in enumerate(self.headings):
            grid.add_column(
                Text(heading.removeprefix(">")),
                justify="right" if heading.startswith(">") else "left",
                no_wrap=self._whole(index),
                min_width=self._least(index),
                overflow="fold",
            )
        for row in self.rows:
            grid.add_row(*map(Text, row))
        return grid

    def _stacked(self) -> Iterator[Text]:
        first, *others = (heading.removeprefix(">").replace("\n", "") for heading in self.headings)
        for row in itertools.chain.from_iterable(map(self._lines, self.rows)):
            yield Text(f"{first}: {row[0]}", overflow="fold")
            for heading, cell in zip(others, row[1:], strict=True):
                if cell:
                    yield Text(f"  {heading}: {cell}" if heading else f"  {cell}", overflow="fold")

    def _lines(self, row: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """A row whose numbers stand in several lines as one row for each of these."""
        parts = (cell.splitlines() if self._whole(column) else [cell] for column, cell in enumerate(row))
        return itertools.zip_longest(*parts, fillvalue="")

    def _whole(self, column: int) -> bool:
        return column == 0 or self.headings[column].startswith(">")

    def _least(self, column: int) -> int:
        cells = [self.headings[column].removeprefix(">"), *(row[column] for row in self.rows)]
        parts = (cell.splitlines() if self._whole(column) else cell.split() for cell in cells)
        return max((cell_len(part) for cell in parts for part in cell), default=0)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> Table:
    """A table of plain text.

    Args:
        title: above it.
        columns: headings; one that begins with ">" is of numbers, to the right. Numbers and the first column, which is
            of names, are never broken.
        rows: a cell for each column, of any type with a `str`.
        caption: below it.
    """
    return Table(title, columns, [[str(cell) for cell in row] for row in rows], caption)


@contextmanager
def progress_bar(console: Console, **options: Any) -> Iterator[Progress | None]:
    """A bar with counts, times and a description, gone when it is done; None if the console is no terminal.

    Args:
        console: where it is drawn.
        options: how often, as `rich.progress.Progress` takes it.
    """
    if not console.is_terminal:
        yield None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    description = TextColumn("{task.description}", markup=False)
    with Progress(*columns, description, console=console, transient=True, **options) as bar:
        yield bar
