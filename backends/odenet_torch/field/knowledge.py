"""What is known of a module, function or object, held by itself: the two are let go together.

It refers to all that can be reached from there, and from there its owner may be reached in ways that nobody looks into:
a table elsewhere, even one with weak keys, would keep both for good.
"""

from __future__ import annotations

import types
import weakref
from typing import Any

from torch import nn

KEY = "_odenet_known"
"""The attribute."""


class Knowledge:
    """What is known of an owner.

    Args:
        owner: it.

    Raises:
        TypeError: it has no weak references.
    """

    def __init__(self, owner: object) -> None:
        self.owner = weakref.ref(owner)  # another one where attributes were copied
        self.reach: Any = None
        self.settled: dict[bool, Any] = {}
        """What a settled block consists of, by its training flag."""
        self.passing: dict[bool, Any] = {}
        """What one consists of beside its passing values, which is settled for a checkpoint alone."""
        self.stacks: dict[tuple[bool, bool], Any] = {}
        """Of the first of some settled blocks: what all of them consist of, by its training flag and whether they may
        have passing values."""
        self.strides: Any = None
        """Of the first of some blocks: how they are divided where their steps are compiled."""

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[type[dict[Any, Any]], tuple[()]]:
        return dict, ()  # nothing of it is saved, and who loads it needs no odenet


def knowledge(owner: Any) -> Knowledge | None:
    """What is known of an owner; None where nothing can be kept with it."""
    own = None if isinstance(owner, types.MethodType) else getattr(owner, "__dict__", None)
    if type(own) is not dict:
        return None
    known = own.get(KEY)
    if type(known) is not Knowledge or known.owner() is not owner:
        try:
            known = own[KEY] = Knowledge(owner)
        except TypeError:
            return None
    return known


def name_of(function: Any) -> str:
    """The name of a function, or of the class of an object, whose attributes may be made by code of the user's."""
    own = None if isinstance(function, nn.Module) else getattr(function, "__name__", None)
    return own if isinstance(own, str) else type(function).__name__
