"""What an adaptive loop keeps on its way: for the backward pass, and for dense output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from odenet_jax.field.state import Leaves
from odenet_jax.steps.accepted import AcceptedRun
from odenet_jax.steps.fixed import write
from odenet_jax.steps.size_control import LoopState

MOST_KEPT = 2**22
"""The most steps whose times are kept, 16 MiB in float32. A controller that allows for more (`max_steps=2**31 - 1`, for
any number of them) would have a buffer of 8 GiB, however few a solve takes."""


@dataclass(frozen=True)
class Keep:
    """What the loop keeps for the backward pass, or for dense output.

    Args:
        nodes: whether the times of the steps.
        rows: how many states.
        every: keep every K-th state after y0. None keeps as many as there is room for, evenly: when it is full, every
            second one goes.
        dense: of how many steps what dense output reads; 0 for none.
        most: the times of how many steps at most (and of `MOST_KEPT`); those of later ones are not kept.
    """

    nodes: bool = False
    rows: int = 0
    every: int | None = None
    dense: int = 0
    most: int = 2**31 - 2


class States(NamedTuple):
    """States kept for the backward pass.

    Args:
        starts: the step that each row is the start of; -1 where it is empty.
        stride: of these.
        rows: the states.
    """

    starts: Array
    stride: Array
    rows: Leaves


class Record(NamedTuple):
    """What the loop keeps; see `Keep`."""

    nodes: Array | None
    states: States | None
    y: Leaves
    slopes: tuple[Leaves, ...]


class AdaptiveResult(NamedTuple):
    """A solve.

    Args:
        ys: states at the kept times; zeros for those that were not reached (see `gradients.unreached`).
        y1: the state where the solve ended, whether at t1, at an event, or where it could not go on.
        last: the state at the end of the last step; y1, but with an event.
        end: the time where it ended.
        pace: where the loop ended.
        outputs: how many of the kept times were reached.
        renewals: evaluations beside those of the steps.
        record: what was kept.
        position, entry, slope: of an event in the last step, which entry of the condition changed its sign, and the
            slope of dense output then.
    """

    ys: Leaves
    y1: Leaves
    last: Leaves
    end: Array
    pace: LoopState
    outputs: Array
    renewals: Array
    record: Record
    position: Array | None
    entry: Array | None
    slope: Leaves


def empty(keep: Keep, run: AcceptedRun, y0: Leaves, max_steps: int) -> Record:
    """The buffers of a record before the first step."""

    def rows(count: int) -> Leaves:
        return tuple(jnp.broadcast_to(jnp.zeros_like(leaf), (count, *leaf.shape)) for leaf in y0)  # sharded like y0

    t0, tableau = run.line.t0, run.solver.increments
    nodes = jnp.zeros(min(max_steps, keep.most, MOST_KEPT) + 1, t0.dtype).at[0].set(t0) if keep.nodes else None
    states = None
    if keep.rows:
        states = States(jnp.full(keep.rows, -1, jnp.int32), jnp.int32(keep.every or 1), rows(keep.rows))
    if not keep.dense:
        return Record(nodes, states, (), ())
    slopes = tuple(rows(keep.dense) for _ in range(tableau.stages + (not tableau.fsal)))
    return Record(nodes, states, rows(keep.dense), slopes)


def kept(keep: Keep, record: Record, accepted: Any, n: Array, t1: Array, y: Leaves, slopes: Any) -> Record:
    """With step n from y to the time t1, if it is accepted."""
    nodes, states = record.nodes, record.states
    if nodes is not None:
        (nodes,) = write((nodes,), jnp.where(accepted, n + 1, nodes.shape[0]), (t1,))
    if states is not None:
        states = _stored(states, accepted, n, y, keep.every)
    if not keep.dense:
        return Record(nodes, states, (), ())
    row = jnp.where(accepted, n, keep.dense)
    buffers = tuple(write(buffer, row, slope) for buffer, slope in zip(record.slopes, slopes, strict=True))
    return Record(nodes, states, write(record.y, row, y), buffers)


def _stored(states: States, accepted: Any, n: Array, y: Leaves, every: int | None) -> States:
    """States with that at the start of step n, where it is to be kept."""
    starts, stride, rows = states
    count = starts.shape[0]
    if every is not None:
        due = accepted & (n % every == 0) & (n > 0)
        row = jnp.where(due, n // every - 1, count)
    else:
        full = ~_free(starts, stride).any()
        stride = jnp.where(accepted & full & (n % stride == 0), 2 * stride, stride)
        free = _free(starts, stride)
        row = jnp.where(accepted & (n % stride == 0) & free.any(), jnp.argmax(free).astype(jnp.int32), count)
    starts = jnp.where(jnp.arange(count, dtype=jnp.int32) == row, n, starts)
    return States(starts, stride, write(rows, row, y))


def _free(starts: Array, stride: Array) -> Array:
    return (starts < 0) | (starts % stride != 0)
