"""Tables on the terminal: plain cells, no markup, and no line broken at 80 columns where nobody looks at a screen."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH = 200  # of output into a file or a pipe, which has no width of its own


def console(stderr: bool = False) -> Console:
    """A console that fits the terminal or COLUMNS, or is wide where there is neither."""
    stream = sys.stderr if stderr else sys.stdout
    known = stream.isatty() or os.environ.get("COLUMNS", "").isdigit()  # rich reads COLUMNS itself
    return Console(stderr=stderr, highlight=False, width=None if known else _WIDTH)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> Table:
    """A table of plain text.

    Args:
        title: above it.
        columns: headings; one that begins with ">" is of numbers, to the right. Numbers and the first column, which is
            of names, are never broken.
        rows: a cell for each column, of any type with a `str`.
        caption: below it.
    """
    made = Table(title=Text(title, "bold"), caption=Text(caption), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.title_justify = made.caption_justify = "left"
    for index, column in enumerate(columns):
        number = column.startswith(">")
        made.add_column(
            Text(column.removeprefix(">")),
            justify="right" if number else "left",
            no_wrap=number or index == 0,
            overflow="fold",
        )
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made
