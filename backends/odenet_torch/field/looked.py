"""Parts of a field that were looked at once in the life of the process: modules by mode, other functions by their code.

A function is made anew for each solve as often as not, as a lambda or a closure is. Its code, and that of all functions
that can be reached from it, are the same each time.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

from torch import nn

from odenet_torch.field.surroundings import reach


class Looked:
    """Modules in training or not, and functions."""

    def __init__(self) -> None:
        self._modules: dict[bool, weakref.WeakSet[nn.Module]] = {flag: weakref.WeakSet() for flag in (False, True)}
        self._others: weakref.WeakSet[Any] = weakref.WeakSet()

    def __contains__(self, root: Any) -> bool:
        """Whether all of it was looked at; no where it has neither code nor weak references."""
        if isinstance(root, nn.Module):
            return root in self._modules[root.training]
        try:
            return all(part in self._others for part in _parts(root))
        except TypeError:
            return False

    def some(self, root: Any) -> bool:
        """Whether a part of it is among these."""
        if isinstance(root, nn.Module):
            return root in self
        try:
            return bool(self._others) and not self._others.isdisjoint(_parts(root))
        except TypeError:
            return False

    def add(self, root: Any) -> None:
        """From now on it is among these."""
        if isinstance(root, nn.Module):
            self._modules[root.training].add(root)
            return
        with contextlib.suppress(TypeError):
            self._others.update(_parts(root))


def _parts(root: Any) -> Any:
    return reach(root).codes or (root,)
