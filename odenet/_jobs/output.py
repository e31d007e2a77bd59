"""Paths on the command line, and the files that a command writes on demand.

`-` is standard output, which the tables then leave alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from odenet._errors import shown
from odenet._files import open_descriptor
from odenet._report.terminal import console

STDOUT = Path("/dev/stdout")  # `odenet._files` knows it on every system


class FilePath(click.Path):
    """A path that the system can have; not an empty one, as of a shell's variable that is not set.

    Args:
        kind: what the option's value is: `Path` or `str`.
        options: as `click.Path` takes them: `exists`, `file_okay`, `dir_okay`, `allow_dash`.
    """

    def __init__(self, kind: type[Path] | type[str] = Path, **options: bool) -> None:
        super().__init__(path_type=kind, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = os.fspath(value)
        try:
            os.lstat(text)
        except FileNotFoundError:
            if not text:
                self.fail(f"an empty path names no {self.name}. Allowed: the path of a {self.name}.", param, ctx)
        except NotADirectoryError:
            pass  # a file among its folders: said by what exists, or by what would be written
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self.fail(f"{shown(text)} cannot be a {self.name} ({reason}). Allowed: another path.", param, ctx)
        return super().convert(value, param, ctx)


class OutputFile(FilePath):
    """A file to write; `-` for standard output."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, allow_dash=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
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
