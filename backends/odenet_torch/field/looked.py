"""Parts of fields that were looked at once in the life of the process: modules by themselves, functions by their code.

A function is made anew for each solve as often as not, as a lambda or a closure is. Its code, and that of all functions
that can be reached from it, are the same each time. What it does may depend on what it is made with: on flags, words,
numbers, and which functions and classes there are. So each variant of these is looked at. Numbers that change all the
time, as a count of calls does, are told apart by their sign after a few variants.
"""

from __future__ import annotations

import collections
import contextlib
import weakref
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from odenet_torch.field.reachable_objects import ReachableObjects
from odenet_torch.field.surroundings import reach

_FINE, _COARSE = 8, 64
"""How many variants of one part are told apart by numbers, and by flags."""
_FUNCTIONS = 1024
"""How many functions are remembered, by their code."""


@dataclass
class _Variants:
    fine: set[int] = field(default_factory=set)
    coarse: set[int] = field(default_factory=set)


_NUMBERS = (int, float, complex)
_COMPILED = "._compiled_call_impl"


class Looked:
    """Modules and functions, each as it was made or set."""

    def __init__(self) -> None:
        self._modules: weakref.WeakKeyDictionary[Any, _Variants] = weakref.WeakKeyDictionary()
        self._functions: collections.OrderedDict[frozenset[Any], _Variants] = collections.OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._functions or self._modules)

    def has(self, root: Any, reached: ReachableObjects | None = None) -> bool:
        """Whether it was looked at as it is; no where it has neither code nor weak references.

        Args:
            root: a module, function or object.
            reached: what could be reached from it when it was as is asked for; None for now.
        """
        known, reached = self._known(root, reached)
        if known is None or len(known.coarse) >= _COARSE:
            return known is not None
        coarse, fine = variant(reached or reach(root))
        return coarse in known.coarse and (fine in known.fine or len(known.fine) >= _FINE)

    def knows(self, root: Any, reached: ReachableObjects | None) -> bool:
        """Whether it was looked at, be it as another variant."""
        return self._known(root, reached)[0] is not None

    def some(self, root: Any, reached: ReachableObjects | None = None) -> bool:
        """Whether one that differs by numbers alone is among these."""
        known, reached = self._known(root, reached)
        if known is None or len(known.coarse) >= _COARSE:
            return known is not None
        return variant(reached or reach(root))[0] in known.coarse

    def add(self, root: Any, reached: ReachableObjects | None = None) -> None:
        """From now on it is among these."""
        known, reached = self._known(root, reached or reach(root))
        assert reached is not None
        if known is None:
            known = _Variants()
            if not isinstance(root, nn.Module) and reached.codes:
                self._functions[frozenset(reached.codes)] = known
                if len(self._functions) > _FUNCTIONS:
                    self._functions.popitem(last=False)
            else:
                with contextlib.suppress(TypeError):
                    self._modules[root] = known
        for several, one in zip((known.coarse, known.fine), variant(reached), strict=True):
            several.add(one)

    def _known(self, root: Any, reached: ReachableObjects | None) -> tuple[_Variants | None, ReachableObjects | None]:
        """What is known of its variants, and what can be reached from it, where that was asked for."""
        if not isinstance(root, nn.Module):
            if not (self._functions or self._modules):
                return None, reached
            reached = reached or reach(root)
            if reached.codes:
                return self._functions.get(frozenset(reached.codes)), reached
        try:
            return self._modules.get(root), reached
        except TypeError:
            return None, reached


class Names:
    """Names of what was looked at in modules and functions, each as it was made or set."""

    def __init__(self) -> None:
        self._by_root: weakref.WeakKeyDictionary[Any, dict[int, set[str]]] = weakref.WeakKeyDictionary()

    def of(self, root: Any, reached: ReachableObjects) -> set[str]:
        """Those of a root (see `Looked.has`), to be added to; a new set where it has no weak references."""
        try:
            variants = self._by_root.setdefault(root, {})
        except TypeError:
            return set()
        coarse = variant(reached)[0]
        return variants.setdefault(coarse if coarse in variants or len(variants) < _COARSE else 0, set())


def variant(reached: ReachableObjects) -> tuple[int, int]:
    """What tells it from others of the same code: flags, words and signs of numbers; and with these the numbers.

    Also which tensors need a gradient: a graph saves for them what it does not save where they are frozen.
    """
    if reached.variant is None:
        fine, coarse = [], []
        for name, kind, value in reached.plain:
            if _COMPILED in name:  # does what the module does
                continue
            told, number = (name, kind.__module__, kind.__qualname__), kind in _NUMBERS
            fine.append((*told, repr(value) if number else value))  # -1 and -2 have the same hash
            if "[" not in name:  # of lists the entries become more
                coarse.append((*told, _sign(value) if number else value))
        reached.variant, reached.plain = (hash(tuple(coarse)), hash(tuple(fine))), []
    flags = [x for _, x in reached.watched if type(x) is Tensor and x.ndim == 0 and x.is_cpu and not x.requires_grad]
    recorded = (
        *reached.handed,
        *[x.requires_grad for _, x in reached.watched if isinstance(x, Tensor)],
        *[x.requires_grad for module in reached.modules for x in module.parameters()],
    )
    try:
        values = [x.item() for x in flags]
    except RuntimeError:  # of a transform
        values = []
    coarse, fine = reached.variant
    return hash((coarse, recorded, *map(_sign, values))), hash((fine, *map(repr, values)))


def _sign(value: Any) -> Any:
    """Whether a number is another one than zero, and below it."""
    return bool(value), not isinstance(value, complex) and value < 0
