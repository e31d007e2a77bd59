"""Counting field evaluations and VJPs; bytes and seconds are `odenet_torch.field.live_bytes`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet.kit import tree_flatten
from odenet_torch.field.live_bytes import LiveBytes, finished, peak_bytes

__all__ = ["Counter", "LiveBytes", "counted", "finished", "peak_bytes"]


@dataclass
class Counter:
    """Field evaluations and VJPs."""

    f: int = 0
    vjp: int = 0


class _Tick(torch.autograd.Function):
    """The identity, which counts each time a cotangent flows back through it."""

    @staticmethod
    def forward(ctx: Any, counter: Counter, x: Tensor) -> Tensor:
        ctx.counter = counter
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        ctx.counter.vjp += 1
        return None, gradients[0]


def counted(field: Callable[..., Any], counter: Counter) -> Callable[..., Any]:
    """The same field, counting its evaluations and VJPs."""

    def wrapped(*arguments: Any) -> Any:
        counter.f += 1
        leaves, unflatten = tree_flatten(field(*arguments))
        return unflatten([_Tick.apply(counter, leaves[0]), *leaves[1:]])

    return wrapped
