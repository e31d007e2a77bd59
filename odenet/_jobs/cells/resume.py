"""What a job leaves on disk to go on from: a JSON file that names its format, and errors that say what to do."""

from __future__ import annotations

import difflib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from odenet._errors import FileError, OdenetError, WriteError
from odenet._files import write_text

Kind = TypeVar("Kind")
LARGEST = 2**30  # bytes of a file; real ones have a few thousand a row
START_ANEW = "leave --resume out, or choose another --out"


def as_text(form: str, plain: Mapping[str, Any], indent: int | None = 1) -> str:
    """Plain data as JSON, under the name of its format and with a checksum."""
    content = json.loads(json.dumps(plain, allow_nan=False))  # as it will be read: names are texts, tuples are lists
    return json.dumps({"format": form, **content, "checksum": _checksum(content)}, indent=indent) + "\n"


def _checksum(content: Mapping[str, Any]) -> int:
    """Of all numbers and texts, but not of how they are written: a digit that a disk changed is a number, too."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def write(path: Path, form: str, plain: Mapping[str, Any], indent: int | None = 1) -> None:
    """`as_text`, atomically.

    Raises:
        FileError: the folder cannot be written to.
    """
    write_text(path, as_text(form, plain, indent))


def read(
    path: Path, form: str, command: str, build: Callable[[dict[str, Any]], Kind], remedy: str = START_ANEW
) -> Kind | None:
    """What `write` left; None where there is no file.

    Args:
        path: of the file.
        form: the format that it names.
        command: what wrote it, for people.
        build: makes of the plain data what it stands for.
        remedy: what to do about a file that is something else.

    Raises:
        FileError: a file that this version of the command did not write, or that was changed since. One without a
            checksum, as the first versions wrote, is read as it is.
    """
    with reading(str(path), f"a {path.name} that this version of {command} wrote", remedy):
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no plain file")
        if path.is_file() and path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if not isinstance(plain, dict) or plain.get("format") != form:
            raise ValueError(f"it is not in the format {form!r}")
        content = {name: value for name, value in plain.items() if name not in ("format", "checksum")}
        if plain.get("checksum", _checksum(content)) != _checksum(content):  # the first versions wrote none
            raise ValueError("its checksum is not that of its content, which was changed since it was written")
        return build(content)


class OwnFile:
    """A file that this process alone writes for as long as it runs, again and again, and whose folder may go away.

    All that was measured is in memory and is written each time: of a folder that was deleted nothing is lost, it is
    made again. What somebody else wrote under the name is not overwritten.

    Args:
        path: of the file, which may be there already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known = self._now()

    def write(self, write: Callable[[], object]) -> None:
        """Call `write`, which writes the file.

        Raises:
            WriteError: another process wrote it since.
        """
        if self._now() not in (None, self.known):
            raise WriteError(
                f"another run wrote {self.path} while this one was running, and nothing more is written there",
                "one run at a time in a folder",
                "choose another --out and begin again; a run that was set aside is in *.previous.*",
            )
        try:
            write()
        finally:  # also where Ctrl-C came between the two
            self.known = self._now()

    def _now(self) -> tuple[int, ...] | None:
        try:
            here = self.path.stat()
        except OSError:
            return None
        return here.st_dev, here.st_ino, here.st_size, here.st_mtime_ns


def nothing_there(folder: Path, file: str, contents: str) -> FileError:
    """The error of --resume where nothing can be gone on with: most often the folder is misspelt.

    Args:
        folder: that --out names.
        file: whose name a folder with something to resume has in it, or in a folder in it.
        contents: would be resumed.
    """
    beside = folder.absolute().parent
    names = [path.parent.name for path in beside.glob(f"*/{file}")] if beside.is_dir() else []
    near = difflib.get_close_matches(folder.name, names, n=1, cutoff=0.5)
    hint = f"take --out {folder.parent / near[0]}, if that is what you meant; or " if near else ""
    return FileError(
        f"there is {contents} in {folder}, so there is nothing to resume",
        f"a folder with a {file}",
        f"{hint}leave --resume out to begin",
    )


@contextmanager
def reading(subject: str, allowed: str, remedy: str = "") -> Iterator[None]:
    """Errors that strange data lead to, as a FileError that says of what."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = error.given if isinstance(error, OdenetError) else error
        raise FileError(f"{subject} cannot be read ({reason})", allowed, remedy) from error


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`depth was 8 and is 16`, of each name of both whose values differ."""
    return [f"{name} was {was[name]} and is {value}" for name, value in now.items() if was.get(name, value) != value]
