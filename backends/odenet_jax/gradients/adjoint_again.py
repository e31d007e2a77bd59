"""The continuous adjoint as a solve like any other, which can be differentiated again: what drop-ins need of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from odenet.kit import add
from odenet_jax.field.state import Leaves
from odenet_jax.gradients.flow import Slope
from odenet_jax.steps.times import Times

Resolve = Callable[[Any, Any, Any, Array, Array], Any]
"""`resolve(field, state, weights, t0, t1)`: the state at t1, differentiable as what is differentiated here."""


def adjoint_again(
    resolve: Resolve, slope: Slope, of: Any, fixed: Any, times: Any, y0: Leaves, ends: Any, gradients: Any
) -> tuple[Leaves, Any, Times]:
    """Gradients by y0, weights and times: y, its adjoint and the weights' gradient solved backward, time by time.

    Args:
        resolve: solves.
        slope, of, fixed: the field, its weights and what else it reads.
        times: t0, t1 and the kept ones or None.
        y0: the state at t0.
        ends: the state at t1 and the kept ones.
        gradients: of the loss by these.
    """
    (t0, t1, ts), (y1, ys), (g1, gs) = times, ends, gradients

    def augmented(t: Array, state: Any, of: Any) -> Any:
        y, a, _ = state
        rate, pull = jax.vjp(lambda y, of: slope(t, y, of, fixed), y, of)
        return rate, *jax.tree.map(jnp.negative, pull(a))

    def back(late: Array, early: Array, y: Leaves, a: Leaves, sums: Any) -> tuple[Leaves, Any]:
        _, a, sums = resolve(augmented, (y, a, sums), of, late, early)
        return a, sums

    def along(t: Array, y: Leaves, g: Leaves) -> Array:
        pairs = zip(g, slope(t, y, of, fixed), strict=True)
        return jnp.stack([jnp.sum(jnp.real(a * k)).astype(t.dtype) for a, k in pairs]).sum()

    a, sums, of_ts = g1, jax.tree.map(jnp.zeros_like, of), None
    if ts is None:
        a, sums = back(t1, t0, y1, a, sums)
    else:
        a, sums = back(t1, ts[-1], y1, a, sums)

        def interval(carry: Any, place: Any) -> tuple[Any, Array]:
            a, sums = carry
            t, before, y, g = place
            return back(t, before, y, add(a, g), sums), along(t, y, g)

        before = jnp.concatenate([t0[None], ts[:-1]])
        (a, sums), of_ts = lax.scan(interval, (a, sums), (ts, before, ys, gs), reverse=True)
    return a, sums, Times(-along(t0, y0, a), along(t1, y1, g1), of_ts)
