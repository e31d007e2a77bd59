"""Gradients of weights as the steps of a backward pass add to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenet_torch.field.field import Field
from odenet_torch.field.half_precision import HALF

Parts = dict[Any, Tensor]
"""Gradients of weights, by place (`Sums.place`)."""


class Sums:
    """Gradients of weights as they add up; those of a stack's rows in place, so that there is no second copy.

    Where several are added for a weight of half precision they add up in float32, and are rounded once.
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        self.by_tensor: dict[int, Tensor] = {}
        self.rows: dict[int, dict[int, Tensor]] = {}
        """Totals in float32 of the rows of half-precision stacks that the running steps read."""

    def add(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], factor: float = 1.0) -> None:
        """Add `factor` times each gradient that is there; None is zero."""
        for tensor, gradient in zip(tensors, gradients, strict=True):
            if gradient is None:
                continue
            home, row = self.field.home(tensor)
            before = self.by_tensor.get(id(home))
            if row is None:
                self.by_tensor[id(home)] = _added(before, gradient, factor)
                continue
            stack = torch.zeros_like(home) if before is None else before
            if home.dtype in HALF:
                self._row(id(home), stack, row).add_(gradient, alpha=factor)
            else:
                stack[row].add_(gradient, alpha=factor)
            self.by_tensor[id(home)] = stack

    def collect(
        self, parts: Parts, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], factor: float = 1.0
    ) -> None:
        """Add `factor` times each gradient that is there to `parts`, which are no part of these."""
        for tensor, gradient in zip(tensors, gradients, strict=True):
            if gradient is not None:
                part = gradient.float() if gradient.dtype in HALF else gradient
                part = part if factor == 1 else factor * part
                place = self.place(tensor)
                parts[place] = parts[place] + part if place in parts else part

    def place(self, tensor: Tensor) -> tuple[int, int | None]:
        """Where the gradient of a tensor is added up."""
        home, row = self.field.home(tensor)
        return id(home), row

    def total(self, tensor: Tensor) -> Tensor | None:
        """What was added up for a tensor so far; in float32 for a row of half precision."""
        home, row = self.field.home(tensor)
        if row is not None and row in (wide := self.rows.get(id(home), {})):
            return wide[row]
        total = self.by_tensor.get(id(home))
        return total if total is None or row is None else total[row]

    def totals(self) -> list[Tensor]:
        """All that was added up so far, in any order; it is not to be written on."""
        rows = [wide for rows in self.rows.values() for wide in rows.values()]
        return [*self.by_tensor.values(), *rows]

    def put(self, tensor: Tensor, total: Tensor) -> None:
        """Replace the total of a tensor that is not of half precision."""
        home, row = self.field.home(tensor)
        if row is None:
            self.by_tensor[id(home)] = total
        else:
            if id(home) not in self.by_tensor:
                self.by_tensor[id(home)] = torch.zeros_like(home)
            self.by_tensor[id(home)][row] = total

    def so_far(self, home: Tensor) -> Tensor | None:
        """All that was added up for a tensor, or for the rows of a stack; it is not to be written on."""
        total, rows = self.by_tensor.get(id(home)), self.rows.get(id(home), {})
        if total is None or not rows:
            return total
        total = total.clone()
        for row, wide in rows.items():
            total[row] = wide
        return total

    def gradient(self, key: int, kind: torch.dtype) -> Tensor | None:
        """That of a tensor, by `id`, in its number type; None where nothing was added."""
        total = self.by_tensor.pop(key, None)
        if total is None:
            return None
        if key in self.rows:
            for row, wide in self.rows.pop(key).items():
                total[row] = wide
        return total if total.dtype is kind else total.to(kind)

    def _row(self, key: int, stack: Tensor, row: int) -> Tensor:
        rows = self.rows.setdefault(key, {})
        if row not in rows:
            for other in [other for other in rows if abs(other - row) > 1]:  # no step reads more than two neighbours
                stack[other] = rows.pop(other)
            rows[row] = stack[row].float()
        return rows[row]


def _added(before: Tensor | None, part: Tensor, factor: float) -> Tensor:
    """`before + factor part`; a second part makes it float32 where it is of half precision."""
    if part.dtype not in HALF:
        if before is None:
            return part if factor == 1 else factor * part
        return before + part if factor == 1 else torch.add(before, part, alpha=factor)
    if before is None:
        return part if factor == 1 else part.float().mul_(factor)
    return torch.add(before.float(), part, alpha=factor)
