"""One process at a time in the folder of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from odenet._errors import FileError

try:
    import fcntl
except ImportError:  # Windows, which has no locks on folders
    fcntl = None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder until the end, however that comes: the system lets go of it when a process is killed.

    Raises:
        FileError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileError(
                f"another process is training in {folder}", "one at a time", "wait for it, or choose another --out"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)
