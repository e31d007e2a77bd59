"""Things by their names: looked up, with a suggestion where there is none, and imported when they are asked for."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from odenet._errors import InputError, UnknownNameError, shown

Thing = TypeVar("Thing")
Word = TypeVar("Word", bound=str)
_LONGEST = 100  # characters that are compared with names
_LISTED = ("backend", "solver", "gradient method", "problem")  # by `odenet list`


def lookup(kind: str, name: object, table: Mapping[str, Thing], aliases: Mapping[str, str] | None = None) -> Thing:
    """The entry of `table` called `name` (or an alias of it); case and `_` for `-` are forgiven.

    Raises:
        UnknownNameError: naming the nearest spellings and everything that is allowed.
    """
    aliases = aliases or {}
    if not isinstance(name, str):
        raise InputError(
            f"a {kind} was given as {shown(name)}, a {type(name).__name__}", f"a name ({', '.join(table)})"
        )
    plain = spelling(name)
    plain = aliases.get(plain, plain)
    if plain in table:
        return table[plain]
    near = difflib.get_close_matches(plain[:_LONGEST], [*table, *aliases], n=3, cutoff=0.5)
    elsewhere = f"see `odenet list` for every {kind}" if kind in _LISTED else "take one of these"
    remedy = f"take {' or '.join(near)}, if that is what you meant" if near else elsewhere
    raise UnknownNameError(f"there is no {kind} called {name!r}", ", ".join([*table, *aliases]), remedy)


def choice(kind: str, name: object, names: Iterable[Word]) -> Word:
    """The one of `names` that is called so, as `lookup` finds it."""
    return lookup(kind, name, {word: word for word in names})


def spelling(name: str) -> str:
    """A name as tables have it: case and `_` for `-` do not matter."""
    return name.strip().lower().replace("_", "-")


def boolean(text: str) -> bool:
    """`true/yes/on/1` or `false/no/off/0`; anything else is an error (a bare `bool("False")` is True)."""
    plain = text.strip().lower()
    if plain in ("true", "yes", "on", "1"):
        return True
    if plain in ("false", "no", "off", "0"):
        return False
    raise InputError(f"{text!r} is neither true nor false", "true, yes, on, 1, false, no, off, 0")


def lazily(
    package: str, names: Sequence[str], homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package some of whose names are imported when they are asked for (PEP 562).

    Args:
        package: its `__name__`.
        names: all that it has to show.
        homes: of each name that is not there yet, the module in the package that has it.
    """

    def attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)  # asked for once: loops of users write odenet_torch.solve(...)
        return value

    return attribute, lambda: sorted(names)
