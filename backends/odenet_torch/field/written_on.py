"""Whether a tensor was written on: by torch's count, and by its values where torch does not count (`.data`)."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from odenet import GradientError
from odenet_torch.field.storages import parts

WINDOW = 64
"""Bytes that are looked at, at most, at the start of a tensor and in its middle."""
_WINDOWS: dict[int, tuple[int, int, Any, Any]] = {}
"""By `id` of a tensor: the address and the size of its memory, which are all that two windows on it depend on. No weak
reference: torch swaps no tensors that have one, as `Module.to` does with parameters of classes of their own."""
_MOST = 1 << 16
"""Tensors that are remembered; then all are forgotten."""


def version(tensor: Tensor) -> int:
    """How often a tensor was written on; 0 where torch does not count it."""
    return 0 if tensor.is_inference() else tensor._version


def writes(tensor: Tensor) -> Any:
    """What is another value once the tensor has been written on, through `.data`, too."""
    return version(tensor), sampled(tensor)


def sampled(tensor: Tensor) -> Any:
    """Bytes of a tensor on the host, at its start and in its middle, which writes through `.data` change.

    Of a tensor on a device, where reading is a wait, the address; None where there is no memory to look at. Made for
    being asked of every parameter in every pass: a third of a microsecond.
    """
    known = _WINDOWS.get(id(tensor))
    try:
        address = tensor.data_ptr()
    except RuntimeError:  # within a transform, or without memory of its own
        return None if tensor.layout is torch.strided else _sampled_values(tensor)
    # another tensor that has the `id`, the address and the size of one that is gone may lie in less memory, by strides
    if known is None or known[0] != address or known[1] != tensor.nbytes or not tensor.is_contiguous():
        views = windows(tensor)
        if views is None:
            return address if tensor.is_cuda else None
        if len(_WINDOWS) >= _MOST:
            _WINDOWS.clear()
        known = _WINDOWS[id(tensor)] = (address, tensor.nbytes, *views)
    return known[2].raw + known[3].raw


def _sampled_values(sparse: Tensor) -> Any:
    try:
        return [window.raw for part in parts(sparse)[:1] for window in windows(part) or ()]
    except RuntimeError:  # within a transform
        return None


def windows(tensor: Tensor) -> tuple[Any, Any] | None:
    """Two windows on a tensor's memory, of as many bytes each; None where that is not in one piece on the host."""
    address = tensor.data_ptr()
    if not (tensor.is_cpu and address and tensor.layout is torch.strided and tensor.is_contiguous()):
        return None
    size = tensor.nbytes
    window = ctypes.c_char * min(size, WINDOW)
    return window.from_address(address), window.from_address(address + min(size // 2, size - len(window())))


def changed(subject: str, allowed: str = "the same") -> GradientError:
    """The error for what is to run again and is not what it was."""
    return GradientError(
        f"{subject} after the forward pass, and is to run again",
        f"{allowed} in the forward and the backward pass",
        "call backward() first, or take gradient='backprop'",
    )
