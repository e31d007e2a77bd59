"""The scan over N equal steps.

Over 250 lines: the scan, and the same scan with outputs written in place, share what they carry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from odenet import Grid, ReversibleSolver
from odenet.kit import StagedSolver, add, increment, positions
from odenet_jax.field.field import Field, Slot, Weights
from odenet_jax.field.fingerprint import described
from odenet_jax.field.replay import BlockContext, Replay, after
from odenet_jax.field.state import Layout, Leaves
from odenet_jax.field.varying import alike
from odenet_jax.steps.clock import later, parts, require_fine, require_span
from odenet_jax.steps.whole_numbers import of_samples, straight_through

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
        replay: what blocks are told beside their input; None where that is nothing.
        again: whether this is the backward pass, which runs evaluations of the forward pass again.
        unread: of a backward pass, whether the loss reads no state of the solve, so that all its gradients are zero.
    """

    field: Field
    layout: Layout
    grid: Grid
    solver: StagedSolver
    weights: Weights
    slot: Slot | None = None
    replay: Replay | None = None
    again: bool = False
    unread: Array | None = None

    def key(self, *more: Any) -> Hashable | None:
        """What its programs are kept by (see `odenet_jax.field.programs`), with what else these depend on."""
        if self.field.key is None:
            return None
        layout = self.layout
        fingerprint = described(self.grid, self.solver, *more)
        if fingerprint is None:
            return None
        return fingerprint, self.field.key, (layout.structure, layout.dtypes, layout.carried, layout.time)

    def hoisted(self, y0: Leaves) -> Run:
        """The run with its field hoisted, see `Field.hoist`."""
        t = jnp.asarray(self.grid.t0, self.layout.time)
        example = () if self.replay is None else self.replay.context.example()
        field, weights = self.field.hoist(self.weights, t, self.layout.call(y0), *example)
        return dataclasses.replace(self, field=field, weights=weights)

    def require_times(self, y0: Leaves) -> None:
        """Raises GridError where the number type cannot tell the grid's times, and the field reads them."""
        grid, kind = self.grid, self.layout.time
        require_span(grid.t0, grid.t1, kind, least=grid.h)

        def field(t: Array) -> Any:
            context = () if self.replay is None else self.replay.context.example()
            slot = self.field.slot(self.weights, jnp.int32(0), grid.steps)
            return self.field(t, self.layout.call(y0), 0.0, slot, self.weights, *context)

        require_fine(grid.t0, grid.t1, kind, ("field", field, (jnp.zeros((), kind),)))

    def at(self, n: Any) -> Run:
        """The run at step n, whose weights are read in place: for loops that JAX does not differentiate."""
        return self.reading(self.field.slot(self.weights, n, self.grid.steps))

    def reading(self, slot: Slot | None) -> Run:
        """The run at the step that reads this slot."""
        return dataclasses.replace(self, slot=slot)

    def with_state(self, state: Any) -> Run:
        """The run from where blocks have this state: its `replay` is left with the state after what is run."""
        replay = None if self.replay is None else Replay(self.replay.context, state)
        return dataclasses.replace(self, replay=replay)

    def increment(self, n: Any, y: Leaves, *, reverse: bool = False) -> Leaves:
        """`D_n(y)`, or the increment of one step of size -h from the end of step n."""
        tableau = self.solver.increments
        places = positions(tableau, reverse)

        def stage(i: int, at: Leaves) -> Leaves:
            return self.slope(n, places[i], at, reverse=reverse, rank=i)

        return increment(tableau, stage, y, -self.grid.h if reverse else self.grid.h)

    def slope(self, n: Any, position: float, y: Leaves, *, reverse: bool = False, rank: int | None = None) -> Leaves:
        """The field at `position` of step n.

        Args:
            n, position, y: where.
            reverse: whether in a reversed step.
            rank: which of the step's evaluations it is, where the position does not tell.
        """
        kind, (t0, t1) = self.layout.time, (self.grid.t0, self.grid.t1)
        offset = (t1 - t0) * ((jnp.asarray(n, kind) + position) / self.grid.steps)
        t = jnp.asarray(later(parts(t0, kind), offset))

        def evaluate(*context: Any) -> Any:
            return self.field(t, self.layout.call(y), position, self.slot, self.weights, *context)

        place = (n, position, reverse, rank)
        if self.replay is None:
            value = evaluate()
        elif self.again:
            value = self.replay.again(place, self.solver.increments.step_stages, self.grid.steps, evaluate)
        else:
            value = self.replay.first(place, evaluate)
        return self.layout.slope(value, y)

    def rounded(self, y: Leaves, shift: float = 0.0) -> Leaves:
        """Whole numbers next to y + shift (`odenet.kit.ReversibleSolver`); gradients go straight through."""
        return tuple(straight_through(leaf, shift) for leaf in y)

    def of_samples(self, number: Callable[[Any], Any], y: Leaves) -> Leaves:
        """For each leaf the numbers of its samples, as `odenet.kit.Forth` has it."""
        return tuple(of_samples(number, leaf) for leaf in y)


def loop(run: Run, y0: Leaves, segments: Sequence[tuple[int, int, int]] = ()) -> tuple[Leaves, BlockContext | None]:
    """All steps from y0, to be differentiated by JAX: the leaves at `grid.kept`, and what blocks are told after it.

    Args:
        run: what to solve.
        y0: the state at t0.
        segments: those of which JAX is to keep nothing but where they start, by length: each length, the first step of
            all of that length, and how many there are. None where it is to keep everything.
    """
    grid = run.grid
    slots = run.field.slots(run.weights, grid.steps)

    def body(carry: LoopCarry, slot: Slot | None) -> tuple[LoopCarry, Leaves | None]:
        carry, _ = _step(run.reading(slot), carry)
        return carry, None if grid.final_only else carry[1][0]

    start, _ = _start(run, lambda: jax.tree.map(lambda leaf: leaf[0], slots), y0)
    begin = alike(start, run.weights)
    if segments:
        (_, carried, state), emitted = _scan_segments(body, begin, slots, segments)
    else:
        (_, carried, state), emitted = lax.scan(body, begin, slots, length=grid.steps)
    context = run.replay and after(run.replay.context, state)
    if emitted is None:
        return tuple(leaf[None] for leaf in carried[0]), context
    picks = jnp.asarray(grid.kept)
    return tuple(jnp.concatenate([first[None], rest])[picks] for first, rest in zip(y0, emitted, strict=True)), context


def _scan_segments(
    body: Callable[[LoopCarry, Any], tuple[LoopCarry, Leaves | None]],
    carry: LoopCarry,
    slots: Any,
    segments: Sequence[tuple[int, int, int]],
) -> tuple[LoopCarry, Leaves | None]:
    """The scan of a body whose segments are computed again where it is differentiated; see `loop`."""
    parts = []
    for length, first, count in segments:

        def rows(leaf: Array, first: int = first, count: int = count, length: int = length) -> Array:
            return leaf[first : first + count * length].reshape(count, length, *leaf.shape[1:])

        def segment(carry: LoopCarry, slots: Any, length: int = length) -> tuple[LoopCarry, Leaves | None]:
            return lax.scan(body, carry, slots, length=length)

        recomputed = jax.checkpoint(segment, prevent_cse=False)
        carry, emitted = lax.scan(recomputed, carry, jax.tree.map(rows, slots), length=count)
        parts.append(emitted and tuple(leaf.reshape(-1, *leaf.shape[2:]) for leaf in emitted))
    return carry, parts[0] and tuple(jnp.concatenate(column) for column in zip(*parts, strict=True))


class LoopObserver(Protocol):
    """An observer that a loop passes its states to, and that keeps something made of them."""

    from_end: ClassVar[bool]
    """Whether the state at t1 is wanted, too."""

    def start(self, y0: Leaves) -> Any:
        """What the observer carries from step to step, at t0."""
        ...

    def step(self, along: Any, before: Carried, after: Carried) -> tuple[Any, Any]:
        """What the observer carries after a step, and what is kept of the step.

        Args:
            along: what the observer carried before it.
            before, after: what the solver carried before and after it.
        """
        ...


def loop_in_place(
    run: Run, y0: Leaves, also: Sequence[int] = (), beside: LoopObserver | None = None
) -> tuple[Leaves, Leaves, Carried | Any, BlockContext | None]:
    """The same without a derivative: weights are read and states written in place, so that no memory grows with N.

    Args:
        run: what to solve.
        y0: the state at t0.
        also: indices below N, in order, of further states that are wanted.
        beside: what is to be made of the states.

    Returns:
        The leaves at `grid.kept`, those at `also` (empty where nothing is), what the backward pass starts from (y(t1),
        or what a reversible solver keeps of what it carries; with `beside` this where the observer wants it, or
        nothing, what the observer carries in the end, and what it keeps of the steps, stacked), and what blocks are
        told and have read after it.
    """
    grid, solver = run.grid, run.solver
    rows = None if grid.final_only else kept_rows(grid.kept, grid.steps)
    also_rows = kept_rows(also, grid.steps)

    def body(state: Any, _: None) -> tuple[Any, Any]:
        carry, ys, states, along = state
        n, before, row = carry[0], carry[1], None
        states = write(states, also_rows[n], carry[1][0])
        carry, read = _step(run.at(n), carry)
        if beside is not None:
            along, row = beside.step(along, before, carry[1])
        return (carry, ys if rows is None else write(ys, rows[n + 1], carry[1][0]), states, along), (read, row)

    ys = () if rows is None else write(_empty(y0, len(grid.kept)), rows[0], y0)
    states = _empty(y0, len(also)) if also else ()
    start, at_start = _start(run, lambda: run.at(jnp.int32(0)).slot, y0)
    along = None if beside is None else beside.start(y0)
    begin = alike((start, ys, states, along))
    ((_, carried, state), ys, states, along), (in_steps, stacked) = lax.scan(body, begin, None, length=grid.steps)
    if rows is None:
        ys = tuple(leaf[None] for leaf in carried[0])
    end = solver.kept(carried) if isinstance(solver, ReversibleSolver) else carried
    if beside is not None:
        end = end if beside.from_end else (), along, stacked
    return ys, states, end, run.replay and after(run.replay.context, state, at_start, in_steps)


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


Solve = Callable[[Run, Leaves, Array], tuple[Leaves, BlockContext | None]]
"""A gradient method: from the state at t0 to the leaves at `grid.kept`, differentiable in its way, and what blocks are
told after it.

The last argument is the probe: a real zero whose "gradient" is the reconstruction residual, for the methods that have
one. It is how a value that is known in the backward pass alone gets out of it.
"""

LoopCarry = tuple[Any, Carried, Any]
"""Where a loop is: step, what the solver carries, and the state of the blocks."""


def _start(run: Run, slot: Callable[[], Slot | None], y0: Leaves) -> tuple[LoopCarry, list[Any]]:
    """Where a loop begins, and what blocks have read by then."""
    state = run.replay and run.replay.context.state
    if not isinstance(run.solver, ReversibleSolver):
        return (jnp.int32(0), (y0,), state), []
    here = run.reading(slot()).with_state(state)
    with jax.numpy_dtype_promotion("standard"):  # signs of steps are whole numbers, where users may want none to mix
        carried = run.solver.start(here, run.grid.h, y0)
    return (jnp.int32(0), carried, here.replay and here.replay.state), here.replay.read if here.replay else []


def _step(run: Run, carry: LoopCarry) -> tuple[LoopCarry, list[Any]]:
    """One step on, and what blocks have read in it."""
    n, carried, state = carry
    here = run.with_state(state)
    if isinstance(run.solver, ReversibleSolver):
        with jax.numpy_dtype_promotion("standard"):
            carried = run.solver.step(here, n, run.grid.h, run.grid.steps, carried)
    else:
        carried = (add(carried[0], here.increment(n, carried[0])),)
    return (n + 1, carried, here.replay and here.replay.state), here.replay.read if here.replay else []


def _empty(y: Leaves, count: int) -> Leaves:
    return tuple(jnp.broadcast_to(jnp.zeros_like(leaf), (count, *leaf.shape)) for leaf in y)  # sharded like y
