"""How far the continuous adjoint of an adaptive solve is off, by what is known of the states on its way back.

Tolerances bound the error of each backward step, and not how that of the state grows on the way back: where the field
contracts, it grows by what the solution has shrunk. What that means for the gradient is the field's to say: the
derivatives of a linear field are the same at any state. So where a state is known, at t0 and at the times that were
kept, `a^T df/dy` and `a^T df/dw` there are compared with those at what was integrated back in its place. What has
drifted far has another way, too, on which it may meet no kink that the solution met, and at whose end units are as
saturated: `a^T df/dy` is then compared with that half way to the state at t1 as well.

What the steps themselves leave of the costate is added up along the way (`odenet.kit.CostateError`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from equinox.internal import unvmap_any
from jax import Array, lax

from odenet.kit import ALL_OF, FAR, FURTHER, CostateError, CostateStep, LocalError, lasting, subtract
from odenet_jax.field.state import Leaves
from odenet_jax.gradients.compared_steps import magnitude
from odenet_jax.steps.size_control import TRACED
from odenet_jax.steps.weighted_sum import choose

Derivatives = tuple[Leaves, Any]
"""`a^T df/dy`, and the parts of all that a step reads."""


class Compared(NamedTuple):
    """What the difference of derivatives at one state makes: of the costate, relatively; of the weights' gradient."""

    by_state: Array
    by_weights: Array


class WayBack(NamedTuple):
    """What one backward pass comes to know of its error, scalars.

    Args:
        off: so far.
        last, drift: of the state that was compared last, and how far it was off, relatively.
        largest, number: the largest of these, and how many there are.
        since: the time of the known state that was begun from.
        steps: what the steps are off by.
    """

    off: Compared
    last: Compared
    drift: Array
    largest: Array
    number: Array
    since: Array
    steps: CostateError

    @classmethod
    def start(cls, t: Array) -> WayBack:
        """At the end of the forward solve."""
        zero = jnp.zeros_like(t)
        return cls(
            Compared(zero, zero),
            Compared(zero, zero),
            zero,
            zero,
            jnp.int32(0),
            t,
            CostateError(zero, zero, zero, zero),
        )

    def arrived(
        self,
        reached: Any,
        t: Array,
        known: Leaves,
        y: Leaves,
        a: Leaves,
        rtol: Any,
        derivatives: Callable[[], tuple[Derivatives, Derivatives, Leaves]],
        *,
        last: bool = False,
    ) -> WayBack:
        """The same after a time at which the state is known.

        Args:
            reached: whether it is one.
            t: the time.
            known: the state.
            y: the same, integrated back.
            a: the costate there, without what the loss reads there.
            rtol: relative tolerance.
            derivatives: of the field with this costate, at the state that is known and the one integrated back; and
                half way to the state at t1, by the state alone.
            last: whether this is t0.
        """
        kind = t.dtype
        drift = share_of(magnitude(subtract(y, known), kind), magnitude(known, kind))
        reached &= drift != 0
        closely = reached & (last | (self.number < ALL_OF) | ~(drift <= FURTHER * self.largest))
        eps = max([float(jnp.finfo(leaf.dtype).eps) for leaf in y], default=0.0)
        least = jnp.maximum(jnp.asarray(rtol, kind), eps)
        span = jnp.abs(t - self.since) * lasting(
            jnp.clip(drift, jnp.finfo(kind).tiny, jnp.finfo(kind).max), least, jnp.log, TRACED
        )

        def compare() -> Compared:
            (exact, exact_parts), (rebuilt, parts), half = derivatives()
            off, off_half = (magnitude(subtract(other, exact), kind) for other in (rebuilt, half))
            off_half = jnp.where(drift > FAR, jnp.minimum(drift, 1) * off_half, 0)
            by_state = share_of(jnp.maximum(off, off_half), magnitude(a, kind))
            by_weights = magnitude(jax.tree.map(jnp.subtract, parts, exact_parts), kind)
            return Compared(span * by_state, span * by_weights)

        def as_sensitive() -> Compared:
            share = jnp.where(self.drift > 0, drift / jnp.where(self.drift > 0, self.drift, 1), 0)
            return Compared(share * self.last.by_state, share * self.last.by_weights)

        # of rows of a jax.vmap, as long as none needs it
        compared = compare() if last else lax.cond(unvmap_any(closely), compare, as_sensitive)
        new = choose(closely, compared, as_sensitive())
        added = Compared(*(total + part for total, part in zip(self.off, new, strict=True)))
        return WayBack(
            choose(reached, added, self.off),
            choose(closely, new, self.last),
            jnp.where(closely, drift, self.drift),
            jnp.where(closely, jnp.maximum(drift, self.largest), self.largest),
            self.number + closely.astype(jnp.int32),
            jnp.where(reached, t, self.since),
            self.steps,
        )

    def step(
        self, accepted: Array, h: Array, error: Leaves, ends: tuple[Leaves, Leaves], slopes: Any, method: LocalError
    ) -> WayBack:
        """The same after a step that was tried.

        Args:
            accepted: whether it was taken.
            h: its size.
            error: the estimate of its error in the costate.
            ends: the costate at its ends.
            slopes: those of the costate, of the first and the last stage.
            method: of the steps.
        """
        kind = self.since.dtype
        sizes = [magnitude(leaves, kind) for leaves in (*ends, *slopes, error)]
        steps = self.steps.then(CostateStep(jnp.abs(h).astype(kind), *sizes), method, TRACED)
        return self._replace(steps=choose(accepted, steps, self.steps))

    def certificate(self, weights: Any, *, by_y0: bool) -> Array:
        """The relative error of the gradient.

        Args:
            weights: their gradients.
            by_y0: whether that of y0 is asked for.
        """
        by_weights = share_of(self.off.by_weights, magnitude(weights, self.since.dtype))
        by_weights = jnp.maximum(by_weights, self.steps.of_weights(TRACED))
        return jnp.maximum(by_weights, jnp.maximum(self.off.by_state, self.steps.off)) if by_y0 else by_weights


def share_of(off: Array, of: Array) -> Array:
    """How large an error is beside what it is of; none is none, of whatever it is."""
    return jnp.where(off == 0, jnp.zeros_like(off), off / jnp.where(of == 0, jnp.finfo(of.dtype).tiny, of))
