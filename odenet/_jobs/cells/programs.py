"""Compiled programs that jobs keep from one to the next, where a backend compiles any (JAX).

Only the command line does so: that odenet is imported, or called from Python, sets nothing.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from pathlib import Path

import click

from odenet._backend import registry
from odenet._backend.interface import Backend
from odenet._errors import FileError
from odenet._files import require_writable

VARIABLE = "ODENET_CACHE"
"""Environment variable that names the folder of compiled programs, or is "off"."""
MOST_BYTES = 2**29
"""Limit for the size of all files there; a running job may exceed it by the programs that it compiles."""


def folder() -> Path | None:
    """Where compiled programs are kept: `$ODENET_CACHE`, or odenet in the user's cache; None where that is "off"."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen.lower() in ("off", "0", "no"):
        return None
    if chosen:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME", "")  # one that is relative is to be passed over, as its standard says
    try:
        return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "odenet"
    except RuntimeError:  # a user without a home
        return None


def keep_programs() -> None:
    """Let every backend that is loaded from now on keep its programs, in the environment that it wants for that."""
    if folder() is not None:
        for entry in registry.known().values():
            for name, value in entry.environment.items():
                os.environ.setdefault(name, value)
    if _keep not in registry.when_loaded:
        registry.when_loaded.append(_keep)


def _keep(backend: Backend) -> None:
    place = folder()
    if place is None or type(backend).keep_programs is Backend.keep_programs:
        return
    try:
        # what is there is run: nobody else may put anything in
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_writable(place)
        backend.keep_programs(place)
    except (OSError, FileError) as error:
        remedy = f"What to do: set {VARIABLE} to a folder you may write to, or to off."
        problem = error.given if isinstance(error, FileError) else f"{place} cannot be made ({error.strerror})"
        click.echo(f"compiled programs are not kept: {problem}. {remedy}", err=True)
        return
    shorten(place)
    atexit.register(shorten, place)


def shorten(place: Path, most: int | None = None) -> None:
    """Remove the files that were not used for the longest, until at most so many bytes (`MOST_BYTES`) are left."""
    files = sorted(_files(place), reverse=True)
    total = 0
    for _, size, path in files:
        total += size
        if total > (MOST_BYTES if most is None else most):
            try:
                path.unlink(missing_ok=True)
            except OSError:  # somebody else's, or another job's that removes it too
                continue


def _files(place: Path) -> Iterator[tuple[float, int, Path]]:
    for path in place.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                known = path.stat()
                yield max(known.st_atime, known.st_mtime), known.st_size, path
        except OSError:  # removed by another job meanwhile
            continue
