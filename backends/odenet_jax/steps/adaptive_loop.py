"""The loop with step-size control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from odenet import Event, PIDController, Result
from odenet.kit import trial
from odenet_jax.field.state import Leaves
from odenet_jax.steps.accepted import Along, Line
from odenet_jax.steps.dense import Look, Watch, between, slope_between
from odenet_jax.steps.fixed import write
from odenet_jax.steps.record import Keep, Record, Walked, empty, kept
from odenet_jax.steps.size_control import CODE, Pace, finite, first_size, judge, propose, renewed, repeat, start
from odenet_jax.steps.tolerance import Tolerance
from odenet_jax.steps.weighted_sum import choose, only, weigh_leaves


class Seen(NamedTuple):
    """The last accepted step, and what was seen of an event's condition along it."""

    t: Array
    y: Leaves
    y1: Leaves
    slopes: tuple[Leaves, ...]
    look: Look


class _Carry(NamedTuple):
    pace: Pace
    y: Leaves
    first: Leaves
    renewals: Array
    output: Array
    ys: Leaves
    record: Record
    seen: Seen | None


@dataclass(frozen=True)
class March:
    """A solve with step-size control.

    Args:
        run: the field and the method.
        control, tolerance: of step sizes.
        event: that ends it.
        keep: what is kept beside the outputs.
    """

    run: Along
    control: PIDController
    tolerance: Tolerance
    event: Event | None
    keep: Keep

    @property
    def line(self) -> Line:
        """Its times."""
        return self.run.line

    def solve(self, y0: Leaves, ts: Array | None) -> Walked:
        """From y0 to t1, keeping the states at ts."""
        line, run = self.line, self.run
        begin = run.between(line.t0, line.stop(line.t0))
        first = begin.slope(0, 0.0, y0)
        size = first_size(self.control, run.solver.increments, self.tolerance, line, begin.slope_at, y0, first)
        pace = start(line, size, finite(y0, first))
        record = empty(self.keep, run, y0, self.control.max_steps)
        rows: Leaves = ()
        if ts is not None:
            rows = tuple(jnp.broadcast_to(jnp.zeros_like(leaf), (*ts.shape, *leaf.shape)) for leaf in y0)
        carry = _Carry(pace, y0, first, jnp.int32(0), jnp.int32(0), rows, record, self._unseen(y0))
        if ts is not None:
            output, ys = self._early(y0, ts, carry.ys)
            carry = carry._replace(output=output, ys=ys)
        carry = repeat(lambda carry: carry.pace.alive, lambda carry: self._step(carry, ts), carry)
        return self._walked(carry, ts)

    def _step(self, carry: _Carry, ts: Array | None) -> _Carry:
        pace, y, tableau, line = carry.pace, carry.y, self.run.solver.increments, self.line
        step = propose(line, pace)
        here = self.run.between(pace.t, step.t1)
        made = trial(tableau, lambda i, at: here.slope(0, tableau.c[i], at), y, here.size, carry.first, weigh_leaves)
        ratio = self.tolerance.ratio(made.error, y, made.y1)
        accepted, now = judge(self.control, tableau.error_order, line, pace, step, ratio)

        jumped = line.jumping(step.t1) if line.jumps.shape[0] else False
        first, slopes, renewals = made.slopes[-1], made.slopes, carry.renewals
        if not tableau.fsal:
            needed = accepted & (now.alive & ~jumped | self._reads_end(ts, carry.output, step.t1))
            first = renewed_end(here, needed, made.y1, carry.first)
            slopes, renewals = (*slopes, first), renewals + needed
        seen = carry.seen
        if seen is not None:
            now, seen = self._look(now, seen, carry, step.t1, made.y1, slopes, accepted)
        if line.jumps.shape[0]:
            needed = accepted & now.alive & jumped
            first = renewed(self.run, needed, step.t1, made.y1, first)
            renewals = renewals + needed
        output, ys = carry.output, carry.ys
        if ts is not None:
            passing = accepted if seen is None else accepted & ~seen.look.happened.any()
            output, ys = self._emit(ts, output, ys, passing, (pace.t, step.t1), step.t1, y, made.y1, slopes)
        return _Carry(
            now,
            choose(accepted, made.y1, y),
            choose(accepted, first, carry.first),
            renewals,
            output,
            ys,
            kept(self.keep, carry.record, accepted, pace.accepted, step.t1, y, slopes),
            seen,
        )

    def _reads_end(self, ts: Array | None, output: Array, t1: Array) -> Any:
        """Whether dense output of the step to t1 is read, and with it the slope there."""
        if self.keep.dense or self.event is not None:
            return True
        if ts is None:
            return False
        following = ts[jnp.minimum(output, ts.shape[0] - 1)]
        return (output < ts.shape[0]) & (self.line.sign * (following - t1) < 0)

    def _early(self, y0: Leaves, ts: Array, ys: Leaves) -> tuple[Array, Leaves]:
        """The outputs at t0 itself."""
        early = self.line.sign * (ts - self.line.t0) <= 0
        ys = tuple(
            jnp.where(early.reshape(-1, *[1] * leaf.ndim), leaf, kept) for leaf, kept in zip(y0, ys, strict=True)
        )
        return jnp.sum(early, dtype=jnp.int32), ys

    def _emit(
        self,
        ts: Array,
        output: Array,
        ys: Leaves,
        passing: Any,
        ends: Any,
        until: Array,
        y: Leaves,
        y1: Leaves,
        slopes: Any,
    ) -> tuple[Array, Leaves]:
        """The outputs within a step, up to a time."""
        tableau, (a, b), count = self.run.solver.increments, ends, ts.shape[0]

        def more(state: tuple[Array, Leaves]) -> Array:
            t = ts[jnp.minimum(state[0], count - 1)]
            return passing & (state[0] < count) & (self.line.sign * (t - until) <= 0)

        def emit(state: tuple[Array, Leaves]) -> tuple[Array, Leaves]:
            output, ys = state
            t, go = ts[jnp.minimum(output, count - 1)], more(state)
            found = between(tableau, (t - a) / (b - a), y, b - a, slopes)
            return output + go, write(ys, jnp.where(go, output, count), choose(t == b, y1, found))

        return repeat(more, emit, (output, ys))

    def _slack(self, *ends: Array) -> Array:
        """How far beyond the event in a step a time in `ts` counts as that of the event."""
        assert self.event is not None
        rounding = 64 * float(jnp.finfo(ends[0].dtype).eps) * jnp.maximum(*map(jnp.abs, ends))
        return rounding + (self.event.tolerance or 0.0)

    def _unseen(self, y0: Leaves) -> Seen | None:
        if self.event is None:
            return None
        before = self._watch().signs(self.line.t0, y0)
        tableau = self.run.solver.increments
        slopes = (tuple(jnp.zeros_like(leaf) for leaf in y0),) * (tableau.stages + (not tableau.fsal))
        zero = jnp.zeros((), self.line.t0.dtype)
        return Seen(self.line.t0, y0, y0, slopes, Look(before, zero, zero, jnp.zeros(before.shape, bool)))

    def _watch(self) -> Watch:
        assert self.event is not None
        return Watch(self.event, self.run.layout, self.line.clock)

    def _look(
        self, pace: Pace, seen: Seen, carry: _Carry, t1: Array, y1: Leaves, slopes: Any, accepted: Any
    ) -> tuple[Pace, Seen]:
        """Where the loop is if an event in the step ends it, and what was seen of the last accepted step.

        A row that an event has ended stays in the loop until the slowest one is done, and none of its further passes is
        an accepted step: what has happened outlives them.
        """
        t, y = carry.pace.t, carry.y
        h = t1 - t

        def at(position: Array) -> Leaves:
            return between(self.run.solver.increments, position, y, h, slopes)

        look = self._watch().look(at, t, h, y1, seen.look.before)
        ends = look.happened.any() & accepted
        outcome = jnp.where(ends, CODE[Result.EVENT], pace.outcome).astype(jnp.int32)
        pace = pace._replace(alive=pace.alive & ~ends, outcome=outcome)
        return pace, choose(accepted, Seen(t, y, y1, slopes, look), seen)

    def _walked(self, carry: _Carry, ts: Array | None) -> Walked:
        pace, output, ys, y1, end = carry.pace, carry.output, carry.ys, carry.y, carry.pace.t
        position, entry, slope = None, None, ()
        if carry.seen is not None and self.event is not None:
            seen, watch, tableau = carry.seen, self._watch(), self.run.solver.increments
            h, met = pace.t - seen.t, seen.look.happened.any()

            def at(position: Array) -> Leaves:
                return between(tableau, position, seen.y, h, seen.slopes)

            look = watch.locate(at, seen.t, h, seen.look)
            position = jnp.where(met, look.high, 1).astype(h.dtype)
            inside = met & (position < 1)
            end = jnp.where(inside, seen.t + position * h, pace.t)
            y1 = choose(inside, at(position), carry.y)
            slope = slope_between(tableau, position, seen.slopes)
            entry = jnp.argmax(watch.happened(end, y1, look.before))
            if ts is not None:
                until = end + self.line.sign * self._slack(seen.t, pace.t)
                output, ys = self._emit(ts, output, ys, met, (seen.t, pace.t), until, seen.y, seen.y1, seen.slopes)
        if ts is not None:
            ys = tuple(only(jnp.arange(ts.shape[0]) < output, leaf) for leaf in ys)
        return Walked(ys, y1, carry.y, end, pace, output, carry.renewals, carry.record, position, entry, slope)


def renewed_end(here: Along, needed: Any, y1: Leaves, otherwise: Leaves) -> Leaves:
    """The slope at the end of a step, where it is needed."""
    return jax.lax.cond(needed, lambda: here.slope(0, 1.0, y1), lambda: otherwise)
