"""A progress bar on a terminal, and none where nobody looks at a screen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
