"""Dense output: the solution between the ends of steps, and where a condition on it changes sign."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer

from odenet import Event, InputError
from odenet._solvers.interpolant import interpolant
from odenet._solvers.tableau import Tableau
from odenet_jax.field.state import Layout, Leaves
from odenet_jax.steps.clock import Clock, Parts, beyond, roundings, since, spelled
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
        structure, given: of the state, see `Layout`.
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
    given: tuple[Any, ...]

    def __call__(self, t: Any) -> Any:
        """The tree of the state at times t, whose shape leads that of the leaves; NaN outside of a traced solve.

        Raises:
            InputError: a time outside of the solve, where times are known.
        """
        if self.nodes.ndim > 1:
            raise InputError("Solution.at of several solves", "one solve", "jax.vmap a function that calls at")
        times = jnp.asarray(since(t, self.origin, self.nodes.dtype))
        outside = beyond(times, self.end, roundings(t, times, self.origin))
        if not isinstance(outside, Tracer) and bool(outside.any()):
            first, last = (spelled(self.origin, s) for s in (self.nodes[0], self.end))
            raise InputError(f"Solution.at({t})", f"times between {first} and {last}")
        found = jax.vmap(self._at)(times.reshape(-1), outside.reshape(-1))
        leaves = [leaf.reshape(*times.shape, *leaf.shape[1:]) for leaf in found]
        leaves = [leaf.astype(kind) for leaf, kind in zip(leaves, self.given, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)

    def _at(self, t: Array, outside: Array) -> Leaves:
        sign = jnp.where(self.end >= self.nodes[0], 1, -1)
        met = (sign * (self.nodes - t) <= 0) & (jnp.arange(self.nodes.shape[0]) < self.steps)
        n = jnp.maximum(jnp.sum(met) - 1, 0)
        y, *slopes = (tuple(leaf[n] for leaf in each) for each in (self.y, *self.slopes))
        h = self.nodes[n + 1] - self.nodes[n]
        position = jnp.clip((t - self.nodes[n]) / jnp.where(h == 0, 1, h), 0, 1)
        found = between(self.tableau, position, y, h, slopes)
        at_end = (n + 1 >= self.steps) & (sign * (t - self.nodes[self.steps]) >= 0)
        found = choose(at_end, self.y1, found)
        return choose(outside, tuple(jnp.full_like(leaf, jnp.nan) for leaf in found), found)


jax.tree_util.register_dataclass(
    Dense, ["origin", "nodes", "steps", "end", "y", "slopes", "y1"], ["tableau", "structure", "given"]
)


@dataclass(frozen=True)
class Watch:
    """Looks for the first change of sign of a condition.

    Args:
        event: with the condition.
        layout: of the state.
        clock: from the times of the solve to those that the condition is told.
    """

    event: Event
    layout: Layout
    clock: Clock

    def value(self, t: Array, y: Leaves) -> Array:
        """The condition at a time as it is told, shape (entries,).

        Raises:
            InputError: it is no real number.
        """
        found = jnp.asarray(self.event.condition(t, self.layout.call(y)))
        if jnp.iscomplexobj(found) or not found.size:
            raise InputError(f"an event's condition of shape {found.shape} and {found.dtype}", "real numbers")
        return found.reshape(-1)

    def signs(self, t: Array, y: Leaves, before: Array | None = None) -> Array:
        """Of the condition at a time since t0; those before where it is zero."""
        now = jnp.sign(self.value(self.clock.time(t), y)).astype(jnp.int32)
        return now if before is None else jnp.where(now == 0, before, now)

    def happened(self, t: Array, y: Leaves, before: Array) -> Array:
        """Which entries have changed their sign at a time since t0."""
        now = jnp.sign(self.value(self.clock.time(t), y)).astype(jnp.int32)
        rises, falls = (before < 0) & (now >= 0), (before > 0) & (now <= 0)
        return {0: rises | falls, 1: rises, -1: falls}[self.event.direction]

    def locate(self, at: Callable[[Array], Leaves], t: Array, h: Array, before: Array) -> Array:
        """The position in the step at which the first entry changes its sign, by bisection on dense output."""
        kind = t.dtype
        least = float(jnp.finfo(kind).eps) if self.event.tolerance is None else self.event.tolerance / jnp.abs(h)

        def middle(bracket: tuple[Array, Array]) -> Array:
            return (bracket[0] + bracket[1]) / 2

        def wide(bracket: tuple[Array, Array]) -> Array:
            inner = middle(bracket)
            return (bracket[1] - bracket[0] > least) & (inner > bracket[0]) & (inner < bracket[1])

        def halve(bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            inner = middle(bracket)
            crossed = self.happened(t + inner * h, at(inner), before).any()
            return jnp.where(crossed, bracket[0], inner), jnp.where(crossed, inner, bracket[1])

        return lax.while_loop(wide, halve, (jnp.zeros((), kind), jnp.ones((), kind)))[1]

    def moved(self, t: Array, y: Leaves, slope: Leaves, entry: Array) -> tuple[Array, Leaves]:
        """Time and state of an event with their derivatives, by the implicit function theorem.

        Args:
            t: the time as the condition is told it, without a derivative.
            y: the state at that time.
            slope: of the solution there.
            entry: of the condition that changed its sign.
        """
        slope = lax.stop_gradient(slope)

        def condition(t: Array, y: Leaves) -> Array:
            return self.value(t, y)[entry]

        t = lax.stop_gradient(t)
        still = lax.stop_gradient(y)
        _, rate = jax.jvp(condition, (t, still), (jnp.ones_like(t), slope))
        value = condition(t, y)
        by = -(value - lax.stop_gradient(value)) / lax.stop_gradient(jnp.where(rate == 0, 1, rate))
        by = by.astype(t.dtype)
        return t + by, weigh_leaves(y, by, (1.0,), (slope,))
