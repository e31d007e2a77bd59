"""The scan over N equal steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from odenet import Grid, ReversibleSolver
from odenet._solver import AnySolver
from odenet._step import add, increment, positions
from odenet_jax._field import Field, Slot, Weights
from odenet_jax._state import Layout, Leaves

Carried = tuple[Leaves, ...]
"""What a solver carries from step to step: y alone, or more for a reversible one; y first."""


@dataclass(frozen=True)
class Run:
    """One solve: the field along depth on a grid by a method.

    Args:
        field: without its weights.
        layout: of the state.
        grid: times and steps.
        solver: the method.
        weights: of all depths.
        slot: those that the present step reads, where weights change with depth (see `at`).
    """

    field: Field
    layout: Layout
    grid: Grid
    solver: AnySolver
    weights: Weights
    slot: Slot | None = None

    def at(self, n: Any) -> Run:
        """The run at step n, whose weights are read in place: for loops that JAX does not differentiate."""
        return self.reading(self.field.slot(self.weights, n, self.grid.steps))

    def reading(self, slot: Slot | None) -> Run:
        """The run at the step that reads this slot."""
        return dataclasses.replace(self, slot=slot)

    def increment(self, n: Any, y: Leaves, *, reverse: bool = False) -> Leaves:
        """`D_n(y)`, or the increment of one step of size -h from the end of step n."""
        tableau = self.solver.tableau
        places = positions(tableau, reverse)

        def stage(i: int, at: Leaves) -> Leaves:
            return self.slope(n, places[i], at)

        return increment(tableau, stage, y, -self.grid.h if reverse else self.grid.h)

    def slope(self, n: Any, position: float, y: Leaves) -> Leaves:
        """The field at `position` of step n."""
        t = jnp.asarray(self.grid.time(jnp.asarray(n, self.layout.time), position))
        return self.layout.slope(self.field(t, self.layout.call(y), position, self.slot, self.weights), y)


def loop(run: Run, y0: Leaves) -> Leaves:
    """All steps from y0, to be differentiated by JAX: the leaves at `grid.kept`."""
    grid = run.grid
    slots = run.field.slots(run.weights, grid.steps)

    def body(state: tuple[Any, Carried], slot: Slot | None) -> tuple[tuple[Any, Carried], Leaves | None]:
        n, carried = state
        carried = _step(run.reading(slot), n, carried)
        return (n + 1, carried), None if grid.final_only else carried[0]

    carried: Carried = (y0,)
    if isinstance(run.solver, ReversibleSolver):
        carried = run.solver.start(run.reading(jax.tree.map(lambda leaf: leaf[0], slots)), grid.h, y0)
    (_, carried), emitted = lax.scan(body, (jnp.int32(0), carried), slots, length=grid.steps)
    if emitted is None:
        return tuple(leaf[None] for leaf in carried[0])
    picks = jnp.asarray(grid.kept)
    return tuple(jnp.concatenate([first[None], rest])[picks] for first, rest in zip(y0, emitted, strict=True))


def loop_in_place(run: Run, y0: Leaves, also: Sequence[int] = ()) -> tuple[Leaves, Leaves, Carried]:
    """The same without a derivative: weights are read and states written in place, so that no memory grows with N.

    Args:
        run: what to solve.
        y0: the state at t0.
        also: indices below N, in order, of further states that are wanted.

    Returns:
        The leaves at `grid.kept`, those at `also` (empty where nothing is), and what the way back starts from: y(t1),
        or what a reversible solver keeps of what it carries.
    """
    grid, solver = run.grid, run.solver
    rows = None if grid.final_only else kept_rows(grid.kept, grid.steps)
    also_rows = kept_rows(also, grid.steps)

    def body(state: Any, _: None) -> tuple[Any, None]:
        n, carried, ys, states = state
        states = write(states, also_rows[n], carried[0])
        carried = _step(run.at(n), n, carried)
        return (n + 1, carried, ys if rows is None else write(ys, rows[n + 1], carried[0]), states), None

    ys = () if rows is None else write(_empty(y0, len(grid.kept)), rows[0], y0)
    states = _empty(y0, len(also)) if also else ()
    carried = solver.start(run.at(jnp.int32(0)), grid.h, y0) if isinstance(solver, ReversibleSolver) else (y0,)
    (_, carried, ys, states), _ = lax.scan(body, (jnp.int32(0), carried, ys, states), None, length=grid.steps)
    if rows is None:
        ys = tuple(leaf[None] for leaf in carried[0])
    return ys, states, solver.kept(carried) if isinstance(solver, ReversibleSolver) else carried


def kept_rows(kept: Sequence[int], steps: int) -> Array:
    """For each index of a grid of `steps` steps, its row among the kept ones; one past the last where it is none."""
    rows = [len(kept)] * (steps + 1)
    for row, n in enumerate(kept):
        rows[n] = row
    return jnp.asarray(rows, jnp.int32)


def write(buffer: Leaves, row: Any, y: Leaves) -> Leaves:
    """A buffer of states with row `row` replaced, in place; as it was where there is no such row."""

    def put(kept: Array, leaf: Array) -> Array:
        before = lax.dynamic_index_in_dim(kept, row, keepdims=False)
        return lax.dynamic_update_index_in_dim(kept, jnp.where(row < kept.shape[0], leaf, before), row, 0)

    return tuple(put(kept, leaf) for kept, leaf in zip(buffer, y, strict=True)) if buffer else ()


def read(buffer: Leaves, row: Any) -> Leaves:
    """Row `row` of a buffer of states."""
    return tuple(lax.dynamic_index_in_dim(kept, row, keepdims=False) for kept in buffer)


Solve = Callable[[Run, Leaves, Array], Leaves]
"""A gradient method: from the state at t0 to the leaves at `grid.kept`, differentiable in its way.

The last argument is the probe: a real zero whose "gradient" is the reconstruction residual, for the methods that have
one. It is how a value that is known in the backward pass alone gets out of it.
"""


def _step(run: Run, n: Any, carried: Carried) -> Carried:
    if isinstance(run.solver, ReversibleSolver):
        return run.solver.step(run, n, run.grid.h, run.grid.steps, carried)
    return (add(carried[0], run.increment(n, carried[0])),)


def _empty(y: Leaves, count: int) -> Leaves:
    return tuple(jnp.zeros((count, *leaf.shape), leaf.dtype) for leaf in y)
