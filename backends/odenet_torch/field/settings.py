"""What torch itself is set to while f runs: the default number type and device, modes, and the choice of kernels.

They are the thread's or the process's, and may be others in the backward pass. Those of `with torch.device(...)` always
are: torch takes the mode off for as long as `Tensor.backward` runs. What runs again runs under those of its first run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode

_C: Any = torch._C  # its functions have no types
_AS_IT_IS = contextlib.nullcontext()


def _set_deterministic(mode: tuple[bool, bool]) -> None:
    _C._set_deterministic_algorithms(mode[0], warn_only=mode[1])


def _deterministic() -> tuple[bool, bool]:
    return _C._get_deterministic_algorithms(), _C._get_deterministic_algorithms_warn_only()


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (_deterministic, _set_deterministic),
    (_C._get_cudnn_enabled, _C._set_cudnn_enabled),
    (_C._get_mkldnn_enabled, _C._set_mkldnn_enabled),
    # of attention, whose kernels save different tensors
    (_C._get_flash_sdp_enabled, _C._set_sdp_use_flash),
    (_C._get_mem_efficient_sdp_enabled, _C._set_sdp_use_mem_efficient),
    (_C._get_math_sdp_enabled, _C._set_sdp_use_math),
    (_C._get_cudnn_sdp_enabled, _C._set_sdp_use_cudnn),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
)
_READERS = tuple([read for read, _ in _SETTINGS])


class Settings:
    """Those of now."""

    __slots__ = ("dispatching", "functions", "values")

    def __init__(self) -> None:
        self.values = _values()
        self.functions = _function_modes()
        self.dispatching = _dispatch_modes()

    def stand(self) -> bool:
        """Whether they are the same now."""
        return (
            self.values == _values()
            and self.functions == _function_modes()
            and (not self.dispatching or not self._missing())
        )

    def again(self) -> contextlib.AbstractContextManager[None]:
        """Inside, torch is set as it was; afterwards as it is now."""
        return _AS_IT_IS if self.stand() else self._again()

    def _missing(self) -> list[TorchDispatchMode]:
        """Modes that are no longer active. Those that are further ones, such as a count of operations, stay."""
        active = set(map(id, _dispatch_modes()))
        return [mode for mode in self.dispatching if id(mode) not in active]

    @contextlib.contextmanager
    def _again(self) -> Iterator[None]:
        now, modes, missing = _values(), _function_modes(), self._missing()
        pairs = list(zip(_SETTINGS, self.values, now, strict=True))
        # torch's checkpoint enters the mode of a device again, which then notes itself as what was there before
        held = [(vars(mode), {**vars(mode)}) for mode in self.functions if isinstance(mode, DeviceContext)]
        try:
            for (_, write), before, current in pairs:
                if before != current:
                    write(before)
            # put there without `__enter__`, which may begin a record anew
            for mode in missing:
                _C._push_on_torch_dispatch_stack(mode)
            _put(self.functions)
            yield
        finally:
            _put(modes)
            for own, before in held:
                own.update(before)
            for _ in missing:
                _C._pop_torch_dispatch_stack(None)
            for (_, write), before, current in pairs:
                if before != current:
                    write(current)


def _values() -> list[Any]:
    return [read() for read in _READERS]


def _function_modes() -> list[TorchFunctionMode]:
    return [_C._get_function_stack_at(i) for i in range(_C._len_torch_function_stack())]


def _put(modes: list[TorchFunctionMode]) -> None:
    if modes == _function_modes():
        return
    while _C._len_torch_function_stack():
        _C._pop_torch_function_stack()
    for mode in modes:
        _C._push_on_torch_function_stack(mode)


def _dispatch_modes() -> list[TorchDispatchMode]:
    """The active ones, less those of torch itself, which count or trace."""
    modes = [_C._get_dispatch_stack_at(i) for i in range(_C._len_torch_dispatch_stack())]
    return [mode for mode in modes if not type(mode).__module__.startswith(("torch.", "odenet_torch."))]
