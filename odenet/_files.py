"""Writing files whole or not at all."""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from odenet._errors import FileError, WriteError, shown

_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_LINKS = 40  # that are followed; Linux follows as many


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> Path:
    """Call `write` with a temporary file beside `path`, then rename it: a reader sees the old file or the new one.

    A symbolic link stays one: what it leads to is replaced, or made. What is there and no plain file (a device, a
    pipe) is never renamed over: it is written to. So is what this process has open already (`/dev/stdout`,
    `/dev/fd/3`), a plain file, too, which would else be cut off from what still prints into it.

    Raises:
        WriteError: the folder cannot be made or written to.
    """
    target = Path(path)
    temporary: str | None = None
    try:
        descriptor = open_descriptor(target)
        if descriptor is not None:
            memory = io.BytesIO()
            write(memory)
            _send(descriptor, memory.getvalue())
            return Path(path)
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
        raise _unwritable(target, error) from error
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
    for place in (path, target):
        if os.path.lexists(place) and (place.is_symlink() or not place.is_file()):
            raise FileError(f"{place} is no plain file", "plain files, which alone are renamed", "move it elsewhere")
    try:
        os.replace(path, target)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise WriteError(
            f"{path} cannot be renamed ({error.strerror or error})", "a folder you may write to", "choose another path"
        ) from error
    return True


def require_writable(folder: Path) -> None:
    """Raises WriteError before any work is done, if the folder cannot be made or written to."""
    try:
        _try_to_write(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _try_to_write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"-")


def require_target(path: Path) -> None:
    """Raises WriteError before any work is done, if `write_atomically` could not write this file."""
    try:
        if open_descriptor(path) is not None:
            return
        if path.is_dir():
            raise WriteError(f"{path} cannot be written (it is a folder)", "a file", "choose another path")
        if path.exists() and not path.is_file():  # a device or a pipe, whose folder need not be writable
            if not os.access(path, os.W_OK):
                raise WriteError(f"{path} cannot be written", "what you may write to", "choose another path")
            return
        _try_to_write(Path(os.path.realpath(path)).parent)
    except OSError as error:  # a name that the system does not allow
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> WriteError:
    """The error of the system, in words that say what to do."""
    name = shown(str(path), 300)[1:-1]
    if isinstance(error, FileExistsError | NotADirectoryError):  # of a folder that would have been made
        return WriteError(
            f"{name} cannot be written, since a file or a broken link stands where a folder would be",
            "a path through folders",
            "choose another path",
        )
    return WriteError(
        f"{name} cannot be written ({error.strerror or error})",
        "a folder you may write to",
        "choose another path, or free space",
    )


def open_descriptor(path: Path) -> int | None:
    """The number of an open file of this process that a path names, by way of links, too; None for other paths."""
    for _ in range(_LINKS):
        text = Path(os.path.normpath(path)).as_posix()
        match = re.fullmatch(rf"/dev/fd/(\d{{1,9}})|/proc/(?:self|{os.getpid()})/fd/(\d{{1,9}})", text)
        if match is not None:
            return int(match[1] or match[2])
        if text in _STREAMS:
            return _STREAMS[text]
        if not path.is_symlink():
            return None
        path = path.parent / os.readlink(path)
    return None


def _send(descriptor: int, data: bytes) -> None:
    """Write to an open file, behind what was printed there before."""
    stream = {1: sys.stdout, 2: sys.stderr}.get(descriptor)
    if stream is not None:
        stream.flush()
        if hasattr(stream, "buffer"):  # which a test or a notebook may have put in its place
            stream.buffer.write(data)
            stream.flush()
            return
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)


def _forget(temporary: str | None) -> None:
    if temporary is not None:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
