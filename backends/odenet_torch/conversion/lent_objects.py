"""Objects among a layer's arguments that it may write to, such as a cache of keys and values, as they stood before.

A layer that runs again finds copies of them, in which the same tensors stand; what it writes to a copy is nobody's.
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from odenet_torch.conversion.branches import PLAIN
from odenet_torch.conversion.layer import Arguments
from odenet_torch.conversion.sums import version
from odenet_torch.field.outer_data import LIBRARIES
from odenet_torch.field.surroundings import reach

_AS_THEY_ARE = (*PLAIN, complex, bytes, type(None), type, enum.Enum, torch.dtype, torch.device, torch.Size, range)
_LISTS = (list, set, collections.deque)
_DICTS = (dict, collections.OrderedDict)
_RECORDS = (collections.UserDict, collections.UserList)
_LIMIT = 20_000  # values that are looked at


class UnknownObjectError(Exception):
    """It holds what cannot be copied with confidence: code, generators, modules, files, slots ..."""


class LentObjects:
    """The arguments of one call, as they stand now.

    Args:
        layer: that is called.
        arguments: its arguments, the first one among them.

    Raises:
        UnknownObjectError: something in them cannot be copied, or the layer can reach it by another way as well.
    """

    def __init__(self, layer: nn.Module, arguments: Arguments) -> None:
        walk = _Walk()
        self.arguments: Arguments = walk.copied(arguments)
        places = {id(held) for place in reach(layer).places for held in _held(place)}
        if places & walk.writable:
            raise UnknownObjectError
        self.tensors = walk.tensors
        """All that stand in them."""
        self.versions = [*map(version, walk.tensors)]

    def again(self) -> Arguments:
        """Those of a further run: what it writes to is its own, and so are hooks that it registers on tensors."""
        return _Walk(apart=True).copied(self.arguments)

    def written_on(self) -> bool:
        """Whether a tensor that stood there was written on since."""
        return [*map(version, self.tensors)] != self.versions


def _held(place: Any) -> Iterator[Any]:
    yield place.entries
    yield getattr(place, "values", None)


class _Walk:
    """Copies what can be written to, and nothing else; what stands at several places does so in the copy."""

    def __init__(self, apart: bool = False) -> None:
        self.apart = apart
        self.known: dict[int, Any] = {}
        self.writable: set[int] = set()
        self.tensors: list[Tensor] = []
        self.count = 0

    def copied(self, value: Any) -> Any:
        if isinstance(value, _AS_THEY_ARE):
            return value
        if id(value) in self.known:
            return self.known[id(value)]
        self.count += 1
        if self.count > _LIMIT:
            raise UnknownObjectError
        kind = type(value)
        if isinstance(value, Tensor):
            self.tensors.append(value)
            alias = value.view_as(value) if self.apart and value.requires_grad else value
            return self.known.setdefault(id(value), alias)
        if isinstance(value, tuple):
            items = [self.copied(item) for item in value]
            if kind is not tuple and not hasattr(value, "_fields"):
                raise UnknownObjectError
            return kind(*items) if kind is not tuple else (*items,)
        if kind in _LISTS:
            copy: Any = collections.deque(maxlen=value.maxlen) if kind is collections.deque else kind()
            self.note(value, copy)
            items = [self.copied(item) for item in value]
            (copy.update if kind is set else copy.extend)(items)
            return copy
        if kind in _DICTS or kind is collections.defaultdict:
            copy = collections.defaultdict(value.default_factory) if kind is collections.defaultdict else kind()
            self.note(value, copy)
            copy.update((key, self.copied(item)) for key, item in value.items())
            return copy
        return self.object(value)

    def object(self, value: Any) -> Any:
        """One of somebody's, all of which stands in its attributes."""
        kind: type = type(value)
        own: Any = getattr(value, "__dict__", None)
        somebodys = kind.__module__.partition(".")[0] not in LIBRARIES or isinstance(value, _RECORDS)
        slots = any(vars(base).get("__slots__") for base in kind.__mro__)
        if not somebodys or slots or type(own) is not dict or isinstance(value, nn.Module) or callable(value):
            raise UnknownObjectError
        try:
            copy: Any = object.__new__(kind)
        except TypeError as error:  # of a class that holds more than attributes
            raise UnknownObjectError from error
        self.note(own, copy)
        self.known[id(value)] = copy
        copy.__dict__.update((key, self.copied(item)) for key, item in own.items())
        return copy

    def note(self, value: Any, copy: Any) -> None:
        """Something can be written to."""
        self.known[id(value)] = copy
        self.writable.add(id(value))
