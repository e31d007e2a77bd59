"""Checkpointing: some states are kept, and what lies between them is computed again.

Chen et al. 2016 (segments); Griewank and Walther 2000 (the optimal schedule, `odenet._gradients.revolve`).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from odenet import Checkpoint, Problem, ReversibleSolver, Stats
from odenet.kit import Alarm, add, alarm, schedule, subtract
from odenet_jax.field.field import Slot, Weights
from odenet_jax.field.jumps import against
from odenet_jax.field.replay import BlockContext
from odenet_jax.field.state import Leaves
from odenet_jax.gradients.accepted_steps import ROWS, BackwardPass, RecomputedStates
from odenet_jax.gradients.adjoint import (
    Adjoint,
    OutputCotangents,
    SavedStates,
    Sums,
    collect,
    descend,
    none_unread,
    vjp,
)
from odenet_jax.gradients.certificate import certify, relative
from odenet_jax.steps.fixed import Run, Solve, loop, read, write


class Recomputation(Adjoint):
    """Back from one kept state to the one before. Programs do not grow with N: loops read the schedule from tables."""

    from_end = False

    def __init__(self, method: Checkpoint, stats: Stats, alarm: Alarm | None) -> None:
        super().__init__(stats, alarm)
        self.method = method

    def keeps(self, run: Run) -> Sequence[int]:
        steps = run.grid.steps
        if self.method.states is not None:
            return schedule(steps, self.method.states).forward
        return [first + i * length for length, first, count in self.parts(steps) for i in range(count)]

    def parts(self, steps: int) -> list[tuple[int, int, int]]:
        """The segments by length: length, first step, how many there are."""
        return _by_length(self.method.parts(steps))

    def discover(self, run: Run, y0: Leaves) -> None:
        self.method = resolved(self.method, run, y0)
        self.from_end = self.from_end or run.field.calls_host()

    def back(
        self, run: Run, saved: SavedStates, gradients: OutputCotangents, sums: Sums
    ) -> tuple[Leaves, Sums, Array, Any]:
        carry = (gradients.end(), sums)
        if self.method.states is not None:
            carry = self.turn(run, saved.states, gradients, carry)
        else:
            parts = self.parts(run.grid.steps)
            total = sum(count for _, _, count in parts)
            for length, first, count in reversed(parts):
                total -= count

                def step(i: Any, carry: Any, length: int = length, start: int = first - total * length) -> Any:
                    return self.segment(run, start + i * length, length, read(saved.states, i), gradients, carry)

                carry = descend(step, total + count, count, carry)
        g, sums = carry
        if saved.end is None:
            return g, sums, jnp.zeros((), run.layout.time), None
        start, (end,) = tuple(leaf[-1] for leaf in saved.states), saved.end
        missed = self.missed(run, self.keeps(run)[-1], start, end)
        return g, sums, missed, missed

    @staticmethod
    def missed(run: Run, first: int, start: Leaves, end: Leaves) -> Array:
        """By how much of what they added the steps from the last kept state on miss y(t1) when they run again.

        Asked of a field that calls the host: nothing else can make it another one.
        """
        y = lax.fori_loop(first, run.grid.steps, lambda n, y: add(y, run.at(n).increment(n, y)), start)
        error = relative(subtract(y, end), against(subtract(end, start), end)).astype(run.layout.time)
        return none_unread(run, error)

    def settled(self, gradients: Any, trouble: Any) -> Any:
        """What the backward pass found; that a field was another one when its steps ran again is said."""
        if trouble is None:
            return gradients
        steps = self.stats.steps
        return certify(self.stats, self.alarm, steps, (trouble, jnp.int32(steps - 1)), gradients, "run again")

    def turn(self, run: Run, states: Leaves, gradients: OutputCotangents, carry: Any) -> Any:
        """All turns of the optimal schedule, the kept states in a buffer with one row more than states may be kept."""
        turns, keeps = table(run.grid.steps, self.method.states or 1)
        index, row = jnp.asarray(keeps.index), jnp.asarray(keeps.row)
        nowhere = states[0].shape[0]

        def body(state: Any, turn: Turns) -> tuple[Any, None]:
            states, carry = state

            def forward(n: Any, way: Any) -> Any:
                y, states, next_kept = way
                y = add(y, run.at(n).increment(n, y))
                hit = (next_kept < turn.end) & (index[next_kept] == n + 1)
                states = write(states, jnp.where(hit, row[next_kept], nowhere), y)
                return y, states, next_kept + hit.astype(jnp.int32)

            way = (read(states, turn.row), states, turn.begin)
            y, states, _ = lax.fori_loop(turn.origin, turn.step, forward, way)
            return (states, self.segment(run, turn.step, 1, y, gradients, carry)), None

        return lax.scan(body, (states, carry), jax.tree.map(jnp.asarray, turns))[0][1]

    def segment(self, run: Run, first: Any, length: int, y: Leaves, gradients: OutputCotangents, carry: Any) -> Any:
        """The backward pass through steps first, ..., first + length - 1, from the state y at their start.

        Gradients are added in the order of backprop.
        """
        g, sums = carry
        if length == 1:
            here, indices, met = run.at(first), first, None
        else:
            indices = first + jnp.arange(length, dtype=jnp.int32)
            here = run.reading(run.field.rows(run.weights, indices, run.grid.steps))
            met = jax.vmap(gradients.at)(indices + 1)
            met = met and tuple(leaf.at[-1].set(0) for leaf in met)  # at the end it has been met

        def forward(run: Run, y: Leaves) -> Leaves:
            def step(y: Leaves, place: tuple[Any, Slot | None]) -> tuple[Leaves, Leaves]:
                n, slot = place
                y = add(y, run.reading(slot).increment(n, y))
                return y, () if met is None else y

            end, ys = step(y, (first, run.slot)) if length == 1 else lax.scan(step, y, (indices, run.slot))
            return (*end, *ys)

        _, pull = vjp(here, forward, y)
        g, *by_reads = pull((*g, *(met or ())))
        return gradients.join(first, g), collect(here, indices, sums, by_reads)


@dataclass(frozen=True)
class Turns:
    """`odenet._gradients.revolve.Turn` for all turns: which step, the index and the row of the state to start from, and
    which of `Keeps` are on the way, from `begin` to before `end`."""

    step: Any
    origin: Any
    row: Any
    begin: Any
    end: Any


@dataclass(frozen=True)
class Keeps:
    """States to be kept on the ways of the turns, one after another: their index, and the row they go to."""

    index: Any
    row: Any


jax.tree_util.register_dataclass(Turns, ["step", "origin", "row", "begin", "end"], [])


def table(steps: int, states: int) -> tuple[Turns, Keeps]:
    """The optimal schedule as arrays of integers, O(steps) of them."""
    plan = schedule(steps, states)
    rows = {n: row for row, n in enumerate(plan.forward)}
    free: list[int] = []
    turns, keeps = [], []
    for turn in plan.turns:
        begin = len(keeps)
        for n in turn.keep:
            rows[n] = free.pop()
            keeps.append((n, rows[n]))
        turns.append((turn.step, turn.origin, rows[turn.origin], begin, len(keeps)))
        if turn.step in rows:
            free.append(rows.pop(turn.step))
    keeps.append((steps + 1, 0))  # never reached: so that there is one to look at
    return Turns(*np.array(turns, np.int32).T), Keeps(*np.array(keeps, np.int32).T)


def _by_length(parts: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Those of `Checkpoint.parts` by length, the longer first: each length, the first step of all, and how many.

    One loop runs all segments of one length.
    """
    lengths = collections.Counter(end - first for first, end in parts)
    groups, first = [], 0
    for length in sorted(lengths, reverse=True):
        groups.append((length, first, lengths[length]))
        first += length * lengths[length]
    return groups


def resolved(method: Checkpoint, run: Run, y0: Leaves) -> Checkpoint:
    """The method with `memory` turned into how many states fit beside what the VJP of step 0 keeps.

    Under `jax.vmap` both are those of one row.
    """
    if method.memory is None:
        return method
    here = run.at(jnp.int32(0)).with_state(run.replay and run.replay.context.state)

    def recorded(y: Leaves, weights: Weights, slot: Slot | None) -> list[Array]:
        there = dataclasses.replace(here, weights=weights, slot=slot)
        return jax.tree.leaves(vjp(there, lambda run, y: run.increment(0, y), y)[1])

    program = jax.make_jaxpr(recorded)(y0, here.weights, here.slot).jaxpr
    outputs = {id(out): out.aval for out in program.outvars} if program.eqns else {}
    for variable in program.invars:  # there anyway
        outputs.pop(id(variable), None)
    stages = sum(aval.size * aval.dtype.itemsize for aval in outputs.values())
    return Checkpoint(states=method.affordable(sum(leaf.nbytes for leaf in y0), stages))


def fixed(problem: Problem, stats: Stats) -> Solve:
    """A solve in equal steps whose gradient is by checkpointing."""
    method = problem.gradient
    assert isinstance(method, Checkpoint)
    if isinstance(problem.solver, ReversibleSolver):  # carries more than y: JAX's own recomputation keeps all of it

        def solve(run: Run, y0: Leaves, probe: Array) -> tuple[Leaves, BlockContext | None]:
            return loop(run.hoisted(y0), y0, _by_length(method.parts(run.grid.steps)))

        return solve
    return Recomputation(method, stats, alarm(problem.field)).solve


def adaptive(problem: Problem, stats: Stats) -> BackwardPass:
    """The backward pass of checkpointing over accepted steps."""
    method = problem.gradient
    assert isinstance(method, Checkpoint)
    if method.memory is not None:
        return RecomputedStates(lambda run, y0: resolved(method, run, y0).states or 1)
    return RecomputedStates(method.states or method.segments or ROWS)
