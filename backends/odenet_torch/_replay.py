"""Running a piece of the field again as it ran before: random state, buffers, autocast.

Memory-free gradients evaluate f again. Dropout must draw the same mask, BatchNorm must not count the batch twice, and
mixed precision must be that of the forward pass. `.training` is never touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from odenet import GradientError
from odenet_torch._state import Leaves

Key = tuple[int, bool, float]
"""An evaluation of the forward pass: step, whether of a reversed step, and which of the step's."""
Owned = tuple[nn.Module, str]
Module = tuple[str, nn.Module]
"""A module that f calls, with the name that an error gives it."""

# by training flag: modules that did not change their buffers when they ran first, and those that passed the check
_STEADY: dict[bool, weakref.WeakSet[nn.Module]] = {flag: weakref.WeakSet() for flag in (False, True)}
_FUNCTIONS: dict[bool, weakref.WeakSet[nn.Module]] = {flag: weakref.WeakSet() for flag in (False, True)}


class Replay:
    """What the evaluations of one forward pass read beside their arguments, and the way to read it again.

    Args:
        device: of the state.
        modules: the modules that f calls in a step; more may be noticed later (see `notice`).
    """

    def __init__(self, device: torch.device, modules: Callable[[int], Sequence[Module]]) -> None:
        self.device = device
        self.modules = modules
        self.noticed: list[Module] = []
        self.flags: dict[int, tuple[Module, tuple[bool, ...]]] = {}
        self.random: dict[Key, list[Tensor]] = {}
        self.buffers: dict[Key, list[tuple[Owned, Tensor | None]]] = {}
        self.last = _random_state(device)
        self.autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in dict.fromkeys((device.type, "cpu"))
            if kind in ("cpu", "cuda")
        ]

    @contextlib.contextmanager
    def notice(self) -> Iterator[None]:
        """Modules that are called while this is entered belong to f: a closure may call some."""
        if self.modules(0):  # f is made of modules itself
            yield
            return

        def seen(module: nn.Module, inputs: Any) -> None:
            if not any(module is inner for _, outer in self.noticed for inner in outer.modules()):
                self.noticed.append((type(module).__name__, module))

        handle = nn.modules.module.register_module_forward_pre_hook(seen)
        try:
            yield
        finally:
            handle.remove()

    def first(self, key: Key, evaluate: Callable[[], Leaves]) -> Leaves:
        """An evaluation of the forward pass."""
        called = self._called(key[0])
        before = self._look(called)
        out = evaluate()
        state = _random_state(self.device)
        if not _same(state, self.last):
            self.random[key], self.last = self.last, state
        if before:
            self._keep_changed(key, before)
        for name, module in called:
            if id(module) not in self.flags:
                self.flags[id(module)] = ((name, module), _training(module))
            if module not in _FUNCTIONS[module.training]:
                _FUNCTIONS[module.training].add(module)
                self._check(key, name, out, evaluate)
        return out

    def again(self, key: Key, stages: int, evaluate: Callable[[], Leaves]) -> Leaves:
        """An evaluation of the way back, as the forward evaluation at the same place of the step was."""
        if not (self.random or self.buffers):
            return evaluate()
        step, reverse, rank = key
        mirrored = (step, False, stages - 1 - rank)
        for known in (key, mirrored, (step, False, 0)):
            if known in self.random or known in self.buffers:
                key = known
                break
        with self._swapped(self.buffers.get(key, ())):
            if key in self.random:
                _set_random_state(self.device, self.random[key])
            return evaluate()

    @contextlib.contextmanager
    def back(self) -> Iterator[None]:
        """The way back: under the forward pass's autocast, and leaving the random state as it is.

        Raises:
            GradientError: a module was switched between training and evaluation since the forward pass.
        """
        for (name, module), flags in self.flags.values():
            if _training(module) != flags:
                raise GradientError(
                    f"{name} was switched between train() and eval() after the forward pass, and is to run again",
                    "the same mode in the forward and the backward pass",
                    "call backward() first, or take gradient='backprop'",
                )
        state = _random_state(self.device)
        with contextlib.ExitStack() as stack:
            for kind, enabled, dtype in self.autocast:
                if not enabled and not torch.is_autocast_enabled(kind):
                    continue
                # no cache: a cast made without a graph would be found again where one is needed
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
            try:
                yield
            finally:
                _set_random_state(self.device, state)

    @contextlib.contextmanager
    def forth(self) -> Iterator[None]:
        """The forward pass, which casts weights without a graph: these must not be cached, either."""
        with contextlib.ExitStack() as stack:
            for kind, enabled, dtype in self.autocast:
                if not enabled:
                    continue
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
            yield

    def _called(self, step: int) -> list[Module]:
        return [*self.modules(step), *self.noticed]

    def _look(self, called: Sequence[Module]) -> list[tuple[Owned, Tensor, int, Tensor | None]]:
        """The buffers of these modules; a copy where what is in them may matter to f and may change."""
        found = []
        for _, module in called:
            for inner in module.modules():
                copy = not (_indifferent(inner) or inner in _STEADY[inner.training])
                for name, buffer in inner._buffers.items():
                    if buffer is not None:
                        value = buffer.detach().clone() if copy else None
                        found.append(((inner, name), buffer, buffer._version, value))
        return found

    def _keep_changed(self, key: Key, before: list[tuple[Owned, Tensor, int, Tensor | None]]) -> None:
        changed = []
        for (module, name), buffer, version, value in before:
            now = module._buffers.get(name)
            if now is buffer and buffer._version == version:
                continue
            if value is None and not _indifferent(module):
                raise GradientError(
                    f"{type(module).__name__} changed its buffer {name!r} now, and did not when it ran first",
                    "modules that change their buffers in every training pass or in none",
                    "take gradient='backprop'",
                )
            changed.append(((module, name), value))
        if changed:
            self.buffers[key] = changed
        moving = {id(module) for (module, _), _ in changed}
        for (module, _), *_ in before:
            if id(module) not in moving:
                _STEADY[module.training].add(module)

    @contextlib.contextmanager
    def _swapped(self, changed: Sequence[tuple[Owned, Tensor | None]]) -> Iterator[None]:
        """Copies in the place of buffers that f changes: as they were before, so that nothing is counted twice."""
        originals = [module._buffers[name] for (module, name), _ in changed]
        for ((module, name), value), original in zip(changed, originals, strict=True):
            copy = value if value is not None else original
            module._buffers[name] = None if copy is None else copy.detach().clone()
        try:
            yield
        finally:
            for ((module, name), _), original in zip(changed, originals, strict=True):
                module._buffers[name] = original

    def _check(self, key: Key, name: str, out: Leaves, evaluate: Callable[[], Leaves]) -> None:
        """Once in a module's life: run it again and compare.

        Raises:
            GradientError: something else came out.
        """
        state = _random_state(self.device)
        with torch.no_grad():
            again = self.again(key, 1, evaluate)
        _set_random_state(self.device, state)
        for one, other in zip((leaf.detach() for leaf in out), again, strict=True):
            apart = torch.linalg.vector_norm((one - other).flatten())
            size = torch.linalg.vector_norm(one.flatten())
            if bool(apart > torch.finfo(one.dtype).eps ** 0.5 * size):
                raise GradientError(
                    f"{name} is not a function of its inputs: run again on the same ones, with the same random state "
                    f"and buffers, it is off by {float(apart / size):.1e} of its output",
                    "blocks that give the same for the same",
                    "look for a counter, a generator of its own, or something it reads from outside; "
                    "or take gradient='backprop', which runs each block once",
                )


def _indifferent(module: nn.Module) -> bool:
    """Whether the buffers that this module changes do not matter to what it returns."""
    return isinstance(module, (_BatchNorm, _InstanceNorm)) and module.training


def _training(module: nn.Module) -> tuple[bool, ...]:
    return tuple(inner.training for inner in module.modules())


def _random_state(device: torch.device) -> list[Tensor]:
    state = [torch.get_rng_state()]
    if device.type == "cuda":
        state.append(torch.cuda.get_rng_state(device))
    return state


def _set_random_state(device: torch.device, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(_bytes(a) == _bytes(b) for a, b in zip(one, other, strict=True))


def _bytes(state: Tensor) -> bytes:
    """Of a generator's state, without an operation of torch: this is asked at every evaluation."""
    return ctypes.string_at(state.data_ptr(), state.nbytes)
