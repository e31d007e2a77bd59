"""Bytes that are alive while something runs, and waiting until it is done."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from odenet.kit import tree_leaves
from odenet_torch.field.storages import storages


class TooMuch(Exception):
    """More bytes are alive than the limit; how many."""

    def __init__(self, size: int) -> None:
        super().__init__(f"{size} bytes")
        self.size = size


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations make while this is entered: `peak` is the most alive at one time.

    Exact and the same on every machine: storages are counted when they appear and when they are freed. What kernels
    allocate and free inside one operation is not seen.

    Args:
        limit: bytes; an operation that makes more alive raises `TooMuch`.
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and see what it made."""
        out = func(*args, **(kwargs or {}))
        created = {id(s): s for x in _tensors(out) for s in storages(x) if id(s) not in self._known}
        if created:  # views and in-place operations give back what they were given
            inputs = {id(s) for x in _tensors((args, kwargs)) for s in storages(x)}
            for key in created.keys() - inputs:
                self._count(created[key])
        return out

    def _count(self, storage: Any) -> None:
        size, key = storage.nbytes(), id(storage)

        def freed(_: object) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)
        if self.limit is not None and self.peak > self.limit:
            raise TooMuch(self.peak)


def peak_bytes(function: Callable[[], object], device: torch.device, limit: int | None = None) -> tuple[int, str]:
    """Most bytes alive at once while `function` runs, beyond those before it, and how they were counted.

    Args:
        function: what is run.
        device: where its tensors are.
        limit: bytes at which it is stopped, on the CPU; elsewhere the device itself says when there is no more.

    Raises:
        TooMuch: it was.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, "torch.cuda allocator"
    with LiveBytes(limit) as mode:
        function()
    return mode.peak, "live tensor storages"


def finished(function: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """The function, returning when the device has done its work."""

    def wait() -> None:
        function()
        _synchronise(device)

    return wait


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
