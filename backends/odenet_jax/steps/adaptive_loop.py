"""The loop with step-size control.

Over 250 lines: one step, its outputs and its event read what the loop carries throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from odenet import Event, PIDController, Result
from odenet.kit import trial
from odenet_jax.field.state import Leaves
from odenet_jax.steps.accepted import AcceptedRun, SolveTimes
from odenet_jax.steps.dense import EventBracket, Watch, between, slope_between
from odenet_jax.steps.fixed import write
from odenet_jax.steps.record import AdaptiveResult, Keep, Record, empty, kept
from odenet_jax.steps.size_control import (
    CODE,
    LoopState,
    finite,
    first_size,
    judge,
    propose,
    renewed,
    repeat,
    start,
)
from odenet_jax.steps.tolerance import Tolerance
from odenet_jax.steps.weighted_sum import choose, weigh_leaves


class LastStep(NamedTuple):
    """The last accepted step, and what was seen of an event's condition along it."""

    t: Array
    y: Leaves
    y1: Leaves
    slopes: tuple[Leaves, ...]
    look: EventBracket


class _LoopCarry(NamedTuple):
    pace: LoopState
    y: Leaves
    first: Leaves
    renewals: Array
    output: Array
    ys: Leaves
    record: Record
    last_step: LastStep | None


@dataclass(frozen=True)
class AdaptiveLoop:
    """A solve with step-size control.

    Args:
        run: the field and the method.
        control, tolerance: of step sizes.
        event: that ends it.
        keep: what is kept beside the outputs.
    """

    run: AcceptedRun
    control: PIDController
    tolerance: Tolerance
    event: Event | None
    keep: Keep

    @property
    def line(self) -> SolveTimes:
        """The times of the solve."""
        return self.run.line

    def solve(self, y0: Leaves, ts: Array | None) -> AdaptiveResult:
        """From y0 to t1, keeping the states at ts."""
        line, run = self.line, self.run
        begin = run.between(line.t0, line.stop(line.t0))
        first = begin.slope(0, 0.0, y0)
        size = first_size(self.control, run.solver.increments, self.tolerance, line, begin.slope_at, y0, first)
        pace = start(line, size, finite(y0, first))
        if self.event is not None:
            pace = pace.ended(self._watch().undefined(line.t0, y0), Result.EVENT_NAN)
        record = empty(self.keep, run, y0, self.control.max_steps)
        rows: Leaves = ()
        if ts is not None:
            rows = tuple(jnp.broadcast_to(jnp.zeros_like(leaf), (*ts.shape, *leaf.shape)) for leaf in y0)
        carry = _LoopCarry(pace, y0, first, jnp.int32(0), jnp.int32(0), rows, record, self._unseen(y0))
        if ts is not None:
            output, ys = self._early(y0, ts, carry.ys)
            carry = carry._replace(output=output, ys=ys)
        carry = repeat(lambda carry: carry.pace.alive, lambda carry: self._step(carry, ts), carry)
        return self._result(carry, ts)

    def _step(self, carry: _LoopCarry, ts: Array | None) -> _LoopCarry:
        pace, y, tableau, line = carry.pace, carry.y, self.run.solver.increments, self.line
        step = propose(line, pace)
        here = self.run.between(pace.t, step.t1)
        attempt = trial(tableau, lambda i, at: here.slope(0, tableau.c[i], at), y, here.size, carry.first, weigh_leaves)
        # from here on all is worked out as for an accepted step, and chosen at the end: a row of a vmap whose step is
        # rejected, or which has ended, goes through the same operations and keeps what it had
        ratio = self.tolerance.ratio(attempt.error, y, attempt.y1)
        accepted, now = judge(self.control, tableau.error_order, line, pace, step, ratio)

        jumped = line.jumping(step.t1) if line.jumps.shape[0] else jnp.zeros((), bool)
        # the slope at the end, where no stage has it: evaluated only where the next step or an output reads it
        first, slopes, renewals = attempt.slopes[-1], attempt.slopes, carry.renewals
        if not tableau.fsal:
            needed = accepted & (now.alive & ~jumped | self._reads_end(ts, carry.output, step.t1))
            first = renewed_end(here, needed, attempt.y1, carry.first)
            slopes, renewals = (*slopes, first), jnp.where(needed, renewals + 1, renewals)
        last_step = carry.last_step
        if last_step is not None:
            accepted, now, last_step = self._look(now, last_step, carry, step.t1, attempt.y1, slopes, accepted)
        # behind a jump the next step begins with another slope; after the event, which looks at this step alone
        if line.jumps.shape[0]:
            needed = accepted & now.alive & jumped
            first = renewed(self.run, needed, step.t1, attempt.y1, first)
            renewals = jnp.where(needed, renewals + 1, renewals)
        output, ys = carry.output, carry.ys
        if ts is not None:
            passing = accepted if last_step is None else accepted & ~last_step.look.happened.any()
            output, ys = self._emit(ts, output, ys, passing, (pace.t, step.t1), step.t1, y, attempt.y1, slopes)
        return _LoopCarry(
            now,
            choose(accepted, attempt.y1, y),
            choose(accepted, first, carry.first),
            renewals,
            output,
            ys,
            kept(self.keep, carry.record, accepted, pace.accepted, step.t1, y, slopes),
            last_step,
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
            state_at = choose(t == b, y1, between(tableau, (t - a) / (b - a), y, b - a, slopes))
            return jnp.where(go, output + 1, output), write(ys, jnp.where(go, output, count), state_at)

        return repeat(more, emit, (output, ys))

    def _slack(self, *ends: Array) -> Array:
        """How far beyond the event in a step a time in `ts` counts as that of the event."""
        assert self.event is not None
        rounding = 64 * float(jnp.finfo(ends[0].dtype).eps) * jnp.maximum(*map(jnp.abs, ends))
        return rounding + (self.event.tolerance or 0.0)

    def _unseen(self, y0: Leaves) -> LastStep | None:
        if self.event is None:
            return None
        before = self._watch().signs(self.line.t0, y0)
        tableau = self.run.solver.increments
        slopes = (tuple(jnp.zeros_like(leaf) for leaf in y0),) * (tableau.stages + (not tableau.fsal))
        zero = jnp.zeros((), self.line.t0.dtype)
        return LastStep(
            self.line.t0,
            y0,
            y0,
            slopes,
            EventBracket(before, zero, zero, jnp.zeros(before.shape, bool), jnp.zeros((), bool)),
        )

    def _watch(self) -> Watch:
        assert self.event is not None
        return Watch(self.event, self.run.layout, self.line.clock)

    def _look(
        self, pace: LoopState, last: LastStep, carry: _LoopCarry, t1: Array, y1: Leaves, slopes: Any, accepted: Any
    ) -> tuple[Any, LoopState, LastStep]:
        """Whether the step is accepted, where the loop is if an event in it ends it, and what was seen of the last
        accepted step. One in which a condition is NaN is not: the solve ends before it.

        A row that an event has ended stays in the loop until the slowest one is done, and none of its further passes is
        an accepted step: what has happened outlives them.
        """
        t, y = carry.pace.t, carry.y
        h = t1 - t

        def at(position: Array) -> Leaves:
            return between(self.run.solver.increments, position, y, h, slopes)

        look = self._watch().look(at, t, h, y1, last.look.before)
        undefined = accepted & look.undefined
        tried = carry.pace._replace(rejected=carry.pace.rejected + 1)
        pace = choose(undefined, tried.ended(undefined, Result.EVENT_NAN), pace)
        accepted &= ~undefined
        ends = look.happened.any() & accepted
        outcome = jnp.where(ends, CODE[Result.EVENT], pace.outcome).astype(jnp.int32)
        pace = pace._replace(alive=pace.alive & ~ends, outcome=outcome)
        return accepted, pace, choose(accepted, LastStep(t, y, y1, slopes, look), last)

    def _result(self, carry: _LoopCarry, ts: Array | None) -> AdaptiveResult:
        pace, output, ys, y1, end = carry.pace, carry.output, carry.ys, carry.y, carry.pace.t
        position, entry, slope = None, None, ()
        if carry.last_step is not None and self.event is not None:
            last, watch, tableau = carry.last_step, self._watch(), self.run.solver.increments
            h, met = pace.t - last.t, last.look.happened.any()

            def at(position: Array) -> Leaves:
                return between(tableau, position, last.y, h, last.slopes)

            look = watch.locate(at, last.t, h, last.look)
            position = jnp.where(met, look.high, 1).astype(h.dtype)
            inside = met & (position < 1)
            end = jnp.where(inside, last.t + position * h, pace.t)
            y1 = choose(inside, at(position), carry.y)
            slope = slope_between(tableau, position, last.slopes)
            entry = jnp.argmax(watch.happened(end, y1, look.before))
            if ts is not None:
                until = end + self.line.sign * self._slack(last.t, pace.t)
                output, ys = self._emit(ts, output, ys, met, (last.t, pace.t), until, last.y, last.y1, last.slopes)
        return AdaptiveResult(ys, y1, carry.y, end, pace, output, carry.renewals, carry.record, position, entry, slope)


def renewed_end(here: AcceptedRun, needed: Any, y1: Leaves, otherwise: Leaves) -> Leaves:
    """The slope at the end of a step, where it is needed."""
    return jax.lax.cond(needed, lambda: here.slope(0, 1.0, y1), lambda: otherwise)
