"""The continuous adjoint of an adaptive solve, by a backward solve with step-size control of its own.

Its certificate is by what is known of y where it arrives: at t0, and at the times that were kept (`way_back`).

Over 250 lines: one step, and what it carries, read each other throughout.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer

from odenet import ContinuousAdjoint, GradientError, PIDController, Result, Stats, UnsupportedError
from odenet.kit import WHOLE, Alarm, AnySolver, add, local_error, trial
from odenet_jax.field.state import Leaves
from odenet_jax.gradients.accepted_steps import AcceptedStepVJP, BackwardPass, Cotangents
from odenet_jax.gradients.adjoint import Sums, vjp
from odenet_jax.gradients.certificate import certify, root
from odenet_jax.gradients.compared_steps import magnitude
from odenet_jax.gradients.network_gradient import EXACT, NetworkGradient
from odenet_jax.gradients.runtime_errors import raised
from odenet_jax.gradients.way_back import Derivatives, WayBack
from odenet_jax.steps.accepted import Accepted, AcceptedRun, SolveTimes
from odenet_jax.steps.clock import TimePoint
from odenet_jax.steps.fixed import read
from odenet_jax.steps.record import AdaptiveResult, Keep
from odenet_jax.steps.size_control import CODE, LoopState, finite, first_size, judge, propose, repeat, start
from odenet_jax.steps.tolerance import NORMS, Tolerance, scaled
from odenet_jax.steps.weighted_sum import choose, weigh_leaves

REMEDY = "take gradient='checkpoint', which solves nothing backward; or a larger max_steps, looser rtol and atol for it"
MOST_COMPARED = 2**14
"""Steps of the drop-in, whose number has no bound that a buffer could have: more are not compared, which is said."""
REMEDY_OF_DROP_IN = "give a larger mxstep, or larger rtol and atol; or take odenet.solve with gradient='checkpoint'"


class _CostateCarry(NamedTuple):
    """The state is y and its adjoint; `parts` is the integrand of the weights' gradient at the start of the step, and
    `came` where the last step did start."""

    pace: LoopState
    state: Leaves
    first: Leaves
    parts: Any
    output: Array
    sums: Sums
    came: Array
    way: WayBack


class AdaptiveCostate(BackwardPass):
    """The augmented system with step-size control of its own. The gradient of the weights is added up beside it."""

    def __init__(
        self,
        method: ContinuousAdjoint,
        solver: AnySolver,
        control: PIDController,
        stats: Stats,
        alarm: Alarm | None,
        *,
        resolve: Callable[..., Any] | None = None,
    ) -> None:
        self.method = method
        self.stats, self.alarm = stats, alarm
        self.resolve = resolve
        self.solver, _ = method.backward(solver, 1)
        # tolerances and norm come with the solve, and may hold arrays of it
        self.apart = callable(control.norm)
        self.norm = "rms" if callable(control.norm) else control.norm
        self.control = dataclasses.replace(control, rtol=1.0, atol=1.0, norm="rms")

    @property
    def choices(self) -> dict[str, Any]:
        """What its programs depend on: all but what belongs to one solve, and is told of by `settled`."""
        return {name: value for name, value in vars(self).items() if name not in ("stats", "alarm")}

    def keep(self, run: AcceptedRun, y0: Leaves, max_steps: int) -> Keep:
        if not run.field.compared_whole(y0):
            return Keep()
        keep = EXACT.keep(run, y0, max_steps)
        return keep if self.resolve is None else dataclasses.replace(keep, most=MOST_COMPARED)

    def back(
        self,
        run: AcceptedRun,
        result: AdaptiveResult,
        gradients: Cotangents,
        sums: Sums,
        y0: Leaves,
        allowed: Tolerance,
    ) -> tuple[Leaves, Sums, Array, Any]:
        """The costate is solved backward, from each kept time to the one before it.

        Raises:
            UnsupportedError: a loss of dense output.
        """
        if gradients.slopes:
            raise UnsupportedError(
                "gradient 'continuous-adjoint' through Solution.at, which reads the steps of the forward solve",
                "the times in ts",
                "give ts, or take gradient='checkpoint'",
            )
        beside = None
        if run.field.compared_whole(y0):
            beside = NetworkGradient.of_accepted_steps(run, result, gradients, sums, y0, allowed)
        taken = result.pace.accepted
        ts = jnp.zeros(0, run.layout.time) if gradients.ts is None else gradients.ts
        end, y1 = self._last_read(result, gradients)
        result = result._replace(y1=y1)
        line = run.line.turned(end, ts)
        run = dataclasses.replace(run, grid=Accepted(line, ts, jnp.int32(0)), solver=self.solver)
        there = run.between(line.t0, line.stop(line.t0))
        a, output = self._meet(line, gradients, result.outputs - 1, line.t0, gradients.y1)
        state, allowed = (*y1, *a), self._tolerance(allowed)
        first, parts = self._slope(there, there.moment(0), state)
        size = first_size(
            self.control,
            self.solver.increments,
            allowed,
            line,
            lambda t, at: self._slope(there, t, at)[0],
            state,
            first,
        )
        pace = start(line, size, finite(state, first))
        carry = _CostateCarry(pace, state, first, parts, output, sums, line.t0, WayBack.start(line.t0))

        def step(carry: _CostateCarry) -> _CostateCarry:
            return self._step(run, line, allowed, result, gradients, carry)

        carry = repeat(lambda carry: carry.pace.alive, step, carry)
        count = len(a)
        here, evaluated = run.between(carry.came, line.t1), (carry.first, carry.parts)
        way = self._arrived(carry.way, here, allowed, y0, carry.state, y1, evaluated, True, last=True)
        a, _ = self._meet(line, gradients, carry.output, line.t1, carry.state[count:])
        if beside is None:
            error, place = way.certificate(carry.sums, by_y0=gradients.by_y0), -1
        else:
            error, place = beside.certificate(a, carry.sums, by_y0=gradients.by_y0), WHOLE
            if self.resolve is not None:
                error = jnp.where(taken > MOST_COMPARED, jnp.inf, error)
        # gradients that are all zero are right, whatever was rebuilt for them; one that ended early is said otherwise
        read = jnp.stack([jnp.any(leaf != 0) for leaf in a]).any() & (carry.pace.outcome == CODE[Result.SUCCESS])
        error = jnp.where(read, error, jnp.zeros((), error.dtype))
        return a, carry.sums, error, (carry.pace, error, jnp.int32(place))

    def settled(self, gradients: Any, trouble: Any) -> Any:
        """The gradients, unless the backward solve could not go on."""
        pace, *worst = trouble
        gradients = ended(gradients, pace, drop_in=self.resolve is not None)
        of = "way back" if self.resolve is None else "drop-in back"
        return certify(self.stats, self.alarm, pace.accepted, (worst[0], worst[1]), gradients, of)

    @staticmethod
    def _last_read(result: AdaptiveResult, gradients: Cotangents) -> tuple[Array, Leaves]:
        """Where the backward pass begins, and the state there: where the solve ended; the last of the kept times where
        it could not go on, and no later state is read: what stopped it may stop the backward pass."""
        if gradients.ts is None or not gradients.ts.shape[0]:
            return result.end, result.y1
        n, read_end = jnp.maximum(result.outputs - 1, 0), jnp.stack([jnp.any(leaf != 0) for leaf in gradients.y1]).any()
        before = (result.pace.outcome > CODE[Result.EVENT]) & (result.outputs > 0) & ~read_end
        return jnp.where(before, gradients.ts[n], result.end), choose(before, read(result.ys, n), result.y1)

    def _step(
        self,
        run: AcceptedRun,
        line: SolveTimes,
        allowed: Tolerance,
        result: AdaptiveResult,
        gradients: Cotangents,
        carry: _CostateCarry,
    ) -> _CostateCarry:
        tableau, count = self.solver.increments, len(carry.state) // 2
        step = propose(line, carry.pace)
        here, integrands = run.between(carry.pace.t, step.t1), [carry.parts]
        assert here.ends is not None
        moments = [line.moment(*here.ends, node) for node in tableau.c]

        def stage(i: int, at: Leaves) -> Leaves:
            slope, parts = self._slope(here, moments[i], at)
            integrands.append(parts)
            return slope

        attempt = trial(tableau, stage, carry.state, here.size, carry.first, weigh_leaves)
        assert tableau.error_weights is not None
        by_weights, error, before, after = self._quadrature(here, carry, integrands)
        ratio = allowed.ratio((*attempt.error, *error), (*carry.state, *before), (*attempt.y1, *after))
        accepted, now = judge(self.control, tableau.error_order, line, carry.pace, step, ratio)
        sums = AcceptedStepVJP.collect(here, accepted, carry.sums, by_weights)
        output, a = carry.output, attempt.y1[count:]
        ends = carry.state[count:], a
        slopes = attempt.slopes[0][count:], attempt.slopes[-1][count:]
        way = carry.way.step(accepted, here.size, attempt.error[count:], ends, slopes, local_error(tableau))
        a, met = self._meet(line, gradients, output, step.t1, a, accepted)
        y = attempt.y1[:count]
        if gradients.ts is not None:  # where the forward solve is known, go on from there
            exact = read(result.ys, jnp.minimum(met + 1, gradients.ts.shape[0] - 1))
            evaluated = attempt.slopes[-1], integrands[-1]
            way = self._arrived(way, here, allowed, exact, attempt.y1, result.y1, evaluated, met < output)
            y = choose(met < output, exact, y)
        state, first, parts = (*y, *a), attempt.slopes[-1], integrands[-1]
        needed = accepted & now.alive & (bool(not tableau.fsal) | (met < output) | line.jumping(step.t1))
        if not tableau.fsal or gradients.ts is not None or line.jumps.shape[0]:

            def renew() -> Any:
                there = run.between(step.t1, line.stop(step.t1))
                return self._slope(there, there.moment(0), state)

            first, parts = lax.cond(needed, renew, lambda: (first, parts))
        old = (carry.state, carry.first, carry.parts)
        state, first, parts = choose(accepted, (state, first, parts), old)
        came = jnp.where(accepted, carry.pace.t, carry.came)
        output = jnp.where(accepted, met, output)
        return _CostateCarry(now, state, first, parts, output, sums, came, way)

    def _arrived(
        self,
        way: WayBack,
        run: AcceptedRun,
        allowed: Tolerance,
        known: Leaves,
        state: Leaves,
        y1: Leaves,
        evaluated: tuple[Leaves, Any],
        reached: Any,
        *,
        last: bool = False,
    ) -> WayBack:
        """What is known of the way back where a step ended, if that is where y is known.

        Args:
            way: before that.
            run: at the step.
            allowed: tolerance of the backward steps.
            known: what y is there.
            state: y and its adjoint, integrated back.
            y1: y at t1.
            evaluated: their slopes there, of a tableau whose last stage is the first of the next step.
            reached: whether y is known there.
            last: whether that is t0.
        """
        count, tableau, ends = len(known), self.solver.increments, run.ends
        assert ends is not None
        a = state[count:]

        def derivatives() -> tuple[Derivatives, Derivatives, Leaves]:
            moment = run.line.moment(*ends, 1.0)
            states = [known, tuple((one + other) / 2 for one, other in zip(known, y1, strict=True))]
            if not tableau.fsal:
                states.append(state[:count])
            # one after the other: the field is compiled once for them
            rows = tuple(jnp.stack(column) for column in zip(*states, strict=True))
            slopes, parts = lax.map(lambda y: self._slope(run, moment, (*y, *a)), rows)
            at_each = [jax.tree.map(lambda leaf, i=i: leaf[i], (slopes[count:], parts)) for i in range(len(states))]
            exact, half, *others = at_each
            rebuilt = (evaluated[0][count:], evaluated[1]) if tableau.fsal else others[0]
            return exact, rebuilt, half[0]

        least = functools.reduce(jnp.minimum, [jnp.min(jnp.asarray(bound)) for bound in allowed.rtol])
        return way.arrived(reached, ends[1], known, state[:count], a, least, derivatives, last=last)

    def _slope(self, run: AcceptedRun, t: TimePoint, state: Leaves) -> tuple[Leaves, Any]:
        """The slopes of y and its adjoint, and the integrand of the weights' gradient."""
        count = len(state) // 2
        slope, pull = vjp(run, lambda run, y: run.slope_at(t, y), state[:count])
        part, *by_reads = pull(state[count:])
        return (*slope, *(-p for p in part)), tuple(by_reads)

    def _quadrature(
        self, run: AcceptedRun, carry: _CostateCarry, integrands: list[Any]
    ) -> tuple[Any, Leaves, Leaves, Leaves]:
        """What a step adds to the gradient of the weights; its error and the gradient at both ends, if it counts."""
        h, tableau, leaves = run.size, self.solver.increments, [tuple(jax.tree.leaves(parts)) for parts in integrands]
        assert tableau.error_weights is not None
        if not leaves[0]:
            return integrands[0], (), (), ()
        added = weigh_leaves(None, -h, tableau.b, leaves)
        integral = jax.tree.unflatten(jax.tree.structure(integrands[0]), added)
        if self.method.seminorm:
            return integral, (), (), ()
        error = weigh_leaves(None, h, tableau.error_weights, leaves)
        inexact, closed = carry.sums
        slot = run.field.slot(dataclasses.replace(run.weights, inexact=inexact), run.layer, run.field.intervals)
        before = tuple(jax.tree.leaves((inexact if slot is None else (slot.start, slot.end), closed)))
        return integral, error, before, add(before, added)

    def _tolerance(self, allowed: Tolerance) -> Tolerance:
        """For y, its adjoint, and (without seminorm) the gradient of the weights."""
        method = self.method
        rtol = allowed.rtol if method.rtol is None else (method.rtol,) * len(allowed.rtol)
        atol = allowed.atol if method.atol is None else (method.atol,) * len(allowed.atol)
        count = len(rtol)
        norm = allowed.norm if self.apart else NORMS[self.norm]
        return _Doubled(rtol, atol, norm, allowed.time, count, self.apart, in_units=self.resolve is None)

    @staticmethod
    def _meet(
        line: SolveTimes, gradients: Cotangents, output: Array, t: Array, a: Leaves, going: Any = True
    ) -> tuple[Leaves, Array]:
        """The adjoint with the gradients of the outputs at t, and the last output before it."""
        if gradients.ts is None:
            return a, output
        place = jnp.arange(gradients.ts.shape[0], dtype=jnp.int32)
        met = (place <= output) & (line.sign * (gradients.ts - t) <= 0) & going
        added = tuple(jnp.where(met.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0).sum(0) for leaf in gradients.ys)
        return add(a, added), output - met.sum(dtype=output.dtype)


def ended(gradients: tuple[Leaves, Any, Array], pace: LoopState, *, drop_in: bool = False) -> tuple[Leaves, Any, Array]:
    """What the backward pass found, if it has reached t0; of rows of a `jax.vmap` those that have not are NaN.

    Raises:
        GradientError: it has not; a compiled program raises a RuntimeError of this message when it runs.
    """
    subject, remedy = "the backward solve of gradient 'continuous-adjoint' stopped before t0", REMEDY
    allowed = "one that reaches it"
    if drop_in:
        subject, remedy = "odeint: the backward solve of its gradient stopped before t[0]", REMEDY_OF_DROP_IN
    if not isinstance(pace.outcome, Tracer):
        outcome = list(Result)[int(pace.outcome)]
        if outcome is Result.SUCCESS:
            return gradients
        raise GradientError(f"{subject}, at t={pace.t.item():.8g}: {outcome.happened}", allowed, remedy)
    return raised(gradients, pace.outcome != CODE[Result.SUCCESS], GradientError(subject, allowed, remedy), by_row=True)


@dataclasses.dataclass(frozen=True)
class _Doubled(Tolerance):
    """That of y for its adjoint as well, and its first for what follows these.

    The adjoint is as large as the loss is, and its equation is linear: with `in_units`, atol is held against it in
    units of its size, the root of its mean square, so that c times the loss has c times the gradient, by the same
    steps. An adjoint far below atol would be integrated by steps that nothing holds to it.
    """

    count: int
    apart: bool
    in_units: bool

    def _size(self, value: Leaves, sizes: Leaves, *, least: bool = False) -> Array:
        def smallest(bound: Any, leaf: Array) -> Any:
            return bound if isinstance(bound, float) else jnp.min(bound).astype(leaf.dtype)

        count, more = self.count, sizes[2 * self.count :]
        rtol, atol = (
            (*bounds, *bounds, *(smallest(bounds[0], leaf) for leaf in more)) for bounds in (self.rtol, self.atol)
        )
        if self.in_units:
            a = sizes[count : 2 * count]
            unit = magnitude(a, self.time) / root(max(sum(leaf.size for leaf in a), 1))
            of_adjoint = zip(atol[count:], sizes[count:], strict=True)
            atol = (*atol[:count], *(bound * unit.astype(leaf.dtype) for bound, leaf in of_adjoint))
        parts = scaled(value, sizes, rtol, atol, least)
        if not self.apart:
            return jnp.asarray(self.norm(parts), self.time)
        norms = [self.norm(parts[:count]), self.norm(parts[count : 2 * count])]
        norms += [jnp.max(leaf) for leaf in parts[2 * count :]]
        return jnp.max(jnp.stack([jnp.asarray(norm, self.time) for norm in norms]))
