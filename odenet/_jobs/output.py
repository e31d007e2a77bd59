"""The files that a command writes on demand. `-` is standard output, which its tables then leave alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from odenet._files import open_descriptor
from odenet._report.terminal import console

STDOUT = Path("/dev/stdout")  # `odenet._files` knows it on every system


class OutputFile(click.Path):
    """A file to write; `-` for standard output."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, allow_dash=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The option's value as a path."""
        path = Path(str(super().convert(value, param, ctx)))
        return STDOUT if str(path) == "-" or open_descriptor(path) == 1 else path


def screen(*paths: Path | None) -> Console:
    """Where tables are printed: on stdout, or on stderr where one of the files is stdout.

    Raises:
        UsageError: two of the files are.
    """
    count = sum(path == STDOUT for path in paths)
    if count > 1:
        raise click.UsageError("standard output takes one file: give the other a path")
    return console(stderr=bool(count))


def say_written(*paths: Path | None) -> None:
    """One line on stderr for each file that was asked for, but for standard output."""
    for path in paths:
        if path not in (None, STDOUT):
            click.echo(f"wrote {path}", err=True)
