"""The discrete adjoint: rebuild y[n] from y[n+1], and take step n's exact VJP at the rebuilt point.

Sander, Ablin, Peyre 2022, section 4.1; the correction is this library's (docs/mathematics.md).

Over 250 lines: equal and accepted steps, and what is known of the rebuilt states, share the step back.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer

from odenet import DiscreteAdjoint, Problem, Stats
from odenet.kit import DRIFTED, WHOLE, Alarm, add, alarm, combine, subtract
from odenet_jax.field.jumps import against
from odenet_jax.field.state import Leaves
from odenet_jax.field.varying import undivided
from odenet_jax.gradients.accepted_steps import AcceptedStepVJP, BackwardPass, Cotangents
from odenet_jax.gradients.adjoint import (
    Adjoint,
    OutputCotangents,
    SavedStates,
    Sums,
    collect,
    descend,
    none_unread,
    vjp,
    zeros,
)
from odenet_jax.gradients.certificate import Sketch, by_kinks, certify, relative, share, sized, tied, worse
from odenet_jax.gradients.runtime_errors import checked
from odenet_jax.steps.accepted import AcceptedRun
from odenet_jax.steps.fixed import Run, Solve, kept_rows, read
from odenet_jax.steps.record import MOST_KEPT, AdaptiveResult, Keep
from odenet_jax.steps.size_control import repeat
from odenet_jax.steps.tolerance import Tolerance
from odenet_jax.steps.weighted_sum import choose

Trouble = tuple[Array, Array, Array]
"""The step that could not be undone to the tolerance (-1: none), its first residual and its last."""


class Path(NamedTuple):
    """What all steps together are off by, beside what they add, entry by entry.

    Where steps share their weights the gradient is a sum over them, in which one that adds little counts for little,
    however large its error is beside that. Layers have gradients of their own, and the worst one counts.
    """

    off: Leaves
    all: Leaves

    @classmethod
    def begun(cls, y: Leaves) -> Path:
        """Before the first step."""
        sizes = tuple(map(jnp.zeros_like, map(jnp.abs, y)))
        return cls(sizes, sizes)

    def then(self, defect: Leaves, reference: Leaves) -> Path:
        """One more step: how far it is off, and what that is held against."""
        return self.more(defect)._replace(all=add(self.all, reference))

    def more(self, defect: Leaves) -> Path:
        """What a known state tells."""
        return self._replace(off=add(self.off, tuple(map(jnp.abs, defect))))

    def error(self) -> Array:
        """Of all steps, a scalar."""
        return relative(self.off, self.all)


class Reversal(Adjoint):
    """Backward from y[N], a step at a time."""

    def __init__(self, method: DiscreteAdjoint, stats: Stats, alarm: Alarm | None) -> None:
        super().__init__(stats, alarm)
        self.method = method

    def sketch(self, y0: Leaves) -> Sketch | None:
        return Sketch(y0)

    def keeps(self, run: Run) -> Sequence[int]:
        return self.method.anchored(run.grid.steps)

    def back(
        self, run: Run, saved: SavedStates, gradients: OutputCotangents, sums: Sums
    ) -> tuple[Leaves, Sums, Array, Any]:
        assert saved.end is not None
        steps, method, (end,) = run.grid.steps, self.method, saved.end
        y = end
        jumping = run.field.jumps(y)
        kinked = not jumping and run.field.kinked(y)
        path = Path.begun(y) if jumping and run.field.together(y) else None
        buffers = [(saved.states, kept_rows(self.keeps(run), steps))] if saved.states else []
        if gradients.rows is not None and saved.ys is not None:
            buffers.append((saved.ys, gradients.rows))

        def step(n: Any, carry: Any, *, early: bool) -> Any:
            y, g, sums, worst, increments, trouble, last, path, off = carry
            here = run.at(n)
            predict = functools.partial(self.predict, here, n, y, increments, trouble, early=early)
            known, exact = jnp.array(False), y
            for buffer, rows in buffers:
                there = rows[n] < buffer[0].shape[0]
                exact = tuple(jnp.where(there, *pair) for pair in zip(read(buffer, rows[n]), exact, strict=True))
                known = known | there
            z, trouble = lax.cond(known, lambda: (exact, trouble), predict) if buffers else predict()
            d, pull = vjp(here, lambda run, z: run.increment(n, z), z)
            part, *by_reads = pull(g)
            before = subtract(y, d)
            # where y[n] is known, its own increment taken back from a rebuilt y[n+1] misses it by what that is off
            of = tuple(jnp.where(known, *pair) for pair in zip(sized(z, y), y, strict=True)) if buffers else y
            if path is None:
                worst = worse(worst, relative(subtract(before, z), against(d, of) if jumping else of), n)
            else:
                path = path.then(subtract(before, z), against(d, of))
            if kinked:
                off = jnp.maximum(off, share(subtract(before, z), of).astype(off.dtype))
            after = before if method.correct else z
            y = tuple(jnp.where(known, *pair) for pair in zip(z, after, strict=True)) if buffers else after
            last = relative(y, against(d, y)).astype(last.dtype) if jumping else last
            g = gradients.join(n, add(g, part))
            increments = (d, *increments[:-1]) if increments else ()
            return y, g, collect(here, n, sums, by_reads), worst, increments, trouble, last, path, off

        zero = jnp.zeros((), run.layout.time)
        increments = (zeros(y),) * method.order if method.extrapolates else ()
        trouble = (jnp.int32(-1), zero, zero)
        carry = (y, gradients.end(), sums, (zero, jnp.int32(-1)), increments, trouble, jnp.ones_like(zero), path, zero)
        early = min(method.order, steps) if method.extrapolates else steps
        carry = descend(functools.partial(step, early=True), steps, early, carry)
        if early < steps:
            carry = descend(functools.partial(step, early=False), steps - early, steps - early, carry)
        y, g, sums, worst, _, trouble, last, path, off = carry
        assert saved.sketch is not None
        drift = saved.sketch.error(y, end).astype(last.dtype)
        if path is None:
            residual, n = worse(worst, drift * last, -1)
        else:  # the states between have drifted as well
            residual, n = worse(worst, path.more(tuple(DRIFTED * drift * leaf for leaf in y)).error(), WHOLE)
        # gradients that are all zero are right, whatever was rebuilt for them
        trouble = (none_unread(run, trouble[0] + 1) - 1, *trouble[1:])
        certificate, counts = by_kinks(residual, off) if kinked else (residual, None)
        worst = none_unread(run, certificate), n
        return g, sums, certificate, (trouble, steps, worst, none_unread(run, residual), counts)

    def predict(
        self, run: Run, n: Any, y: Leaves, increments: tuple[Leaves, ...], trouble: Trouble, *, early: bool
    ) -> tuple[Leaves, Trouble]:
        """z, near the y[n] with `y[n] + D_n(y[n]) = y`.

        Args:
            run: at step n.
            n, y: where the backward pass is.
            increments: the latest first.
            trouble: see `settle`.
            early: whether too few are seen to continue them.
        """
        method = self.method
        if early:
            z = add(y, run.increment(n, y, reverse=True))
            more = (method.startup if method.extrapolates else method.iterations) - 1
        else:
            z = subtract(y, combine(*zip(method.continued, increments, strict=True)))
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
        z = undivided(z, "gradient='discrete-adjoint:tolerance=...'")
        _, z, residual, first = lax.while_loop(undone, repeat, (jnp.int32(0), z, never, never))
        new = ~(residual <= tolerance) & (trouble[0] < 0)
        return z, jax.tree.map(lambda now, before: jnp.where(new, now, before), (n, first, residual), trouble)

    def settled(self, gradients: Any, trouble: Any) -> Any:
        """The gradients, if every step was undone to the tolerance, and all were.

        Raises:
            GradientError: they were not; a compiled program raises a RuntimeError of this message when it runs, with
                the power of ten of what was reached.
        """
        trouble, steps, worst, residual, kinks = trouble
        gradients = self._undone(gradients, trouble, residual)
        return certify(self.stats, self.alarm, steps, worst, gradients, kinks=kinks)

    def _undone(self, gradients: Any, trouble: Trouble, certificate: Array) -> Any:
        method = self.method
        if method.tolerance is None:
            return gradients
        n, first, last = trouble
        if not isinstance(n, Tracer):
            if n.item() >= 0:
                raise self.method.stuck(f"step {n.item()}", f"went from {first.item():.1e} to {last.item():.1e}")
            if not certificate.item() <= method.tolerance:
                raise self.method.grown(f"{certificate.item():.1e}")
            return gradients
        stuck = [str(self.method.stuck("a step", f"is about {size}")) for size in _SIZES]
        grown = [str(self.method.grown(f"about {size}")) for size in _SIZES]
        zero = checked(n >= 0, stuck, _size(last))
        zero += checked(~(certificate <= method.tolerance) & (n < 0), grown, _size(certificate))
        # whichever gradients are wanted: where only those of weights are, that of the state is never worked out
        *leading, residual = gradients
        return *tied(zero, leading), residual


_SIZES = ("less than 1e-15", *(f"1e{power}" for power in range(-15, 2)), "more than 1e2, or not finite")


def _size(value: Array) -> Array:
    """Which of the words for sizes is that of a number."""
    power = jnp.nan_to_num(jnp.log10(value), nan=2, posinf=2, neginf=-16)
    return jnp.clip(jnp.round(power) + 16, 0, len(_SIZES) - 1).astype(jnp.int32)


class AdaptiveReversal(BackwardPass):
    """The same over the steps that an adaptive solve accepted."""

    def __init__(self, method: DiscreteAdjoint, stats: Stats, alarm: Alarm | None) -> None:
        self.method = method
        self.fixed = Reversal(method, stats, alarm)

    @property
    def choices(self) -> dict[str, Any]:
        """What its programs depend on: that of the method with equal steps."""
        return self.fixed.choices

    def keep(self, run: AcceptedRun, y0: Leaves, max_steps: int) -> Keep:
        anchors = self.method.anchors
        return (
            Keep(nodes=True) if anchors is None else Keep(True, max(1, min(max_steps, MOST_KEPT) // anchors), anchors)
        )

    def back(
        self,
        run: AcceptedRun,
        result: AdaptiveResult,
        gradients: Cotangents,
        sums: Sums,
        y0: Leaves,
        allowed: Tolerance,
    ) -> tuple[Leaves, Sums, Array, Any]:
        stretch, anchors, method = AcceptedStepVJP(run, result, gradients), result.record.states, self.method
        jumping = run.field.jumps(y0)
        begun = Path.begun(y0) if jumping and run.field.together(y0) else None

        def alive(state: Any) -> Array:
            return state[0] >= 0

        def step(state: Any) -> Any:
            n, y, g, output, sums, worst, trouble, scale, path = state
            go, place = alive(state), jnp.maximum(n, 0)
            z, undone = self.fixed.predict(run.at(place), place, y, (), trouble, early=True)
            d, g, output, sums = stretch.step(place, go, z, g, output, sums)
            before = subtract(y, d)
            if path is None:
                error = relative(subtract(before, z), against(d, y) if jumping else y)
                worst = choose(go, worse(worst, error, place), worst)
            else:
                path = choose(go, path.then(subtract(before, z), against(d, y)), path)
            y = choose(go, before if method.correct else z, y)
            if anchors is not None:
                row = place // (method.anchors or 1) - 1
                known = go & (place > 0) & (place % (method.anchors or 1) == 0) & (row < anchors.starts.shape[0])
                exact = read(anchors.rows, jnp.maximum(row, 0))
                of = sized(exact, result.last)
                if path is None:
                    error = relative(subtract(y, exact), against(d, of) if jumping else of)
                    worst = choose(known, worse(worst, error, place), worst)
                else:
                    path = choose(known, path.more(subtract(y, exact)), path)
                y = choose(known, exact, y)
            scale = choose(go, against(d, y), scale) if jumping else scale
            return jnp.where(go, n - 1, n), y, g, output, sums, worst, choose(go, undone, trouble), scale, path

        g, output = stretch.start()
        zero = jnp.zeros((), run.layout.time)
        worst, trouble = (zero, jnp.int32(-1)), (jnp.int32(-1), zero, zero)
        scale = tuple(map(jnp.abs, sized(y0, result.last)))
        state = (result.pace.accepted - 1, result.last, g, output, sums, worst, trouble, scale, begun)
        _, y, g, output, sums, worst, trouble, scale, path = repeat(alive, step, state)
        if path is None:
            worst = worse(worst, relative(subtract(y, y0), scale), -1)
        else:
            worst = worse(worst, path.more(subtract(y, y0)).error(), WHOLE)
        return stretch.finish(g, output), sums, worst[0], (trouble, result.pace.accepted, worst, worst[0], None)

    def settled(self, gradients: Any, trouble: Any) -> Any:
        """The gradients, if every step was undone to the tolerance."""
        return self.fixed.settled(gradients, trouble)


def fixed(problem: Problem, stats: Stats) -> Solve:
    """A solve in equal steps whose gradient is by the discrete adjoint."""
    assert isinstance(problem.gradient, DiscreteAdjoint)
    return Reversal(problem.gradient, stats, alarm(problem.field)).solve


def adaptive(problem: Problem, stats: Stats) -> BackwardPass:
    """The backward pass of the discrete adjoint over accepted steps."""
    assert isinstance(problem.gradient, DiscreteAdjoint)
    return AdaptiveReversal(problem.gradient, stats, alarm(problem.field))
