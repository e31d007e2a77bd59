"""One process at a time in the folder of a run, and that folder to the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from odenet._errors import WriteError

try:
    import fcntl
except ImportError:  # Windows, which has no locks on folders
    fcntl = None


@contextmanager
def alone(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold the folder until the end, however that comes: the system lets go of it when a process is killed.

    A lock is one on the folder, not on its name: where the folder was deleted or moved, another run may stand under
    the name. What is yielded is called before each write, and raises WriteError then.

    Raises:
        WriteError: another process holds it.
    """
    begun = os.stat(folder)

    def require_same() -> None:
        try:
            same = os.path.samestat(begun, os.stat(folder))
        except OSError:
            same = False
        if not same:
            raise WriteError(
                f"the folder {folder} of this run was deleted, moved or replaced while it was training, "
                "and nothing more is written there",
                "a folder that stays where it is until the run ends",
                "where it was moved, go on with --resume --out and its new name; else begin anew",
            )

    if fcntl is None:
        yield require_same
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WriteError(
                f"another process is training in {folder}", "one at a time", "wait for it, or choose another --out"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield require_same
    finally:
        os.close(handle)
