"""The discrete adjoint: rebuild y[n] from y[n+1], and take step n's exact VJP at the rebuilt point.

Sander, Ablin, Peyre 2022, section 4.1; the correction is this library's (docs/mathematics.md).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer

from odenet import DiscreteAdjoint, GradientError, Problem, Stats
from odenet.kit import add, combine, subtract
from odenet_jax.field.state import Leaves
from odenet_jax.gradients.accepted_steps import Cotangents, Stretch, WayBack
from odenet_jax.gradients.adjoint import Adjoint, Joining, Kept, Sums, collect, descend, vjp, zeros
from odenet_jax.gradients.raised import raised
from odenet_jax.steps.accepted import Along
from odenet_jax.steps.fixed import Run, Solve, kept_rows, read
from odenet_jax.steps.record import Keep, Walked
from odenet_jax.steps.size_control import repeat
from odenet_jax.steps.tolerance import Tolerance
from odenet_jax.steps.weighted_sum import choose

Trouble = tuple[Array, Array, Array]
"""The step that could not be undone to the tolerance (-1: none), its first residual and its last."""


class Reversal(Adjoint):
    """Backward from y[N], a step at a time."""

    def __init__(self, method: DiscreteAdjoint, stats: Stats) -> None:
        super().__init__(stats)
        self.method = method

    def keeps(self, run: Run) -> Sequence[int]:
        """See `Adjoint.keeps`."""
        return self.method.anchored(run.grid.steps)

    def back(self, run: Run, kept: Kept, gradients: Joining, sums: Sums) -> tuple[Leaves, Sums, Array, Any]:
        """See `Adjoint.back`."""
        assert kept.end is not None
        steps, method, (y,) = run.grid.steps, self.method, kept.end
        buffers = [(kept.states, kept_rows(self.keeps(run), steps))] if kept.states else []
        if gradients.rows is not None and kept.ys is not None:
            buffers.append((kept.ys, gradients.rows))

        def step(n: Any, carry: Any, *, early: bool) -> Any:
            y, g, sums, residual, seen, trouble = carry
            here = run.at(n)
            predict = functools.partial(self.predict, here, n, y, seen, trouble, early=early)
            known, exact = jnp.array(False), y
            for buffer, rows in buffers:
                there = rows[n] < buffer[0].shape[0]
                exact = tuple(jnp.where(there, *pair) for pair in zip(read(buffer, rows[n]), exact, strict=True))
                known = known | there
            z, trouble = lax.cond(known, lambda: (exact, trouble), predict) if buffers else predict()
            d, pull = vjp(here, lambda run, z: run.increment(n, z), z)
            part, *found = pull(g)
            before = subtract(y, d)
            defect = jnp.where(known, 0.0, relative(subtract(before, z), y))
            after = before if method.correct else z
            y = tuple(jnp.where(known, *pair) for pair in zip(z, after, strict=True)) if buffers else after
            g = gradients.join(n, add(g, part))
            seen = (d, *seen[:-1]) if seen else ()
            return y, g, collect(here, n, sums, found), _largest(residual, defect), seen, trouble

        zero = jnp.zeros((), run.layout.time)
        seen = (zeros(y),) * method.order if method.extrapolates else ()
        carry = (y, gradients.end(), sums, zero, seen, (jnp.int32(-1), zero, zero))
        early = min(method.order, steps) if method.extrapolates else steps
        carry = descend(functools.partial(step, early=True), steps, early, carry)
        if early < steps:
            carry = descend(functools.partial(step, early=False), steps - early, steps - early, carry)
        _, g, sums, residual, _, trouble = carry
        return g, sums, residual, trouble

    def predict(
        self, run: Run, n: Any, y: Leaves, seen: tuple[Leaves, ...], trouble: Trouble, *, early: bool
    ) -> tuple[Leaves, Trouble]:
        """z, near the y[n] with `y[n] + D_n(y[n]) = y`.

        Args:
            run: at step n.
            n, y: where the way back is.
            seen: increments, the latest first.
            trouble: see `settle`.
            early: whether too few are seen to continue them.
        """
        method = self.method
        if early:
            z = add(y, run.increment(n, y, reverse=True))
            more = (method.startup if method.extrapolates else method.iterations) - 1
        else:
            z = subtract(y, combine(*zip(method.continued, seen, strict=True)))
            more = method.iterations - 1
        z = lax.fori_loop(0, more, lambda _, z: subtract(y, run.increment(n, z)), z)
        return (z, trouble) if method.tolerance is None else self.settle(run, n, y, z, trouble)

    def settle(self, run: Run, n: Any, y: Leaves, z: Leaves, trouble: Trouble) -> tuple[Leaves, Trouble]:
        """z with a residual of at most `tolerance`; where it is not reached, that is the trouble."""
        limit, tolerance = self.method.limit, self.method.tolerance

        def undone(state: Any) -> Array:
            i, _, residual, _ = state
            return (i < limit) & ~(residual <= tolerance)

        def repeat(state: Any) -> Any:
            i, z, _, first = state
            after = subtract(y, run.increment(n, z))
            residual = relative(subtract(after, z), y).astype(first.dtype)
            return i + 1, after, residual, jnp.where(i == 0, residual, first)

        never = jnp.full((), jnp.inf, run.layout.time)
        _, z, residual, first = lax.while_loop(undone, repeat, (jnp.int32(0), z, never, never))
        new = ~(residual <= tolerance) & (trouble[0] < 0)
        return z, jax.tree.map(lambda now, before: jnp.where(new, now, before), (n, first, residual), trouble)

    def settled(self, found: tuple[Leaves, Sums, Array], trouble: Trouble) -> tuple[Leaves, Sums, Array]:
        """What the way back found, if every step was undone to the tolerance.

        Raises:
            GradientError: it was not; a compiled program raises a RuntimeError of this message when it runs.
        """
        method = self.method
        if method.tolerance is None:
            return found
        given = f"cannot be undone to tolerance={method.tolerance}: after {method.limit} evaluations the residual"
        allowed = "steps with h Lip(f) < 1, which are undone by repetition"
        remedy = "take gradient='checkpoint', which undoes nothing; or smaller steps, a larger limit or tolerance"
        if not isinstance(trouble[0], Tracer):
            n, first, last = (leaf.item() for leaf in trouble)
            if n >= 0:
                raise GradientError(f"step {n} {given} went from {first:.1e} to {last:.1e}", allowed, remedy)
            return found
        return raised(found, trouble[0] >= 0, GradientError(f"a step {given} is larger", allowed, remedy))


class AdaptiveReversal(WayBack):
    """The same over the steps that an adaptive solve accepted."""

    def __init__(self, method: DiscreteAdjoint, stats: Stats) -> None:
        self.method = method
        self.fixed = Reversal(method, stats)

    def keep(self, run: Along, y0: Leaves, max_steps: int) -> Keep:
        """See `WayBack.keep`."""
        anchors = self.method.anchors
        return Keep(nodes=True) if anchors is None else Keep(True, max(1, max_steps // anchors), anchors)

    def back(
        self, run: Along, walked: Walked, gradients: Cotangents, sums: Sums, y0: Leaves, allowed: Tolerance
    ) -> tuple[Leaves, Sums, Array, Any]:
        """See `WayBack.back`."""
        stretch, anchors, method = Stretch(run, walked, gradients), walked.record.states, self.method

        def alive(state: Any) -> Array:
            return state[0] >= 0

        def step(state: Any) -> Any:
            n, y, g, output, sums, residual, trouble = state
            go, place = alive(state), jnp.maximum(n, 0)
            z, found = self.fixed.predict(run.at(place), place, y, (), trouble, early=True)
            d, g, output, sums = stretch.step(place, go, z, g, output, sums)
            before = subtract(y, d)
            residual = jnp.where(go, _largest(residual, relative(subtract(before, z), y)), residual)
            y = choose(go, before if method.correct else z, y)
            if anchors is not None:
                row = place // (method.anchors or 1) - 1
                known = go & (place > 0) & (place % (method.anchors or 1) == 0) & (row < anchors.starts.shape[0])
                y = choose(known, read(anchors.rows, jnp.maximum(row, 0)), y)
            return n - go, y, g, output, sums, residual, choose(go, found, trouble)

        g, output = stretch.start()
        zero = jnp.zeros((), run.layout.time)
        state = (walked.pace.accepted - 1, walked.last, g, output, sums, zero, (jnp.int32(-1), zero, zero))
        _, _, g, output, sums, residual, trouble = repeat(alive, step, state)
        return stretch.finish(g, output), sums, residual, trouble

    def settled(self, found: Any, trouble: Any) -> Any:
        """See `WayBack.settled`."""
        return self.fixed.settled(found, trouble)


def relative(defect: Leaves, y: Leaves) -> Array:
    """|defect| / |y|, Euclidean over all leaves."""
    size = _norm(y)
    return _norm(defect) / jnp.maximum(size, jnp.finfo(size.dtype).tiny)


def _norm(leaves: Leaves) -> Array:
    return functools.reduce(jnp.hypot, (jnp.linalg.norm(leaf.ravel()) for leaf in leaves))


def _largest(residual: Array, defect: Array) -> Array:
    return jnp.maximum(residual, defect.astype(residual.dtype))


def fixed(problem: Problem, stats: Stats) -> Solve:
    """See `odenet_jax.gradients.solve`."""
    assert isinstance(problem.gradient, DiscreteAdjoint)
    return Reversal(problem.gradient, stats).solve


def adaptive(problem: Problem, stats: Stats) -> WayBack:
    """See `odenet_jax.gradients.solve`."""
    assert isinstance(problem.gradient, DiscreteAdjoint)
    return AdaptiveReversal(problem.gradient, stats)
