"""Data outside of what a field is made of, which its code names all the same.

Modules of the user's own that are no part of the field's package, such as a file of settings; the environment; and
data that is reached through a view, a reference, or an access of its own.
"""

from __future__ import annotations

import argparse
import array
import ctypes
import functools
import gc
import os
import sys
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from odenet_torch.field.places import MISSING, Location, MappingEntries

LIBRARIES = frozenset(sys.stdlib_module_names) - {"__main__"} | {"torch", "numpy", "odenet", "odenet_torch"}
"""Packages that are known to be nobody's own, wherever they lie."""
INSTALLED = ("site-packages", "dist-packages")
_C_DATA: type = ctypes.c_double.__mro__[2]
BUFFERS = (bytearray, array.array, _C_DATA)
VIEWS = tuple({type(view) for view in ({}.keys(), {}.values(), {}.items())})
_LARGEST = 1 << 16  # bytes of a buffer that is looked at
_SETTINGS = ("configparser", "multiprocessing.sharedctypes")
_ENVIRONMENT = (os.getenv, os.environ.get)
_BY_IMPORTING = ("modules", "path", "meta_path", "path_importer_cache")


def users_own(package: str) -> bool:
    """Whether a package, or a module that is in none, is the user's own: no library."""
    module = None if package in LIBRARIES else sys.modules.get(package)
    return module is not None and _own(module)


@functools.lru_cache(1024)
def _own(module: types.ModuleType) -> bool:
    paths = [getattr(module, "__file__", None) or "", *(getattr(module, "__path__", None) or ())]
    return not any(part in str(path) for path in paths for part in INSTALLED)


def settings_of_library(value: Any) -> bool:
    """Whether an object whose class is a library's holds what the user has put there, such as parsed arguments."""
    return isinstance(value, argparse.Namespace) or type(value).__module__ in _SETTINGS


def named(value: Any, attributes: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Data in a module of a library that code names by an attribute: lists and dicts of settings, and numbers.

    Args:
        value: a module, or a function that reads the environment.
        attributes: that the code reads.
    """
    if type(value) is types.ModuleType:
        if value is os and not {"getenv", "environ", "environb"}.isdisjoint(attributes):
            yield "os.environ", os.environ
        entries = vars(value)
        for key in attributes:
            if type(entries.get(key)) in (list, dict) and key not in _BY_IMPORTING:
                yield f"{value.__name__}.{key}", entries[key]
    elif isinstance(value, (types.FunctionType, types.MethodType)) and value in _ENVIRONMENT:
        yield "os.environ", os.environ


def behind(value: Any) -> Any:
    """What a reference or a view shows; None where that is no data: a block may refer to what holds it."""
    if isinstance(value, weakref.ref):
        held = value()
        return None if isinstance(held, nn.Module) else held
    if isinstance(value, VIEWS):
        value = value.mapping
    return gc.get_referents(value)[0]


class BufferContents(Location):
    """The bytes of a buffer, which are written on in place."""

    def __init__(self, name: str, buffer: Any) -> None:
        super().__init__(name)
        self.buffer = buffer

    @classmethod
    def of(cls, name: str, buffer: Any) -> Iterator[Location]:
        """The place, where it is not too large to be looked at."""
        if memoryview(buffer).nbytes <= _LARGEST:
            yield cls(name, buffer)

    def contents(self) -> dict[Any, Any]:
        return {None: bytes(memoryview(self.buffer).cast("B"))}

    def same(self, contents: dict[Any, Any]) -> bool:
        return self.contents() == contents

    def put(self, key: Any, value: Any) -> None:
        if value is MISSING:
            return
        with memoryview(self.buffer).cast("B") as view:
            if view.nbytes == len(value):
                view[:] = value


class StrangeEntries(MappingEntries):
    """The entries of a dict whose class has an access of its own, which is not gone through."""

    def contents(self) -> dict[Any, Any]:
        return dict(dict.items(self.entries))

    def put(self, key: Any, value: Any) -> None:
        if value is MISSING:
            dict.pop(self.entries, key, None)
        else:
            dict.__setitem__(self.entries, key, value)


class StrangeList(Location):
    """The same of a list."""

    def __init__(self, name: str, values: list[Any]) -> None:
        super().__init__(name)
        self.own = values

    def contents(self) -> dict[Any, Any]:
        return {None: tuple(list.__iter__(self.own))}

    def put(self, key: Any, value: Any) -> None:
        if value is not MISSING:
            list.__setitem__(self.own, slice(None), list(value))
