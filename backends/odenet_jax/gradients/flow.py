"""The solution close to a time that it is known at, with the derivatives of the ODE's flow."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from odenet import SOLVERS
from odenet_jax.field.state import Leaves
from odenet_jax.field.varying import alike

Slope = Callable[[Array, Any, Any, Any], Any]
"""`slope(t, y, reads, fixed)`: a field as a function of arrays alone, those that may have a derivative and others."""


_TABLEAU = SOLVERS["dopri5"].tableau


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def passing(slope: Slope, t: Array, since: Array, y: Leaves, reads: Any, fixed: Any) -> Leaves:
    """The state at t of the solution that passes y at the time `since`, for t equal to that: y itself.

    Its derivatives are those of a step of dopri5 of size 0, and so those of the ODE up to order 5.
    """
    return y


@passing.defjvp
def _(slope: Slope, primals: Any, tangents: Any) -> tuple[Any, Any]:
    t, since, y, reads, fixed = primals

    def moved(t: Array, since: Array, y: Leaves, reads: Any) -> Leaves:
        return _step(slope, t, since, y, reads, fixed)

    return passing(slope, t, since, y, reads, fixed), jax.jvp(moved, primals[:-1], tangents[:-1])[1]


def _step(slope: Slope, t: Array, since: Array, y: Leaves, reads: Any, fixed: Any) -> Leaves:
    """A step from `since` to t, by a loop over its stages: the field is compiled once for all of them."""
    count = _TABLEAU.step_stages
    rows = [(*row, *(0.0,) * (count - len(row))) for row in (*_TABLEAU.a[:count], _TABLEAU.b[:count])]
    weights, nodes = jnp.asarray(rows, t.dtype), jnp.asarray(_TABLEAU.c[:count], t.dtype)

    def at(row: Array, slopes: Leaves) -> Leaves:
        return tuple(
            leaf + jnp.tensordot(((t - since) * row).astype(leaf.dtype), k, 1)
            for leaf, k in zip(y, slopes, strict=True)
        )

    def stage(slopes: Leaves, place: tuple[Array, Array, Array]) -> tuple[Leaves, None]:
        i, row, node = place
        slope_here = slope(since + node * (t - since), at(row, slopes), reads, fixed)
        return tuple(
            lax.dynamic_update_index_in_dim(k, new, i, 0) for k, new in zip(slopes, slope_here, strict=True)
        ), None

    empty = tuple(jnp.broadcast_to(jnp.zeros_like(leaf), (count, *leaf.shape)) for leaf in y)
    slopes, _ = lax.scan(stage, alike(empty, y), (jnp.arange(count, dtype=jnp.int32), weights[:-1], nodes))
    return at(weights[-1], slopes)


Condition = Callable[[Array, Leaves, Any, Any], Array]
"""`condition(t, y, holds, fixed)`: that of an event as a function of arrays alone."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def meeting(condition: Condition, slope: Slope, t: Array, y: Leaves, reads: Any, holds: Any, fixed: Any) -> Array:
    """The time at which the solution that passes y at t meets a condition, for a t at which it does: t itself.

    Its derivatives are those of the implicit function theorem (Chen, Amos, Nickel 2021), NaN where the condition does
    not change along the solution; the first t is a constant.
    """
    return t


@meeting.defjvp
def _(condition: Condition, slope: Slope, primals: Any, tangents: Any) -> tuple[Array, Array]:
    t, y, reads, holds, fixed = primals
    _, by_y, by_reads, by_holds, _ = tangents
    still, at = lax.stop_gradient(t), meeting(condition, slope, t, y, reads, holds, fixed)

    def value(at: Array, y: Leaves, reads: Any, holds: Any) -> Array:
        return condition(at, passing(slope, at, still, y, reads, fixed[0]), holds, fixed[1])

    # how fast it changes, by the field itself: a tangent of the field's would be asked of rules that have none
    # (jax.custom_vjp), and that of the slope that the field has on the solution is the same, however often
    here = passing(slope, at, still, y, reads, fixed[0])
    along = (jnp.ones_like(at), tuple(slope(at, here, reads, fixed[0])))
    _, rate = jax.jvp(lambda at, y: condition(at, y, holds, fixed[1]), (at, here), along)
    _, change = jax.jvp(lambda *moving: value(at, *moving), (y, reads, holds), (by_y, by_reads, by_holds))
    # where the condition does not change along the solution, as a number that is made of a boolean, no derivative is
    # known; a factor, since the transpose of a choice would drop the NaN
    lost = sum([leaf.real.sum() for leaf in by_y], jnp.zeros((), t.dtype)) * jnp.where(rate == 0, jnp.nan, 0)
    return at, (lost - change / jnp.where(rate == 0, 1, rate)).astype(t.dtype)
