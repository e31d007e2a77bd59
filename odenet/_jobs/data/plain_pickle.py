"""Reading the one pickle that CIFAR-10 is published as, and no other: nothing that a file names is ever called.

A pickle is a program. This reader runs only what the layout needs, in two steps that each suffice against a file that
wants to run code: first every opcode is looked at, and one that the layout does not need ends it (as does a memo larger
than the file can fill, which would make the unpickler ask for gigabytes); then the five names that the layout holds
stand for functions of this file, which make plain data and check it, and any other name ends it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from odenet._errors import FileError

LARGEST = 64 * 2**20  # bytes of a file; the real ones have 30 MiB
_OPCODES = frozenset(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG1 "
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES "
    "EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD".split()
)
_ALLOWED = "the pickles of the official cifar-10-batches-py"


class _Refused(Exception):
    """The file contains something that does not belong to the layout."""


class _Dtype:
    """Stands for numpy.dtype; only bytes without a sign are read."""

    def __init__(self, kind: object, *_: object) -> None:
        if kind not in ("u1", "uint8"):
            raise _Refused(f"it holds an array of {kind!r}")

    def __setstate__(self, state: object) -> None:
        """Byte order and such, which a single byte does not have."""


class _Array:
    """Stands for an array while its shape and bytes are still to come."""

    value: np.ndarray | None = None

    def __setstate__(self, state: object) -> None:
        match state:
            case (1, (int(rows), int(columns)), _Dtype(), bool() | 0 | 1 as fortran, (str() | bytes()) as raw):
                content = raw.encode("latin1") if isinstance(raw, str) else raw
                if min(rows, columns) < 0 or len(content) != rows * columns:
                    raise _Refused(f"an array of shape ({rows}, {columns}) has {len(content)} bytes")
                self.value = np.frombuffer(content, np.uint8).reshape((rows, columns), order="F" if fortran else "C")
            case _:
                raise _Refused("it holds an array that is no table of bytes")


class _Named:
    """What a name in the file stands for. The opcode BUILD could change a plain function or class; not this."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., object]) -> None:
        self.make = make

    def __call__(self, *arguments: object) -> object:
        return self.make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise _Refused("it changes what a name means")


def _never(*_: object) -> object:
    raise _Refused("it makes an array without a type")


def _reconstruct(kind: object, *_: object) -> _Array:
    if kind is not _NDARRAY:
        raise _Refused("it makes an array of another type")
    return _Array()


def _encode(text: object, encoding: object) -> bytes:
    """How Python 3 writes bytes for Python 2 to read."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("it encodes what is no text")
    return text.encode("latin1")


_NDARRAY = _Named(_never)
_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _Named(_reconstruct),
    ("numpy._core.multiarray", "_reconstruct"): _Named(_reconstruct),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Named(_Dtype),
    ("_codecs", "encode"): _Named(_encode),
}


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """One of five stand-ins for the classes that a pickle names."""
        try:
            return _NAMES[module_name, global_name]
        except KeyError:
            raise _Refused(f"it asks for {module_name}.{global_name}") from None

    def persistent_load(self, pid: Any) -> Any:
        """Nothing outside of the file."""
        raise _Refused("it asks for another file")


def read(path: Path) -> dict[str, Any]:
    """The dict in a file; keys are text, arrays are uint8 tables.

    Raises:
        FileError: no such file, one that is cut short, or one that holds anything but the layout's kinds of data.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror or error})", _ALLOWED) from error
    try:
        if len(content) > LARGEST:
            raise _Refused(f"it has more than {LARGEST} bytes")
        _look(content)
        loaded = _Reader(io.BytesIO(content), encoding="latin1").load()
        if not isinstance(loaded, dict):
            raise _Refused(f"it holds a {type(loaded).__name__}")
        return {_text(key): _plain(value) for key, value in loaded.items()}
    except _Refused as error:
        raise FileError(
            f"{path} was refused: {error}",
            _ALLOWED,
            "do not trust this file; fetch CIFAR-10 again from https://www.cs.toronto.edu/~kriz/cifar.html",
        ) from error
    except Exception as error:  # an unpickler fails in many ways on a file that is cut short or garbled
        raise FileError(
            f"{path} is damaged: it is no whole pickle ({type(error).__name__}: {str(error)[:80]})",
            _ALLOWED,
            "fetch it again",
        ) from error


def _look(content: bytes) -> None:
    """Raises _Refused at the first opcode that the layout does not need."""
    for opcode, argument, position in pickletools.genops(content):
        if opcode.name not in _OPCODES:
            raise _Refused(f"it uses the opcode {opcode.name} at byte {position}")
        # each entry of a memo takes two bytes of the file or more
        if opcode.name.endswith("PUT") and isinstance(argument, int) and not 0 <= argument <= len(content):
            raise _Refused(f"its memo has an entry {argument} in {len(content)} bytes")


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        if value.value is None:
            raise _Refused("it holds an array without content")
        return value.value
    if isinstance(value, list):
        return [_text(item) if isinstance(item, str | bytes) else item for item in value]
    return _text(value) if isinstance(value, str | bytes) else value


def _text(value: Any) -> str:
    if not isinstance(value, str | bytes):
        raise _Refused(f"a name in it is a {type(value).__name__}")
    return value.decode("latin1") if isinstance(value, bytes) else value
