"""The scan over N equal steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from odenet import Grid, Tableau
from odenet._step import add, increment, positions
from odenet_jax._field import Field, Slot, Weights
from odenet_jax._state import Layout, Leaves


@dataclass(frozen=True)
class Run:
    """One solve: the field along depth on a grid by a method. Arrays come as arguments, since gradients go to them.

    Args:
        field: without its weights.
        layout: of the state.
        grid: times and steps.
        tableau: the method.
    """

    field: Field
    layout: Layout
    grid: Grid
    tableau: Tableau

    def increment(
        self, n: Any, y: Leaves, slot: Slot | None, shared: Weights, closed: Any, *, reverse: bool = False
    ) -> Leaves:
        """`D_n(y)`, or the increment of one step of size -h from the end of step n."""
        places = positions(self.tableau, reverse)

        def stage(i: int, at: Leaves) -> Leaves:
            return self.slope(n, places[i], at, slot, shared, closed)

        return increment(self.tableau, stage, y, -self.grid.h if reverse else self.grid.h)

    def slope(self, n: Any, position: float, y: Leaves, slot: Slot | None, shared: Weights, closed: Any) -> Leaves:
        """The field at `position` of step n."""
        t = jnp.asarray(self.grid.time(jnp.asarray(n, self.layout.time), position))
        return self.layout.slope(self.field(t, self.layout.call(y), position, slot, shared, closed), y)


def loop(run: Run, y0: Leaves, weights: Weights, closed: Any) -> Leaves:
    """All steps from y0, to be differentiated by JAX: the leaves at `grid.kept`."""
    final_only = run.grid.final_only

    def body(carry: tuple[Any, Leaves], slot: Slot | None) -> tuple[tuple[Any, Leaves], Leaves | None]:
        n, y = carry
        y = add(y, run.increment(n, y, slot, weights, closed))
        return (n + 1, y), None if final_only else y

    slots = run.field.slots(weights, run.grid.steps)
    (_, last), emitted = lax.scan(body, (jnp.int32(0), y0), slots, length=run.grid.steps)
    if emitted is None:
        return tuple(leaf[None] for leaf in last)
    picks = jnp.asarray(run.grid.kept)
    return tuple(jnp.concatenate([first[None], rest])[picks] for first, rest in zip(y0, emitted, strict=True))


def loop_in_place(run: Run, y0: Leaves, weights: Weights, closed: Any) -> tuple[Leaves, Leaves]:
    """The same without a derivative: weights are read and kept states written in place, so that no memory grows with N.

    Returns:
        The leaves at `grid.kept` and the state at t1.
    """
    steps = run.grid.steps
    rows = None if run.grid.final_only else kept_rows(run.grid, steps)

    def body(carry: tuple[Any, Leaves, Leaves], _: None) -> tuple[tuple[Any, Leaves, Leaves], None]:
        n, y, kept = carry
        y = add(y, run.increment(n, y, run.field.slot(weights, n, steps), weights, closed))
        return (n + 1, y, kept if rows is None else _write(kept, rows[n + 1], y)), None

    kept: Leaves = ()
    if rows is not None:
        empty = tuple(jnp.zeros((len(run.grid.kept) + 1, *leaf.shape), leaf.dtype) for leaf in y0)
        kept = _write(empty, rows[0], y0)
    (_, last, kept), _ = lax.scan(body, (jnp.int32(0), y0, kept), None, length=steps)
    return tuple(leaf[None] for leaf in last) if rows is None else tuple(leaf[:-1] for leaf in kept), last


def kept_rows(grid: Grid, steps: int) -> Array:
    """For each index of a grid of `steps` steps, its row among the kept states; one past the last where it is not."""
    rows = [len(grid.kept)] * (steps + 1)
    for row, n in enumerate(grid.kept):
        rows[n * steps // grid.steps] = row
    return jnp.asarray(rows, jnp.int32)


def _write(kept: Leaves, row: Any, y: Leaves) -> Leaves:
    return tuple(lax.dynamic_update_index_in_dim(buffer, leaf, row, 0) for buffer, leaf in zip(kept, y, strict=True))


Solve = Callable[[Run, Leaves, Weights, Array], Leaves]
"""A gradient method: from the state at t0 to the leaves at `grid.kept`, differentiable in its way.

The last argument is the probe: a real zero whose "gradient" is the reconstruction residual, for the methods that have
one. It is how a value that is known in the backward pass alone gets out of it.
"""
