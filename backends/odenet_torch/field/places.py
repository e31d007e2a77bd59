"""Places that values stand in, and that code may put others in: attributes, containers, cells of closures, names.

Over 250 lines: one small class for each kind of place.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import operator
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextvars import Context, ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from odenet import GradientError
from odenet.kit import shown
from odenet_torch.field.knowledge import KEY

MISSING = object()
"""In the place of a value: there is none."""
OF_MODULES = frozenset({*vars(nn.Module()), KEY})
"""The attributes that every module has."""


class Location(ABC):
    """A place with values under keys.

    Args:
        name: beside that of what it was reached from, for messages.
    """

    @property
    def entries(self) -> dict[Any, Any] | None:
        """The dict that they stand in, where there is one."""
        return None

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def contents(self) -> dict[Any, Any]:
        """The values that stand here now, by key."""

    @abstractmethod
    def put(self, key: Any, value: Any) -> None:
        """Let a value stand here; MISSING for none."""

    def keys(self, contents: dict[Any, Any]) -> Iterable[Any]:
        """Of the contents, and those that something may be put under."""
        return contents

    def same(self, contents: dict[Any, Any]) -> bool:
        """Whether the same objects stand here now: a quick look, which may say no where they are equal."""
        now = self.contents()
        return now.keys() == contents.keys() and all(now[key] is contents[key] for key in now)

    def alive(self, contents: dict[Any, Any]) -> dict[Any, Any]:
        """Of the contents, what is not gone because it was held weakly, which nobody has changed."""
        return contents

    def called(self, key: Any) -> str:
        """The name of a value, for messages."""
        return self.name if key is None else f"{self.name}.{key}".removeprefix(".")


class MappingLocation(Location):
    """A dict, or the attributes of an object."""

    def __init__(self, name: str, entries: dict[Any, Any]) -> None:
        super().__init__(name)
        self._entries = entries

    @property
    def entries(self) -> dict[Any, Any]:
        return self._entries

    def contents(self) -> dict[Any, Any]:
        return {key: value for key, value in self.entries.items() if key != KEY}

    def put(self, key: Any, value: Any) -> None:
        if value is MISSING:
            self.entries.pop(key, None)
        else:
            self.entries[key] = value


class ModuleAttributes(MappingLocation):
    """The attributes of a module, beside those that every module has."""

    def contents(self) -> dict[Any, Any]:
        return {key: value for key, value in self.entries.items() if key not in OF_MODULES}


class MappingEntries(MappingLocation):
    """The entries of a dict."""

    def called(self, key: Any) -> str:
        return f"{self.name}[{shown(key)}]".removeprefix(".")


class GlobalNames(MappingLocation):
    """Some global names."""

    def __init__(self, entries: dict[str, Any], names: frozenset[str]) -> None:
        super().__init__("", entries)
        self.names = names

    def contents(self) -> dict[Any, Any]:
        entries = self.entries
        return {name: entries[name] for name in self.names if name in entries}

    def keys(self, contents: dict[Any, Any]) -> Iterable[Any]:
        return self.names

    def called(self, key: Any) -> str:
        return f"the global name {key}"


class CollectionLocation(Location):
    """A list, deque or set, as a whole."""

    def __init__(self, name: str, values: Any) -> None:
        super().__init__(name)
        self.values = values

    def contents(self) -> dict[Any, Any]:
        return {None: tuple(self.values)}

    def same(self, contents: dict[Any, Any]) -> bool:
        before = contents[None]
        return len(before) == len(self.values) and all(map(operator.is_, self.values, before))

    def put(self, key: Any, value: Any) -> None:
        self.values.clear()
        (self.values.update if isinstance(self.values, set) else self.values.extend)(value)


class ClosureCell(Location):
    """What a closure holds under a name."""

    def __init__(self, name: str, cell: types.CellType) -> None:
        super().__init__(name)
        self.cell = cell

    def contents(self) -> dict[Any, Any]:
        try:
            return {None: self.cell.cell_contents}
        except ValueError:  # nothing yet
            return {}

    def put(self, key: Any, value: Any) -> None:
        if value is MISSING:
            del self.cell.cell_contents
        else:
            self.cell.cell_contents = value


class ClassAttributes(Location):
    """Attributes of a class that are no code.

    Args:
        kind: the class.
        names: theirs now; code may make others.
    """

    def __init__(self, kind: type, names: Callable[[type], frozenset[str]]) -> None:
        super().__init__(kind.__name__)
        self.kind, self.names = kind, names
        self.count = len(vars(kind))

    def contents(self) -> dict[Any, Any]:
        own = vars(self.kind)
        return {name: own[name] for name in self.names(self.kind) if name in own}

    def same(self, contents: dict[Any, Any]) -> bool:
        own = vars(self.kind)
        return len(own) == self.count and all(own.get(name) is value for name, value in contents.items())

    def put(self, key: Any, value: Any) -> None:
        if value is not MISSING:
            setattr(self.kind, key, value)
        elif key in vars(self.kind):
            delattr(self.kind, key)


class SlotAttributes(Location):
    """The attributes of an object whose class names them in `__slots__`."""

    def __init__(self, name: str, owner: Any, names: tuple[str, ...]) -> None:
        super().__init__(name)
        self.owner, self.names = owner, names

    def contents(self) -> dict[Any, Any]:
        return {name: getattr(self.owner, name) for name in self.names if hasattr(self.owner, name)}

    def put(self, key: Any, value: Any) -> None:
        if value is not MISSING:
            setattr(self.owner, key, value)
        elif hasattr(self.owner, key):
            delattr(self.owner, key)


class ContextValue(Location):
    """The value of a context variable."""

    def __init__(self, name: str, variable: ContextVar[Any]) -> None:
        super().__init__(name)
        self.variable = variable

    def contents(self) -> dict[Any, Any]:
        value = self.variable.get(MISSING)
        return {} if value is MISSING else {None: value}

    def put(self, key: Any, value: Any) -> None:
        if value is MISSING:  # none can be unset again
            value = None
            with contextlib.suppress(LookupError):
                value = Context().run(self.variable.get)  # in a context of nobody's it has its default
        self.variable.set(value)


class CachedResults(Location):
    """The tensors in a cache of `functools.lru_cache` or `cache`, which can be emptied and not filled."""

    def __init__(self, name: str, cached: functools._lru_cache_wrapper[Any]) -> None:
        super().__init__(name)
        self.cached = cached

    def contents(self) -> dict[Any, Any]:
        entries = gc.get_referents(self.cached)  # of a bounded cache; another one holds them in a dict
        for value in tuple(entries):
            if type(value) is dict and value is not vars(self.cached):
                entries += value.values()
        return {None: tuple(value for value in entries if isinstance(value, (Tensor, tuple)) and not _plain(value))}

    def put(self, key: Any, value: Any) -> None:
        if value is MISSING or not self.same({None: value}):
            self.cached.cache_clear()  # what is asked for is computed again


class WeakEntries(Location):
    """The tensors that a dict or set holds weakly: what becomes of them is for who holds them to say."""

    def __init__(self, name: str, held: Any) -> None:
        super().__init__(name)
        self.refs: Any = held.data  # of references, as values or as members

    def contents(self) -> dict[Any, Any]:
        refs = self.refs.values() if isinstance(self.refs, dict) else self.refs
        return {None: tuple([ref for ref in (*refs,) if isinstance(ref(), Tensor)])}

    def alive(self, contents: dict[Any, Any]) -> dict[Any, Any]:
        return {key: tuple([ref for ref in refs if ref() is not None]) for key, refs in contents.items()}

    def same(self, contents: dict[Any, Any]) -> bool:
        now, before = self.contents()[None], self.alive(contents)[None]
        return len(now) == len(before) and all(map(operator.is_, now, before))

    def put(self, key: Any, value: Any) -> None:
        refs, now = self.refs, self.contents()[None]
        alive = [ref for ref in (() if value is MISSING else value) if ref() is not None]
        if isinstance(refs, dict):
            for ref in now:
                refs.pop(ref.key, None)
            refs.update((ref.key, ref) for ref in alive)
        else:
            refs.difference_update(now)
            refs.update(alive)


class WeaklyKeyed(MappingEntries):
    """The entries of a dict that holds its keys weakly: one that is gone with its key was changed by nobody."""

    @property
    def entries(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """None: how many there are does not tell whether something was put there."""

    def contents(self) -> dict[Any, Any]:
        return self.alive(dict(self._entries))

    def alive(self, contents: dict[Any, Any]) -> dict[Any, Any]:
        return {ref: value for ref, value in contents.items() if ref() is not None}

    def same(self, contents: dict[Any, Any]) -> bool:
        return super().same(self.alive(contents))

    def put(self, key: Any, value: Any) -> None:
        if value is MISSING or key() is None:
            self._entries.pop(key, None)
        else:
            self._entries[key] = value


class SuspendedFrame(Location):
    """The variables of a generator that waits to go on, which nobody can set."""

    def __init__(self, name: str, generator: types.GeneratorType[Any, Any, Any]) -> None:
        super().__init__(name)
        self.generator = generator

    def contents(self) -> dict[Any, Any]:
        frame = self.generator.gi_frame
        return {} if frame is None else dict(frame.f_locals)

    def put(self, key: Any, value: Any) -> None:
        now = self.contents().get(key, MISSING)
        if now is not value and any(isinstance(x, Tensor) and x.requires_grad for x in (now, value)):
            raise GradientError(
                f"{self.called(key)}, a variable of a generator, in which the field keeps a tensor that needs a "
                "gradient, and the field is to run again",
                "attributes, lists and dicts, which can be put back",
                "keep it in an attribute, detach() it, or take gradient='backprop'",
            )


_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, types.FunctionType, torch.dtype, torch.device)


def _plain(value: Any) -> bool:
    """Whether it holds no tensor for sure, as the key of a call with plain arguments, which every new call adds."""
    return all(map(_plain, value)) if isinstance(value, tuple) else isinstance(value, _PLAIN)
