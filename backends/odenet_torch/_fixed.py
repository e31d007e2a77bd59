"""The loop over N equal steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from odenet import Grid, Tableau
from odenet._step import add, increment, positions
from odenet_torch._field import Field, Stand
from odenet_torch._state import Layout, Leaves


@dataclass(frozen=True)
class Run:
    """One solve: the field along depth on a grid by a method.

    Args:
        field: with its weights.
        layout: of the state.
        grid: times and steps.
        tableau: the method.
    """

    field: Field
    layout: Layout
    grid: Grid
    tableau: Tableau

    def increment(self, n: int, y: Leaves, *, reverse: bool = False, stand: Stand | None = None) -> Leaves:
        """`D_n(y)`, or the increment of one step of size -h from the end of step n."""
        places = positions(self.tableau, reverse)

        def stage(i: int, at: Leaves) -> Leaves:
            return self.slope(n, places[i], at, stand)

        return increment(self.tableau, stage, y, -self.grid.h if reverse else self.grid.h)

    def slope(self, n: int, position: float, y: Leaves, stand: Stand | None = None) -> Leaves:
        """The field at `position` of step n."""
        layout = self.layout
        # filled on the device: no copy from the host
        t = torch.full((), self.grid.time(n, position), dtype=layout.time, device=layout.device)
        return layout.slope(self.field(t, layout.call(y), n, position, self.grid.steps, stand), y)


def loop(run: Run, y: Leaves, first: Leaves | None = None) -> tuple[list[Leaves], Leaves]:
    """All steps from y.

    Args:
        run: what to solve.
        y: the state at t0.
        first: the increment of step 0, where it is known already.

    Returns:
        The states at `grid.kept` and the state at t1.
    """
    kept = set(run.grid.kept)
    states = [y] if 0 in kept else []
    for n in range(run.grid.steps):
        y = add(y, run.increment(n, y) if n or first is None else first)
        if n + 1 in kept:
            states.append(y)
    return states, y


def stacked(run: Run, states: list[Leaves]) -> Leaves:
    """Leaves with a leading time axis, in the number type of y0."""
    columns = zip(*states, strict=True)
    return tuple(run.layout.returned(_stack(column), i) for i, column in enumerate(columns))


def _stack(column: tuple[Tensor, ...]) -> Tensor:
    return column[0].unsqueeze(0) if len(column) == 1 else torch.stack(column)


Solve = Callable[[Run, Leaves], Leaves]
"""A gradient method: from the state at t0 to the leaves at `grid.kept`, differentiable in its way."""
