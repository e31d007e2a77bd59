"""Dense output: the solution between the ends of steps, and where a condition on it changes sign.

Over 250 lines: the interpolant, and the search for a root of a condition on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from odenet import Event, InputError
from odenet.kit import Tableau, interpolant, shown
from odenet_jax.field.state import Layout, Leaves
from odenet_jax.field.varying import alike
from odenet_jax.steps.clock import Clock, Parts, beyond, roundings, since, spelled, still
from odenet_jax.steps.weighted_sum import choose, weigh_leaves


def between(tableau: Tableau, position: Array, y: Leaves, h: Array, slopes: Sequence[Leaves]) -> Leaves:
    """The state at a position in [0, 1] of a step.

    Args:
        tableau: the method.
        position: where.
        y, h: the state at the start, and the step size.
        slopes: of all stages, and the slope at the end.
    """
    return weigh_leaves(y, h, interpolant(tableau).weights(position), slopes)


def slope_between(tableau: Tableau, position: Array, slopes: Sequence[Leaves]) -> Leaves:
    """The derivative by time of `between`."""
    one = jnp.ones_like(position)
    weights = [
        None if not any(row) else jax.jvp(lambda p, i=i: interpolant(tableau).weights(p)[i], (position,), (one,))[1]
        for i, row in enumerate(interpolant(tableau).coefficients)
    ]
    return weigh_leaves(None, one, weights, slopes)


@dataclass(frozen=True)
class Dense:
    """The solution at any time of a solve: what `Solution.at` evaluates.

    Args:
        origin: the parts of t0, see `odenet_jax.steps.clock`.
        nodes: the times of the steps since t0, in a buffer of more entries.
        steps: how many there are.
        end: where the solution ends, in the last step, since t0.
        y: states at the start of each step, stacked.
        slopes: those that dense output reads, stacked.
        y1: the state at the last node.
        tableau: the method.
        structure, dtypes: of the state, see `Layout`.
        reached: `odenet_jax.gradients.unreached.reached`.
    """

    origin: Parts
    nodes: Array
    steps: Array
    end: Array
    y: Leaves
    slopes: tuple[Leaves, ...]
    y1: Leaves
    tableau: Tableau
    structure: Any
    dtypes: tuple[Any, ...]
    reached: Callable[..., Any]

    def __call__(self, t: Any) -> Any:
        """The tree of the state at times t, whose shape leads that of the leaves; NaN outside of a traced solve.

        Raises:
            InputError: no real times; or a time outside of the solve, or NaN, where times are known.
        """
        if self.nodes.ndim > 1:
            raise InputError("Solution.at of several solves", "one solve", "jax.vmap a function that calls at")
        try:
            if hasattr(t, "dtype") and jnp.iscomplexobj(t):  # NumPy would drop the imaginary part
                raise TypeError("complex times")
            times = jnp.asarray(since(t, self.origin, self.nodes.dtype))
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"Solution.at({shown(t)})", "a real number, or an array of them") from error
        outside = beyond(times, self.end, roundings(t, times, self.origin))
        if not isinstance(outside, Tracer) and bool(outside.any()):
            first, last = (spelled(self.origin, still(s)) for s in (self.nodes[0], self.end))
            t = np.asarray(still(t)).tolist()
            remedy = "event_t is NaN where no event has been met" if bool(jnp.isnan(times).any()) else ""
            raise InputError(f"Solution.at({t})", f"times between {first} and {last}", remedy)
        inside = jnp.where(outside, self.nodes[0], times)  # what is not taken has no derivative that is NaN
        states = jax.vmap(self._at)(inside.reshape(-1))
        states = self.reached(~outside.reshape(-1), states, (times, self.y, self.slopes, self.y1))
        leaves = [leaf.reshape(*times.shape, *leaf.shape[1:]) for leaf in states]
        leaves = [leaf.astype(kind) for leaf, kind in zip(leaves, self.dtypes, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)

    def _at(self, t: Array) -> Leaves:
        sign = jnp.where(self.end >= self.nodes[0], 1, -1)
        met = (sign * (self.nodes - t) <= 0) & (jnp.arange(self.nodes.shape[0], dtype=jnp.int32) < self.steps)
        n = jnp.maximum(jnp.sum(met, dtype=jnp.int32) - 1, 0)
        y, *slopes = (tuple(leaf[n] for leaf in buffer) for buffer in (self.y, *self.slopes))
        h = self.nodes[n + 1] - self.nodes[n]
        place = (t - self.nodes[n]) / jnp.where(h == 0, 1, h)
        # kept within the step, at whose ends clip has half a derivative or none
        position = place + lax.stop_gradient(jnp.clip(place, 0, 1) - place)
        state = between(self.tableau, position, y, h, slopes)
        at_end = (n + 1 >= self.steps) & (sign * (t - self.nodes[self.steps]) >= 0)
        # y1 has the derivative of the polynomial by the position, and by nothing else
        still = between(self.tableau, lax.stop_gradient(position), y, h, slopes)
        ended = tuple(last + (a - b) for last, a, b in zip(self.y1, state, still, strict=True))
        return choose(at_end, ended, state)


jax.tree_util.register_dataclass(
    Dense, ["origin", "nodes", "steps", "end", "y", "slopes", "y1"], ["tableau", "structure", "dtypes", "reached"]
)


class EventBracket(NamedTuple):
    """What was seen of a condition along a step.

    Args:
        before: the sign of each entry before the part in which the first of them changed.
        low, high: positions in the step at which that part begins and ends.
        happened: the entries that changed in it.
        undefined: whether an entry was NaN before that.
    """

    before: Array
    low: Array
    high: Array
    happened: Array
    undefined: Array


@dataclass(frozen=True)
class Watch:
    """Looks for the first change of an event's condition, see `odenet.Event`.

    Args:
        event: with the condition.
        layout: of the state.
        clock: from the times of the solve to those that the condition is told.
    """

    event: Event
    layout: Layout
    clock: Clock

    def value(self, t: Array, y: Leaves) -> Array:
        """The condition at a time as it is told, shape (entries,): numbers or booleans.

        Raises:
            InputError: it is neither.
        """
        value = self.event.condition(t, self.layout.call(y))
        try:
            entries = jnp.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"an event's condition returned a {type(value).__name__} ({error})", _ALLOWED) from error
        real = any(jnp.issubdtype(entries.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating))
        if not real or not entries.size:
            raise InputError(f"an event's condition of shape {entries.shape} and {entries.dtype}", _ALLOWED)
        return entries.reshape(-1)

    def signs(self, t: Array, y: Leaves, before: Array | None = None) -> Array:
        """Of the condition at a time since t0, 1 and -1 for true and false; those before where it is zero or NaN.

        One that has no sign yet, and is zero once more, is at rest (see `odenet.kit.flag`).
        """
        value = self.value(self.clock.time(t), y)
        up, down = (value, ~value) if value.dtype == bool else (value > 0, value < 0)
        now = up.astype(jnp.int32) - down.astype(jnp.int32)
        if before is None:
            return now
        return jnp.where(now == 0, jnp.where((before == 0) & (value == 0), _AT_REST, before), now)

    def undefined(self, t: Array, y: Leaves) -> Array:
        """Whether an entry is NaN at a time since t0."""
        return jnp.isnan(self.value(self.clock.time(t), y)).any()

    def happened(self, t: Array, y: Leaves, before: Array) -> Array:
        """Which entries have changed at a time since t0."""
        value = self.value(self.clock.time(t), y)
        up, down = (value, ~value) if value.dtype == bool else (value >= 0, value <= 0)  # NaN is neither
        rises, falls = (before < 0) & up, (before == 1) & down
        if value.dtype != bool:
            set_now = (before == _AT_REST) & jnp.isfinite(value) & (value == jnp.round(value))  # `odenet.kit.flag`
            rises, falls = rises | (set_now & (value > 0)), falls | (set_now & (value < 0))
        return {0: rises | falls, 1: rises, -1: falls}[self.event.direction]

    def look(self, at: Callable[[Array], Leaves], t: Array, h: Array, y1: Leaves, before: Array) -> EventBracket:
        """What is seen of a step: the first part in which an entry changes; none has happened where none does.

        Args:
            at: the state at a position, by dense output.
            t, h: the step.
            y1: the state at its end.
            before: the signs at its start.
        """
        zero, one = jnp.zeros((), t.dtype), jnp.ones((), t.dtype)
        look = EventBracket(before, zero, zero, jnp.zeros(before.shape, bool), jnp.zeros((), bool))
        look = self._first(at, t, h, look, jnp.asarray(self.event.positions(begun=False), t.dtype))
        return self._seen(look, one, t + h, y1)

    def locate(self, at: Callable[[Array], Leaves], t: Array, h: Array, look: EventBracket) -> EventBracket:
        """Where in a step an entry changes first, `high`, given that one does: by bisection on dense output.

        Args:
            at, t, h: see `look`.
            look: what was seen of the step.
        """
        kind, parts, end = t.dtype, self.event.subintervals, look.high
        # of several changes within that part the first
        finer = look.low + (end - look.low) * (jnp.arange(1, parts, dtype=kind) / parts)
        start = look._replace(high=look.low, happened=jnp.zeros(look.happened.shape, bool))
        look = self._first(at, t, h, start, finer)
        met = look.happened.any()
        look = look._replace(low=jnp.where(met, look.low, look.high), high=jnp.where(met, look.high, end))
        least = float(jnp.finfo(kind).eps) if self.event.tolerance is None else self.event.tolerance / jnp.abs(h)

        def middle(look: EventBracket) -> Array:
            return (look.low + look.high) / 2

        def wide(look: EventBracket) -> Array:
            inner = middle(look)
            return (look.high - look.low > least) & (inner > look.low) & (inner < look.high)

        def halve(look: EventBracket) -> EventBracket:
            inner = middle(look)
            crossed = self.happened(t + inner * h, at(inner), look.before).any()
            return look._replace(low=jnp.where(crossed, look.low, inner), high=jnp.where(crossed, inner, look.high))

        return lax.while_loop(wide, halve, alike(look, t, h))

    def _first(
        self, at: Callable[[Array], Leaves], t: Array, h: Array, look: EventBracket, positions: Array
    ) -> EventBracket:
        """On to each of the positions, until an entry changes."""
        if not positions.shape[0]:
            return look

        def on(i: Any, look: EventBracket) -> EventBracket:
            return self._seen(look, positions[i], t + positions[i] * h, at(positions[i]))

        return lax.fori_loop(0, positions.shape[0], on, alike(look, t, h))

    def _seen(self, look: EventBracket, position: Array, t: Array, y: Leaves) -> EventBracket:
        """A look at one more position; nothing is seen any more once an entry has changed."""
        done = look.happened.any()
        happened = self.happened(t, y, look.before)
        before = jnp.where(happened.any(), look.before, self.signs(t, y, look.before))
        undefined = look.undefined | (self.undefined(t, y) & ~happened.any())
        here = EventBracket(before, look.high, position, happened, undefined)
        return jax.tree.map(lambda one, other: jnp.where(done, one, other), look, here)


@jax.custom_jvp
def without_rate(t: Array, y: Leaves) -> tuple[Array, Leaves]:
    """Time and state of an event whose condition is a boolean: how fast that is approached is not known, NaN."""
    return t, y


@without_rate.defjvp
def _(primals: Any, tangents: Any) -> Any:
    lost = tuple(leaf * jnp.nan for leaf in tangents[1])
    return primals, (jnp.stack([leaf.real.sum() for leaf in lost]).sum().astype(primals[0].dtype), lost)


_AT_REST = 2
_ALLOWED = "a real number or a boolean, or an array of them"
