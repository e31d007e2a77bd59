"""Things by their names: odenet's own, and those that other installed packages announce in an entry-point group; looked
up, with a suggestion where there is none, and imported when they are asked for.

Asking for one of odenet's own names reads no package's metadata: that is done when another name is asked for, or all.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from odenet._errors import BackendUnavailableError, InputError, OdenetError, UnknownNameError, shown

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
    raise UnknownNameError(f"there is no {kind} called {shown(name, 1000)}", ", ".join([*table, *aliases]), remedy)


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


Thing = TypeVar("Thing")


def entry_points(group: str) -> Iterable[Any]:
    """What installed packages announce in a group."""
    from importlib import metadata  # a quarter of the time that `import odenet` would take

    return metadata.entry_points(group=group)


def load_entry_point(point: Any, kind: type[Thing]) -> Thing:
    """What an entry point names.

    Raises:
        BackendUnavailableError: its module cannot be imported.
        InputError: it is something else.
    """
    try:
        record = point.load()
    except Exception as error:  # somebody else's module may fail in any way
        raise BackendUnavailableError(
            f"the entry point {point.name} = {point.value} could not be imported ({error})",
            "a module whose import needs no framework",
            f"repair or uninstall the package that announces {point.name}",
        ) from error
    if not isinstance(record, kind):
        raise InputError(
            f"the entry point {point.name} = {point.value} is a {type(record).__name__}", f"an odenet.{kind.__name__}"
        )
    return record


class Announced(Mapping[str, Thing], Generic[Thing]):
    """A table of names that other packages can add to.

    Args:
        group: of entry points.
        own: odenet's.
        read: what an entry point stands for, checked; raises an OdenetError.
    """

    def __init__(self, group: str, own: Mapping[str, Thing], read: Callable[[Any], Thing]) -> None:
        self.group, self.own, self.read = group, dict(own), read
        self._others: dict[str, Thing] | None = None
        self._registered: dict[str, Thing] = {}
        self._broken: dict[str, OdenetError] = {}

    def register(self, name: str, record: Thing) -> None:
        """Add one for this process.

        Raises:
            InputError: the name is taken.
        """
        if name in self.own or name in self._registered:
            raise InputError(f"the name {name!r} is taken", "a name of your own")
        self._registered[name] = record

    @property
    def broken(self) -> dict[str, OdenetError]:
        """What is wrong with the announcements that could not be read, by name. One stops none of the others."""
        self._announced()
        return dict(self._broken)

    def _announced(self) -> dict[str, Thing]:
        if self._others is None:
            self._others = {}
            for point in sorted(entry_points(self.group), key=lambda point: point.name):
                try:
                    self._others[point.name] = self.read(point)
                except OdenetError as error:
                    self._broken[point.name] = error
        return self._others

    def __getitem__(self, name: str) -> Thing:
        for table in (self.own, self._registered):
            if name in table:
                return table[name]
        if name in self.broken:
            raise self._broken[name]
        return self._announced()[name]

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self._registered or name in self._announced() or name in self._broken

    def __iter__(self) -> Iterator[str]:
        return iter({**self.own, **self._registered, **self._announced()})

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"{{{', '.join(map(repr, self))}}}"
