"""The field as diffrax calls it: `vf(t, y, args)`, the args being every array that a gradient goes to."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from odenet_jax.field.field import Field, Slot, Weights
from odenet_jax.field.state import Layout, Leaves


class LayerArguments(NamedTuple):
    """One layer (or interval) of a solve with equal steps.

    Args:
        start: its time.
        slot: its weights; None where all depths share them.
        weights: the others.
    """

    start: Any
    slot: Slot | None
    weights: Weights


def in_layer(field: Field, state_layout: Layout, length: float) -> Any:
    """`vf` on times from 0 to `length`, which is how long a layer takes, with a `LayerArguments` as args."""

    def vf(t: Array, y: Leaves, layer: LayerArguments) -> Leaves:
        return _slope(field, state_layout, layer.start + t, y, layer.slot, layer.weights, t / length if length else 0.0)

    return vf


def over_span(field: Field, state_layout: Layout, ends: tuple[float, ...], sign: int) -> Any:
    """`vf` on times from t0 to t1, with (t0, t1, weights) as args.

    Args:
        field, state_layout: see `odenet_jax`.
        ends: of piecewise layers, in the order of the solve.
        sign: 1 forward in time, -1 backward.
    """
    later = jnp.asarray([sign * end for end in ends], state_layout.time)

    def vf(t: Array, y: Leaves, args: tuple[Array, Array, Weights]) -> Leaves:
        t0, t1, weights = args
        if field.kind == "shared":
            return _slope(field, state_layout, t, y, None, weights, 0.0)
        if field.kind == "piecewise":
            n, position = (later <= sign * t).sum(), 0.0
        else:
            place = (t - t0) / (t1 - t0) * field.intervals
            n = jnp.clip(jax.lax.stop_gradient(place).astype(jnp.int32), 0, field.intervals - 1)
            position = place - n.astype(state_layout.time)
        return _slope(field, state_layout, t, y, field.slot(weights, n, field.intervals), weights, position)

    return vf


def _slope(
    field: Field, state_layout: Layout, t: Array, y: Leaves, slot: Slot | None, weights: Weights, position: Any
) -> Leaves:
    """f with the weights at a position of a layer that, unlike in a scan over steps, is not known when it is traced."""
    if slot is not None:
        mixed = slot.start
        if slot.end is not None:
            mixed = [
                (1 - p) * a + p * b
                for a, b in zip(slot.start, slot.end, strict=True)
                for p in [jnp.asarray(position, a.real.dtype)]
            ]
        weights = Weights(mixed, slot.other, weights.closed, weights.constants)
    return state_layout.slope(field.function(t, state_layout.call(y), weights), y)
