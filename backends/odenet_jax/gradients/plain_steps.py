"""The steps that an adaptive solve accepted, once more as a program that JAX can differentiate as often as one likes.

A loop whose length is known, at most `max_steps`, in chunks that are skipped where no step is left. Their states are
kept, and what lies between them is computed again. Forward mode and second derivatives go this way; gradients do not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from equinox.internal import unvmap_any
from jax import Array, lax
from jax.core import Tracer

from odenet_jax.field.state import Leaves
from odenet_jax.field.varying import alike
from odenet_jax.gradients.accepted_steps import piece
from odenet_jax.steps.accepted import AcceptedRun
from odenet_jax.steps.dense import between
from odenet_jax.steps.record import AdaptiveResult
from odenet_jax.steps.weighted_sum import choose

Gate = Callable[[Any, Any], Any]
"""See `odenet_jax.steps.weighted_sum.gated`."""

Ends = tuple[Leaves, Leaves, Leaves, tuple[Leaves, ...]]
"""The state at the end, those at the kept times, and what dense output reads, as in `Cotangents`."""


def most_steps(result: AdaptiveResult) -> int:
    """The most steps of a program for a solve: a power of two where they are known, so that few are compiled."""
    assert result.record.nodes is not None
    count, most = result.pace.accepted, result.record.nodes.shape[0] - 1
    if isinstance(count, Tracer):
        return most
    return max(1, min(most, 1 << max(int(count) - 1, 0).bit_length()))


def plain_steps(
    run: AcceptedRun, result: AdaptiveResult, y0: Leaves, ts: Array | None, dense: int, gate: Gate, most: int
) -> Ends:
    """The end of the accepted steps from y0, and what lies within them.

    Args:
        run: along the accepted steps.
        result: the solve.
        y0: the state at t0.
        ts: the kept times; None where that is its end alone.
        dense: of how many steps what dense output reads; 0 for none.
        gate: `gated` where cotangents are to go back.
        most: see `most_steps`.
    """
    assert result.record.nodes is not None
    nodes, count, sign = result.record.nodes, result.pace.accepted, run.line.sign
    reached = jnp.arange(nodes.shape[0], dtype=jnp.int32) <= count
    inner = jnp.zeros(0, jnp.int32)
    if ts is not None:  # the step that each lies in, -1 for t0 itself
        before = reached & (sign * (nodes - ts[:, None]) < 0)
        inner = jnp.minimum(jnp.sum(before, 1, dtype=jnp.int32), count) - 1
    if result.position is not None:
        inner = jnp.concatenate([inner, count[None] - 1])
    y1, starts, stacked = _loop(run, result, y0, inner, dense, gate, max(most, dense))

    def within(place: tuple[Array, Array, Array, Leaves]) -> Leaves:
        go, n, position, y = place
        here, position, y = _read(gate, go, _standing(run, result, n), position, y)
        assert here.ends is not None
        _, slopes = piece(here, y)
        return between(run.solver.increments, position, y, here.ends[1] - here.ends[0], slopes)

    ys: Leaves = ()
    if ts is not None:
        n = jnp.maximum(inner[: ts.shape[0]], 0)
        a, b = nodes[n], nodes[n + 1]
        position = jnp.clip((ts - a) / jnp.where(b == a, 1, b - a), 0, 1)
        rows = tuple(leaf[: ts.shape[0]] for leaf in starts)
        early = (inner[: ts.shape[0]] < 0) | (jnp.arange(ts.shape[0], dtype=jnp.int32) >= result.outputs)
        states = lax.map(jax.checkpoint(within), (~early, n, position, rows))
        ys = tuple(
            jnp.where(early.reshape(-1, *[1] * first.ndim), first, leaf) for first, leaf in zip(y0, states, strict=True)
        )
        late = jnp.arange(ts.shape[0], dtype=jnp.int32) >= result.outputs
        ys = tuple(jnp.where(late.reshape(-1, *[1] * (leaf.ndim - 1)), lax.stop_gradient(leaf), leaf) for leaf in ys)
    if result.position is not None:
        last = tuple(leaf[-1] for leaf in starts)
        inside = result.position < 1
        y1 = choose(inside, within((inside, jnp.maximum(count - 1, 0), result.position, last)), y1)
    return y1, ys, *stacked


def _standing(run: AcceptedRun, result: AdaptiveResult, n: Any) -> AcceptedRun:
    """The run at accepted step n; at no step at all where none was accepted."""
    assert result.record.nodes is not None
    a, b = result.record.nodes[n], result.record.nodes[n + 1]
    return run.between(a, jnp.where(result.pace.accepted > 0, b, a))


def _read(gate: Gate, go: Array, run: AcceptedRun, *reads: Any) -> tuple[Any, ...]:
    """A run and what a step of it reads, where the step is taken."""
    weights, slot, *others = gate(go, (run.weights, run.slot, *reads))
    return dataclasses.replace(run, weights=weights, slot=slot), *others


def _loop(
    run: AcceptedRun, result: AdaptiveResult, y0: Leaves, inner: Array, dense: int, gate: Gate, most: int
) -> tuple[Leaves, Leaves, Any]:
    """The end, the states at the start of some steps, and what dense output reads."""
    count = result.pace.accepted
    chunk = max(1, math.isqrt(most))

    def step(carry: tuple[Leaves, Leaves], n: Array) -> tuple[tuple[Leaves, Leaves], Any]:
        y, starts = carry
        go = n < count
        # where no step is left: the first one from y0, which is known to be finite but where there is none at all
        here, at = _read(gate, go, _standing(run, result, jnp.where(go, n, 0)), choose(go, y, y0))
        if inner.shape[0]:
            starts = tuple(
                jnp.where((inner == n).reshape(-1, *[1] * leaf.ndim), leaf, start)
                for leaf, start in zip(y, starts, strict=True)
            )
        if not dense:
            return (choose(go, here.advanced(at), y), starts), None
        d, slopes = piece(here, at)
        row = jax.tree.map(lambda leaf: jnp.where(go, leaf, 0), (at, slopes))
        return (choose(go, tuple(a + b for a, b in zip(at, d, strict=True)), y), starts), row

    def nothing(carry: Any, n: Array) -> Any:
        rows = (y0, (y0,) * (run.solver.increments.stages + (not run.solver.increments.fsal)))
        empty = jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.zeros_like(leaf), (n.shape[0], *leaf.shape)), rows)
        return carry, alike(empty, y0) if dense else None

    def some(carry: Any, n: Array) -> Any:
        return lax.scan(jax.checkpoint(step), carry, n)

    def body(carry: Any, n: Array) -> Any:
        return lax.cond(unvmap_any(n[0] < count), jax.checkpoint(some), nothing, carry, n)

    rows = -(-most // chunk)
    starts = tuple(jnp.broadcast_to(leaf, (inner.shape[0], *leaf.shape)) for leaf in y0)
    places = jnp.arange(rows * chunk, dtype=jnp.int32).reshape(rows, chunk)
    (y1, starts), recorded = lax.scan(body, (y0, starts), places)
    if not dense:
        return y1, starts, ((), ())
    return y1, starts, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:dense], recorded)
