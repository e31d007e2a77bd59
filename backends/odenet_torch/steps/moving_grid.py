"""Equal steps between times that need a gradient: that of the discrete solve itself, by every gradient method.

A step from t[n] to t[n+1] reads t0 and t1 in its size and in the times of its stages, and nowhere else. With s the time
on the grid of numbers, `y'(s) = f(t(s), y) dt/ds` has the same steps on that grid, whatever the method: t0 and t1
become weights of the field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenet import Grid, UnsupportedError
from odenet.kit import tree_map
from odenet_torch.field.field import Field, Stand, unique
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.steps.fixed import Run
from odenet_torch.steps.times import moved, moves, zero


class Stretched(Field):
    """A field on the numbers of a grid whose ends are tensors.

    Args:
        field: with its weights.
        grid: whose `moving` has these ends.
    """

    def __init__(self, field: Field, grid: Grid) -> None:
        assert grid.moving is not None
        self.field = field
        self.grid = grid
        self.ends = grid.moving[:2]
        self.length = grid.t1 - grid.t0
        self.depth, self.shared = field.depth, field.shared
        self.tensors = unique(end for end in self.ends if moves(end))

    @property
    def numbers(self) -> Grid:
        """The grid that is stepped over: from 0 to 1 where t0 and t1 are the same number."""
        return self.grid if self.length else dataclasses.replace(self.grid, t0=0.0, t1=1.0)

    def __call__(self, t: Tensor, y: Any, n: int, position: float, steps: int, stand: Stand | None = None) -> Any:
        ahead = (n + position) / steps
        first, last = (self._by(end, t, stand) for end in self.ends)
        change = last - first
        if self.length:
            rate, at = 1 + change / self.length, t + first * (1 - ahead) + last * ahead
        else:
            rate, at = change, torch.full_like(t, self.grid.t0) + first * (1 - ahead) + last * ahead
        value = self.field(at, y, n, position, steps, stand)

        def scaled(leaf: Any) -> Any:
            return rate.to(leaf.real.dtype) * leaf if isinstance(leaf, Tensor) else leaf

        return tree_map(scaled, value)

    def time_by(self, n: int, layout: Layout) -> Tensor:
        """By how much the time of grid point n moves: zero, with its derivatives by t0 and t1."""
        like = torch.zeros((), dtype=layout.time, device=layout.device)
        ahead = n / self.grid.steps
        return self._by(self.ends[0], like, None) * (1 - ahead) + self._by(self.ends[1], like, None) * ahead

    def _by(self, end: Any, like: Tensor, stand: Stand | None) -> Tensor:
        """`end - end`, with the derivative of the first."""
        if not any(end is tensor for tensor in self.tensors):
            return torch.zeros_like(like)
        end = end if stand is None else stand.get(id(end), end)
        still = end.detach()
        if torch.autograd.forward_ad._current_level >= 0:
            still = torch.autograd.forward_ad.unpack_dual(end).primal.detach()
        return (end - still).reshape(()).to(like)

    def capture(self, tensors: Iterable[Tensor]) -> None:
        self.field.capture(tensors)

    def explicit(self, n: int, steps: int) -> tuple[Tensor, ...]:
        needed = (tensor for tensor in self.tensors if tensor.requires_grad)
        return unique((*self.field.explicit(n, steps), *needed))

    def read(self, n: int, steps: int) -> tuple[Tensor, ...]:
        return self.field.read(n, steps)

    def home(self, tensor: Tensor) -> tuple[Tensor, int | None]:
        return self.field.home(tensor)

    def apart(self) -> Stretched:
        return Stretched(self.field.apart(), self.grid)

    def modules(self, n: int, position: float, steps: int) -> Sequence[tuple[str, nn.Module]]:
        return self.field.modules(n, position, steps)

    def handed(self, n: int, steps: int) -> Iterable[Tensor]:
        return (*self.field.handed(n, steps), *self.tensors)

    def settle(self, ns: Iterable[int], steps: int) -> None:
        self.field.settle(ns, steps)

    def layers(self, n: int, steps: int) -> tuple[int, ...]:
        return self.field.layers(n, steps)


def on_numbers(grid: Grid, field: Field) -> tuple[Grid, Field]:
    """The grid that is stepped over, and the field there: as they are, unless t0 or t1 needs a gradient."""
    if grid.moving is None or not any(map(moves, grid.moving[:2])):
        return grid, field
    stretched = Stretched(field, grid)
    return stretched.numbers, stretched


def at_times(grid: Grid, run: Run, ys: Leaves) -> Leaves:
    """The outputs with the derivatives by the times in `ts`, which are kept where they are when t0 and t1 move.

    Args:
        grid: of the problem.
        run: the solve, as it was before it ran.
        ys: the outputs, one for each time that is kept.

    Raises:
        UnsupportedError: weights change with depth, whose layers meet at these times.
    """
    if grid.moving is None or grid.moving[2] is None or isinstance(grid.moving[2], str):
        return ys
    ts = grid.moving[2]
    times = list(ts) if not isinstance(ts, Tensor) or ts.ndim else [ts]
    field = run.field
    stretched = field if isinstance(field, Stretched) else None
    if stretched is None and not any(map(moves, times)):
        return ys
    if field.depth is not None and field.depth.kind != "shared":
        raise UnsupportedError(
            "a gradient with respect to a time, with ts and weights that change with depth, whose layers meet there",
            "ts=None or ts='all', where t0 and t1 may need a gradient; shared weights; times that need no gradient",
        )
    inner = field if stretched is None else stretched.field
    layout, steps = run.layout, grid.steps
    rows = list(zip(*(leaf.unbind(0) for leaf in ys), strict=True))
    for i, (n, t) in enumerate(zip(grid.saved, times, strict=True)):
        by = zero(t, layout) if moves(t) else torch.zeros((), dtype=layout.time, device=layout.device)
        if stretched is not None:
            by = by - stretched.time_by(n, layout)

        def f(t: Tensor, y: Leaves, n: int = n) -> Leaves:
            step, position = (n, 0.0) if n < steps else (n - 1, 1.0)
            return layout.evaluate(lambda y: inner(t, y, step, position, steps), y, start=True)

        start = torch.full((), grid.time(n), dtype=layout.time, device=layout.device)
        start = start if stretched is None else start + stretched.time_by(n, layout)
        rows[i] = moved(f, start, by, rows[i])
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))
