"""Hooks that are on all modules of the process (`torch.nn.modules.module.register_module_forward_hook` and the like).

They change what a module returns, or its gradient, as hooks of its own do, and may be put there or removed between the
forward and the backward pass, by a tracker of modules or a profiler for instance. What runs again runs under those of
its first run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

_EVERY = nn.modules.module
_HOOKS: tuple[dict[int, Any], ...] = (
    _EVERY._global_forward_pre_hooks,
    _EVERY._global_forward_hooks,
    _EVERY._global_backward_pre_hooks,
    _EVERY._global_backward_hooks,
)
_CHOICES: tuple[dict[int, Any], ...] = (
    _EVERY._global_forward_hooks_with_kwargs,
    _EVERY._global_forward_hooks_always_called,
)
_OURS: set[int] = set()
"""Those that odenet has put there itself, for as long as a pass takes, by the number of their handle."""
_AS_IT_IS = contextlib.nullcontext()


@contextlib.contextmanager
def on_each_call(function: Callable[[nn.Module, Any], None]) -> Iterator[None]:
    """Inside, a function of odenet's is called before each module."""
    handle = _EVERY.register_module_forward_pre_hook(function)
    _OURS.add(handle.id)
    try:
        yield
    finally:
        handle.remove()
        _OURS.discard(handle.id)


def present() -> bool:
    """Whether there are any, beside odenet's own."""
    return any(_HOOKS) and any(table.keys() - _OURS for table in _HOOKS)


def functions() -> dict[int, Any]:
    """The hooks that there are now, beside odenet's own, by the number of their handle."""
    return {key: hook for table in _HOOKS for key, hook in table.items() if key not in _OURS} if any(_HOOKS) else {}


class SharedHooks:
    """The hooks that are there now."""

    def __init__(self) -> None:
        self.before = [*map(dict, (*_HOOKS, *_CHOICES))] if present() else None

    def again(self) -> contextlib.AbstractContextManager[None]:
        """Inside, there are these; afterwards those that there are now."""
        if self.before is None and not present():
            return _AS_IT_IS
        before = self.before or [{} for _ in (*_HOOKS, *_CHOICES)]
        pairs = [(table, kept) for table, kept in zip((*_HOOKS, *_CHOICES), before, strict=True) if table != kept]
        return _swapped(pairs) if pairs else _AS_IT_IS


@contextlib.contextmanager
def _swapped(pairs: list[tuple[dict[int, Any], dict[int, Any]]]) -> Iterator[None]:
    now = [{key: value for key, value in table.items() if key not in _OURS} for table, _ in pairs]
    for (table, kept), present_hooks in zip(pairs, now, strict=True):
        _exchange(table, present_hooks, kept)
    try:
        yield
    finally:
        for (table, kept), present_hooks in zip(pairs, now, strict=True):
            _exchange(table, kept, present_hooks)


def _exchange(table: dict[int, Any], out: dict[int, Any], into: dict[int, Any]) -> None:
    """Take out some entries, and put in others in the order that they had."""
    for key in out:
        table.pop(key, None)
    table.update((key, value) for key, value in into.items() if key not in _OURS)
