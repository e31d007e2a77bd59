"""Hooks that are on all modules of the process (`torch.nn.modules.module.register_module_forward_hook` and the like).

They change what a module returns, or its gradient, as hooks of its own do, and may be put there or removed between the
forward and the backward pass, by a tracker of modules or a profiler for instance. What runs again runs under those of
its first run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

_C: Any = torch._C  # its functions have no types
_COUNTER = "torch.utils.flop_counter"
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
_TRACKER = "torch.utils.module_tracker"
"""Of torch's, whose hooks count and change nothing: they are called as long as somebody counts."""


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


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """Inside, modules are called for a look, of which nobody else is told who counts their calls or operations."""
    modes = [_C._get_dispatch_stack_at(i) for i in range(_C._len_torch_dispatch_stack())]
    if modes and all(type(mode).__module__ == _COUNTER for mode in modes):
        with _disable_current_modes(), untracked():
            yield
    else:
        with untracked():
            yield


@contextlib.contextmanager
def untracked() -> Iterator[None]:
    """Inside, a tracker of modules is not called: it would hook the states of single steps, which are leaves of
    graphs that are gone back through alone."""
    if not any(_HOOKS):
        yield
        return
    counting = [{key: hook for key, hook in table.items() if _tracks(hook)} for table in _HOOKS]
    for table, hooks in zip(_HOOKS, counting, strict=True):
        _exchange(table, hooks, {})
    try:
        yield
    finally:
        for table, hooks in zip(_HOOKS, counting, strict=True):
            _exchange(table, {}, hooks)


def present() -> bool:
    """Whether there are any, beside odenet's own and those that count."""
    return any(_HOOKS) and bool(functions())


def functions() -> dict[int, Any]:
    """The hooks that there are now, beside odenet's own and those that count, by the number of their handle."""
    return {key: hook for table in _HOOKS for key, hook in _of(table).items()} if any(_HOOKS) else {}


def _of(table: dict[int, Any]) -> dict[int, Any]:
    return {key: hook for key, hook in table.items() if key not in _OURS and not _tracks(hook)}


def _tracks(hook: Any) -> bool:
    return type(getattr(hook, "__self__", None)).__module__ == _TRACKER


class SharedHooks:
    """The hooks that are there now."""

    def __init__(self) -> None:
        self.before = [*map(_of, _HOOKS), *map(dict, _CHOICES)] if present() else None

    def again(self) -> contextlib.AbstractContextManager[None]:
        """Inside, there are these; afterwards those that there are now."""
        if self.before is None and not present():
            return untracked() if any(_HOOKS) else _AS_IT_IS
        before = self.before or [{} for _ in (*_HOOKS, *_CHOICES)]
        tables = zip((*_HOOKS, *_CHOICES), before, strict=True)
        pairs = [(table, kept) for table, kept in tables if _of(table) != kept]
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
