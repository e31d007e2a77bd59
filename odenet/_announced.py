"""Things by name: odenet's own, and those that other installed packages announce in an entry-point group.

Asking for one of odenet's own names reads no package's metadata: that is done when another name is asked for, or all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from odenet._errors import BackendUnavailableError, InputError, OdenetError

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
