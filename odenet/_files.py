"""Writing files whole or not at all."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from odenet._errors import FileError


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> Path:
    """Call `write` with a temporary file beside `path`, then rename it: a reader sees the old file or the new one.

    A symbolic link stays one: what it leads to is replaced, or made. What is there and no plain file (a device, a
    pipe) is never renamed over: it is written to.

    Raises:
        FileError: the folder cannot be made or written to.
    """
    target = Path(path)
    temporary: str | None = None
    try:
        if target.is_symlink():
            target = Path(os.path.realpath(target))
        if target.exists() and not target.is_file() and not target.is_dir():
            with target.open("wb") as stream:
                memory = io.BytesIO()  # a pipe cannot be sought in, as some formats do
                write(memory)
                stream.write(memory.getbuffer())
            return Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        _forget(temporary)
        raise FileError(
            f"{target} cannot be written ({error.strerror or error})",
            "a folder you may write to",
            "choose another path, or free space",
        ) from error
    except BaseException:
        _forget(temporary)
        raise
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """`write_atomically` for text in UTF-8."""
    return write_atomically(path, lambda file: file.write(text.encode()))


def rename(path: Path, target: Path) -> bool:
    """Rename a plain file, over a plain file or to a new name; False where there is none.

    Raises:
        FileError: either is something else (a device, a pipe, a link, a folder), or the system refuses.
    """
    for each in (path, target):
        if os.path.lexists(each) and (each.is_symlink() or not each.is_file()):
            raise FileError(f"{each} is no plain file", "plain files, which alone are renamed", "move it elsewhere")
    try:
        os.replace(path, target)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FileError(
            f"{path} cannot be renamed ({error.strerror or error})", "a folder you may write to", "choose another path"
        ) from error
    return True


def require_writable(folder: Path) -> None:
    """Raises FileError before any work is done, if the folder cannot be made or written to."""
    probe = write_text(folder / ".writable", "")
    probe.unlink()


def _forget(temporary: str | None) -> None:
    if temporary is not None:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
