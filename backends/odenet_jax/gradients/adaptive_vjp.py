"""An adaptive solve as a function of arrays, with a derivative of our own.

Over 250 lines: the derivative (`SolveDerivative`) and the solve (`DifferentiableSolve`) read each other.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero

from odenet import Event, GradientError, GridError, InputError, Problem, Result, Span, UnsupportedError
from odenet.kit import called
from odenet_jax.field.collectives import collective_axes, has_rule_of_rows
from odenet_jax.field.field import Weights
from odenet_jax.field.field import field as field_along
from odenet_jax.field.fingerprint import described
from odenet_jax.field.programs import compiled, kept
from odenet_jax.field.repeatable import repeatable
from odenet_jax.field.settings import Settings
from odenet_jax.field.state import Layout, Leaves, array_of
from odenet_jax.field.varying import LOOPS_OF_DIVIDED_ROWS, alike, alone, together, undivided
from odenet_jax.gradients.accepted_steps import BackwardPass, Cotangents
from odenet_jax.gradients.adjoint_again import adjoint_again
from odenet_jax.gradients.flow import meeting, passing
from odenet_jax.gradients.linear_map import REMEDY, Linear, carry, refuse_forward, with_rows
from odenet_jax.gradients.plain_steps import Gate, most_steps, plain_steps
from odenet_jax.gradients.runtime_errors import raised
from odenet_jax.gradients.unreached import reached
from odenet_jax.steps.accepted import Accepted, AcceptedRun, SolveTimes, line
from odenet_jax.steps.adaptive_loop import AdaptiveLoop
from odenet_jax.steps.clock import (
    Clock,
    TimePoint,
    beyond,
    coarse,
    require_fine,
    require_span,
    roundings,
    since,
    spelled,
    still,
)
from odenet_jax.steps.dense import Watch, without_rate
from odenet_jax.steps.record import AdaptiveResult, Keep
from odenet_jax.steps.size_control import CODE
from odenet_jax.steps.times import Times, moving, of_times
from odenet_jax.steps.tolerance import Tolerance, tolerance
from odenet_jax.steps.weighted_sum import choose, gated

_KEEPS = 16  # programs of one solve, by what is kept of it


class SolveOutputs(NamedTuple):
    """What a solve returns that has a gradient, and the rest of it."""

    y1: Leaves
    ys: Leaves
    y: Leaves
    slopes: tuple[Leaves, ...]
    result: AdaptiveResult


class DifferentiableSolve:
    """A solve as a function of arrays, with a gradient of our own.

    Args:
        problem: the problem.
        span: its times.
        layout: of the state.
        y0: leaves of the state at t0, for their shapes.
        way: the gradient method.
    """

    # of what `_bare` returns: what its programs are kept by, and these
    key: Hashable | None = None
    plainly: Callable[[Keep], Callable[..., AdaptiveResult]]
    passes: Callable[[Keep], tuple[Callable[..., SolveOutputs], Callable[..., tuple[SolveOutputs, AdaptiveResult]]]]
    steps: Callable[[Keep, Any, tuple[bool, ...]], SolveDerivative]
    crossing: Callable[..., tuple[Array, Leaves]]

    def __init__(self, problem: Problem, span: Span, layout: Layout, y0: Leaves, way: BackwardPass) -> None:
        if span.event is not None:
            span = dataclasses.replace(
                span, event=dataclasses.replace(span.event, condition=condition(span.event.condition))
            )
        self.problem, self.span, self.layout, self.way = problem, span, layout, way
        field, weights = field_along(problem.field, problem.weights)
        self.ends: tuple[Any, Any] = still((span.t0, span.t1))
        require_span(*self.ends, layout.time)
        self.times = tuple(jnp.asarray(t, layout.time) for t in (span.t0, span.t1))
        y0, weights = alike((y0, weights))
        self.field, self.weights = field.hoist(weights, self.times[0], layout.call(y0))
        self.line = self._line(y0)
        allowed = tolerance(span.control, layout, y0)
        self._require_alone(allowed, y0)
        norm = _hoisted(lambda leaves: jnp.asarray(allowed.norm(leaves)), tuple(jnp.abs(leaf) for leaf in y0))
        event = None
        if span.event is not None:
            event = _hoisted(span.event.condition, self.times[0], layout.call(y0), name="event")
        rtol, atol = allowed.rtol, allowed.atol
        if self.field.key is not None:  # another tolerance is no other program
            rtol, atol = (
                tuple(jnp.asarray(bound, leaf.real.dtype) for bound, leaf in zip(of, y0, strict=True))
                for of in (rtol, atol)
            )
        self.hoisted, self.rest = eqx.partition((rtol, atol, norm, event), eqx.is_array)

    def _require_alone(self, allowed: Tolerance, y0: Leaves) -> None:
        """Rows that read each other would read each other at different times: each has steps of its own.

        Raises:
            UnsupportedError: the field or an event reads other rows of a named axis, and the norm does not.
        """
        t0, y, event = self.times[0], self.layout.call(y0), self.span.event
        axes: set[str] = set()
        if self.field.collective:
            zero, slot = jnp.zeros_like(t0), self.field.slot(self.weights, jnp.int32(0), self.field.intervals)
            axes = collective_axes(lambda t, y: self.field(t, y, zero, slot, self.weights), t0, y)
        of_event = set() if event is None else collective_axes(event.condition, t0, y)
        programs = [self.field.program] + ([] if event is None else [jax.make_jaxpr(event.condition)(t0, y).jaxpr])
        self.alone = any(program is not None and has_rule_of_rows(program) for program in programs)
        if axes and event is None:  # rows of one error, and so of the same steps
            axes -= collective_axes(lambda *leaves: allowed.norm(leaves), *(jnp.abs(leaf) for leaf in y0))
        if axes | of_event:
            raise UnsupportedError(
                f"an adaptive solve of rows that read each other along the axis {', '.join(sorted(axes | of_event))} "
                "(pmean, psum, BatchNorm): each row would be at a time of its own",
                "equal steps; or a field that reads its own row alone",
                "give steps=N; or solve for all rows as one state, without jax.vmap around it",
            )

    def _line(self, y0: Leaves) -> SolveTimes:
        """The times, checked: those that are traced by numbers that are known when the solve runs."""
        span, kind, t0 = self.span, self.layout.time, self.times[0]
        times = line(*self.ends, span, self.field, kind, unmixed=bool(self.weights.other))
        y = self.layout.call(y0)

        def field(t: Array) -> Any:
            slot = self.field.slot(self.weights, jnp.int32(0), self.field.intervals)
            return self.field(t, y, jnp.zeros((), kind), slot, self.weights)

        readers = [("field", field, (t0,))]
        if span.event is not None:
            condition = span.event.condition
            readers.append(("event", lambda t: condition(t, y), (t0,)))
        fine = require_fine(*self.ends, kind, *readers)
        if not any(isinstance(t, Tracer) for t in self.ends):
            return times
        first, last = (jnp.asarray(t) for t in self.ends)
        sound = jnp.isfinite(times.t1) & ((times.t1 != 0) | (first == last))
        return dataclasses.replace(times, sound=sound if fine else sound & ~coarse(*self.ends, kind))

    def offsets(self, ts: Any) -> tuple[Array, Array]:
        """Times to be kept since t0, in the order of the solve; and which of them can be kept.

        What is out of order, or outside of the solve, stands for the time before it. Known times are refused.

        Raises:
            GridError: a known time outside of the solve.
        """
        line, kind = self.line, self.layout.time
        ts = still(ts)
        of = jnp.asarray(since(ts, line.clock.origin, kind))
        beside = beyond(of, line.t1, roundings(ts, of, line.clock.origin))
        if not isinstance(beside, Tracer) and beside.any():
            ends = [spelled(line.clock.origin, s) for s in (line.t0, line.t1)]
            raise GridError(f"ts={np.asarray(ts).tolist()} leaves [{ends[0]}, {ends[1]}]", "times between t0 and t1")
        sign = line.sign
        of = jnp.where(beside, -float(jnp.finfo(kind).max), jnp.clip(sign * of, 0, sign * line.t1))
        latest = lax.cummax(of)
        return sign * jnp.maximum(latest, 0), ~beside & (of == latest)

    def solve(
        self,
        y0: Leaves,
        ts: Any,
        keep: Keep,
        probe: Array | None,
        *,
        differentiable: bool,
        offsets: Array | None = None,
    ) -> tuple[AdaptiveResult, tuple[Array, Leaves] | None]:
        """From y0 to t1.

        Args:
            y0: the state at t0.
            ts: the times to be kept; None for none, or where they are given since t0 as `offsets`.
            keep, probe, differentiable: what is kept beside, see `odenet_jax.solve`, and whether gradients are asked.
            offsets: see `ts`.

        Returns:
            The solve, and time and state of an event with their derivatives.
        """
        probe = jnp.asarray(0 if probe is None else probe, self.layout.time)
        good = None
        if ts is not None:
            offsets, good = self.offsets(ts)
        arguments = (
            y0,
            (self.weights.inexact, self.weights.closed),
            (*self.times, None if ts is None else jnp.asarray(ts, self.layout.time)),
            (self.weights.other, self.weights.constants, self.hoisted, self.line, offsets),
            probe,
        )
        arguments = alike(arguments)
        bare = self._bare()
        bare = kept(bare.key, lambda: bare)
        if not differentiable:
            return bare.plainly(keep)(*lax.stop_gradient(arguments[:4])), None
        out = bare.network(keep, self.way)(*arguments)
        plain = lax.stop_gradient(out.result)
        result = plain._replace(y1=out.y1, ys=out.ys, record=plain.record._replace(y=out.y, slopes=out.slopes))
        # what is no result is made NaN here, where JAX differentiates: the backward pass does not meet it
        sources = (*arguments[:2], [t for t in arguments[2] if t is not None])
        # of a drop-in nobody is told the outcome
        results = functools.partial(reached, strict=self.way.resolve is not None)
        if offsets is not None:
            there = jnp.arange(offsets.shape[0], dtype=jnp.int32) < lax.stop_gradient(result.outputs)
            result = result._replace(ys=results(there if good is None else there & good, result.ys, sources))
        ended = result.pace.outcome <= CODE[Result.EVENT]
        last, event = result.y1, None
        if self.span.event is not None:
            met = result.pace.outcome == CODE[Result.EVENT]
            t, y1 = self._met(bare, met, result)
            last = choose(met, y1, last)
            event = results(met, t, (sources, eqx.filter(self.hoisted[3], eqx.is_inexact_array))), y1
        return result._replace(y1=results(ended, last, sources), last=last), event

    def _met(self, bare: DifferentiableSolve, met: Array, result: AdaptiveResult) -> tuple[Array, Leaves]:
        """Time and state of an event with their derivatives, where one has been met: the time by the implicit function
        theorem."""
        of = (self.weights.inexact, self.weights.closed)
        rest = lax.stop_gradient((self.weights.other, self.weights.constants, self.hoisted, self.line, None))
        return bare.crossing(met, lax.stop_gradient(result.end), result.entry, result.y1, of, self.hoisted, rest)

    def _crossing(
        self, met: Array, end: Array, entry: Array, y1: Leaves, of: Any, hoisted: Any, rest: Any
    ) -> tuple[Array, Leaves]:
        """The time and the state of the event as a function of arrays alone."""
        *_, event = eqx.combine(hoisted, self.rest)
        holds, other = eqx.partition(event, eqx.is_inexact_array)
        fixed, static = eqx.partition(other, eqx.is_array)
        y1, holds, of = gated(met, (y1, holds, of))
        span_event, clock = self.span.event, rest[3].clock
        assert span_event is not None

        def value(s: Array, y: Leaves, holds: Any, fixed: Any) -> Array:
            of = dataclasses.replace(span_event, condition=eqx.combine(holds, fixed[0], static))
            return Watch(of, self.layout, fixed[1]).value(time_at(fixed[1], s), y)

        if jax.eval_shape(value, end, y1, holds, (fixed, clock)).dtype == bool:
            return without_rate(clock.time(end), y1)

        def condition(s: Array, y: Leaves, holds: Any, fixed: Any) -> Array:
            return value(s, y, holds, fixed)[fixed[2]]

        s = meeting(condition, self.slope, end, y1, of, holds, (rest, (fixed, clock, entry)))
        return time_at(clock, s), passing(self.slope, s, end, y1, of, rest)

    def slope(self, s: Array, y: Leaves, of: Any, rest: Any) -> Leaves:
        """The field at a time since t0 as a function of arrays alone, see `odenet_jax.gradients.flow.Slope`."""
        run, _, _ = self._run(of, rest)
        before = jnp.nextafter(*lax.stop_gradient((s, run.line.t0)))  # the layer that an event lies in
        return run.between(before, before).slope_at(TimePoint(s, time_at(run.line.clock, s)), y)

    def _run(self, of: Any, rest: Any) -> tuple[AcceptedRun, Tolerance, Event | None]:
        (inexact, closed), (other, constants, hoisted, line, _) = of, rest
        rtol, atol, norm, condition = eqx.combine(hoisted, self.rest)
        grid = Accepted(line, jnp.zeros(2, self.layout.time), jnp.int32(0))
        weights = Weights(inexact, other, closed, constants)
        run = AcceptedRun(self.field, self.layout, grid, self.problem.solver, weights)  # pyright: ignore[reportArgumentType]
        event = self.span.event and dataclasses.replace(self.span.event, condition=condition)
        return run, Tolerance(rtol, atol, norm, self.layout.time), event

    def _solve(self, y0: Leaves, of: Any, times: Any, rest: Any, keep: Keep) -> AdaptiveResult:
        # then it writes to rows, and reads from them
        if keep != Keep() or rest[-1] is not None or not LOOPS_OF_DIVIDED_ROWS:
            y0, of = undivided((y0, of))
        if self.alone:
            y0, of, rest = alone((y0, of, rest))
        run, allowed, event = self._run(of, rest)
        return AdaptiveLoop(run, self.span.control, allowed, event, keep).solve(y0, rest[-1])

    def _bare(self) -> DifferentiableSolve:
        """The same without the arrays of this call, which may be traced: JAX keeps it for as long as a
        backward pass."""
        bare = copy.copy(self)
        control = dataclasses.replace(self.span.control, rtol=1.0, atol=1.0, norm="rms")  # these are among `hoisted`
        event = self.span.event and dataclasses.replace(self.span.event, condition=_nothing)
        bare.span = dataclasses.replace(self.span, t0=None, t1=None, ts=None, control=control, event=event)
        bare.problem = dataclasses.replace(self.problem, field=_nothing, y0=None, weights=None, grid=bare.span)
        del bare.weights, bare.times, bare.ends, bare.line, bare.hoisted
        bare.key = bare._key()
        bare.plainly = functools.lru_cache(maxsize=_KEEPS)(bare._plainly)
        bare.passes = functools.lru_cache(maxsize=_KEEPS)(bare._passes)
        bare.steps = functools.lru_cache(maxsize=_KEEPS)(functools.partial(SolveDerivative, bare))
        bare.crossing = compiled(bare._crossing, bare.key)
        return bare

    def _key(self) -> Hashable | None:
        """What its programs are kept by (see `odenet_jax.field.programs`)."""
        if self.field.key is None:
            return None
        leaves, structure = jax.tree.flatten(self.rest)
        of = (self.span, self.problem.solver, self.problem.gradient, type(self.way), self.way.choices, leaves)
        key, layout = described(*of), self.layout
        if key is None:
            return None
        return key, self.field.key, structure, (layout.structure, layout.dtypes, layout.carried, layout.time)

    def _plainly(self, keep: Keep) -> Callable[..., AdaptiveResult]:
        """The solve without a derivative."""
        return compiled(functools.partial(self._solve, keep=keep), self.key)

    def _passes(
        self, keep: Keep
    ) -> tuple[Callable[..., SolveOutputs], Callable[..., tuple[SolveOutputs, AdaptiveResult]]]:
        """The forward pass, and that which also keeps what the backward pass needs."""

        def out(result: AdaptiveResult) -> SolveOutputs:
            return SolveOutputs(result.y1, result.ys, result.record.y, result.record.slopes, result)

        def forward_pass(y0: Leaves, of: Any, times: Any, rest: Any) -> SolveOutputs:
            also = dataclasses.replace(keep, nodes=keep.dense > 0)
            return out(self._solve(y0, of, times, rest, also))

        def forward_pass_for_back(y0: Leaves, of: Any, times: Any, rest: Any) -> tuple[SolveOutputs, AdaptiveResult]:
            run, _, _ = self._run(of, rest)
            keeps = self.way.keep(run, y0, self.span.control.max_steps)
            keeps = dataclasses.replace(keeps, dense=keep.dense, nodes=keeps.nodes or keep.dense > 0)
            result = self._solve(y0, of, times, rest, keeps)
            record = result.record
            unseen = record._replace(states=None, nodes=record.nodes if keep.dense else None)
            for_back = result._replace(y1=(), ys=(), record=record._replace(y=(), slopes=()))
            return out(result)._replace(result=result._replace(record=unseen)), for_back

        return compiled(forward_pass, self.key), compiled(forward_pass_for_back, self.key)

    def network(self, keep: Keep, way: BackwardPass) -> Callable[..., SolveOutputs]:
        """The solve with its derivative: forward passes that keep what the backward pass needs only where there is one.

        Args:
            keep: what is kept of it for its user.
            way: the gradient method, as it is for this solve.
        """
        at_once, for_way_back = self.passes(keep)
        settings = Settings()

        @jax.custom_jvp
        def plain(y0: Leaves, of: Any, times: Any, rest: Any, probe: Array) -> SolveOutputs:
            outputs = at_once(y0, of, times, rest)
            return SolveOutputs(*with_rows(outputs[:4], (y0, of, times, probe)), outputs.result)

        @jax.custom_jvp
        def keeping(y0: Leaves, of: Any, times: Any, rest: Any, probe: Array) -> tuple[SolveOutputs, AdaptiveResult]:
            outputs, for_back = for_way_back(y0, of, times, rest)
            return SolveOutputs(*with_rows(outputs[:4], (y0, of, times, probe)), outputs.result), for_back

        def derivative(primals: Any, tangents: Any) -> tuple[Any, Any]:
            y0, of, times, rest, probe = primals
            outputs, for_back = keeping(y0, of, times, rest, probe)  # pyright: ignore[reportCallIssue]
            leaves, structure = jax.tree.flatten((y0, of, times, probe))
            moved = structure.flatten_up_to((*tangents[:3], tangents[4]))
            differentiated = tuple(not isinstance(tangent, SymbolicZero) for tangent in moved)
            if not any(differentiated):  # of what has no derivative
                return (outputs, for_back), _unmoved((outputs, for_back))
            t0, t1, ts = (value if ask else None for value, ask in _times(times, differentiated, structure))
            moving(self.field, t0, t1, ts)
            rule = Derivative(self.steps(keep, structure, differentiated), way, settings)
            carried = carry(
                rule,
                (leaves, rest, outputs[:4], for_back),
                outputs[:4],
                [t for t, ask in zip(moved, differentiated, strict=True) if ask],
            )
            return (outputs, for_back), (SolveOutputs(*carried, _unmoved(outputs.result)), _unmoved(for_back))  # pyright: ignore[reportCallIssue]

        def visible(primals: Any, tangents: Any) -> tuple[Any, Any]:
            (outputs, _), (moved, _) = derivative(primals, tangents)
            return outputs, moved

        keeping.defjvp(settings.kept(derivative), symbolic_zeros=True)
        plain.defjvp(settings.kept(visible), symbolic_zeros=True)
        return plain


@dataclass(frozen=True, eq=False)
class Derivative(Linear):
    """The derivative of one solve.

    Args:
        steps: it, as of any solve of the same programs.
        way: the gradient method, which tells what is to be said of this solve.
        settings: what JAX was set to around it.
    """

    steps: SolveDerivative
    way: BackwardPass
    settings: Settings

    def forward(self, residuals: Any, tangents: Any) -> Any:
        with self.settings.restored():
            return self._whole(residuals[3], self.steps.forward(residuals, tangents))

    def backward(self, residuals: Any, cotangents: Any) -> Any:
        with self.settings.restored(), together():
            found = self.way.settled(*self.steps.back(residuals, cotangents))
            return self._whole(residuals[3], self.steps.picked(found))

    def second(self, residuals: Any, cotangents: Any) -> Any:
        with self.settings.restored():
            return self._whole(residuals[3], self.steps.second(residuals, cotangents))

    def _whole(self, solve: AdaptiveResult, derivative: Any) -> Any:
        """The derivative, which is that of all steps.

        Raises:
            GradientError: there were more than whose times are kept; a compiled program raises a RuntimeError of this
                message when it runs. Of rows of a `jax.vmap` those with more are NaN.
        """
        if self.way.resolve is not None or not self.steps.bounded(solve):  # a drop-in says so by its certificate
            return derivative
        assert solve.record.nodes is not None
        most, accepted = solve.record.nodes.shape[0] - 1, solve.pace.accepted
        error = GradientError(
            f"a derivative of a solve of more than {most} steps",
            f"at most {most}, whose times are kept for it",
            "take looser rtol and atol; or solve in several parts, each from the end of the one before",
        )
        if isinstance(accepted, Tracer):
            return raised(derivative, accepted > most, error, by_row=True)
        if int(accepted) > most:
            raise error
        return derivative


@dataclass(frozen=True, eq=False)
class SolveDerivative:
    """The derivative of a solve, its steps taken as they are, and its gradient method.

    Args:
        whole, keep: the solve, and what was kept of it for its user.
        structure: of `(y0, weights, times, probe)`.
        differentiated: which of its leaves a derivative is asked for.
    """

    whole: DifferentiableSolve
    keep: Keep
    structure: Any
    differentiated: tuple[bool, ...]

    def bounded(self, result: AdaptiveResult) -> bool:
        """Whether the times of fewer steps are kept for the backward pass than the controller allows for."""
        nodes = result.record.nodes
        return nodes is not None and nodes.shape[0] <= self.whole.span.control.max_steps

    def forward(self, residuals: Any, tangents: Any) -> Any:
        """The tangents of the solve, where the method has forward mode."""
        label = self.whole.problem.gradient.label
        if not self.whole.way.again:
            refuse_forward(label, drop_in=self.whole.way.resolve is not None)
        return self._again(False, most_steps(residuals[3]))(residuals, tangents)

    @functools.cached_property
    def back(self) -> Callable[..., Any]:
        """The gradients by y0, by what the field reads, by times and the probe; and what `BackwardPass.settled` looks
        at."""
        return compiled(self._back, self.whole.key)

    def _back(self, residuals: Any, cotangents: Any) -> tuple[Any, Any]:
        leaves, rest, (end, kept_ys, *_), result = residuals
        y0, of, times, _ = jax.tree.unflatten(self.structure, leaves)
        ts = rest[-1]
        result = result._replace(y1=end, ys=kept_ys)
        result = self._unread(result, rest, y0, cotangents)
        run, allowed = self._run(of, rest, result)
        read = bool(jax.tree.leaves(cotangents[2:]))
        y1, ys, y, slopes = self._filled(residuals, cotangents)
        by_y0 = any(jax.tree.leaves(jax.tree.unflatten(self.structure, self.differentiated)[0]))
        meeting = Cotangents(y1, ts, ys, *((y, slopes) if read else ((), ())), by_y0)
        sums = jax.tree.map(jnp.zeros_like, of)
        g, sums, residual, trouble = self.whole.way.back(run, result, meeting, sums, y0, allowed)
        needed = Times(*(t if ask else None for t, ask in _times(times, self.differentiated, self.structure)))
        moved = of_times(run, needed, ts, result, y0, g, y1, ys)
        return (g, sums, tuple(moved), residual), trouble

    def _unread(self, result: AdaptiveResult, rest: Any, y0: Leaves, cotangents: Any) -> AdaptiveResult:
        """The solve; one that nobody reads a state of with no step taken.

        The backward pass from where it stopped would meet what stopped it: steps that vanish, or states that overflow.
        From its end, it may miss the tolerance of the backward pass. Where rows read each other they go back together.
        """
        idle = ~jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(cotangents)]).any()
        if self.whole.field.collective:
            idle &= result.pace.outcome > CODE[Result.EVENT]
        pace = result.pace._replace(accepted=jnp.where(idle, 0, result.pace.accepted))
        end, outputs = jnp.where(idle, rest[3].t0, result.end), jnp.where(idle, 0, result.outputs)
        y1, last = (choose(idle, y0, y) for y in (result.y1, result.last))
        return result._replace(pace=pace, end=end, outputs=outputs, y1=y1, last=last)

    def second(self, residuals: Any, cotangents: Any) -> Any:
        """The backward pass as a program that JAX can differentiate again."""
        label, way = self.whole.problem.gradient.label, self.whole.way
        if way.resolve is not None:
            return self._by_solves(residuals, cotangents)
        if not way.again:
            raise UnsupportedError(f"a second derivative through gradient={label!r}", "first derivatives", REMEDY)
        if isinstance(residuals[3].pace.accepted, Tracer) and self.bounded(residuals[3]):
            raise UnsupportedError(
                f"a second derivative of an adaptive solve with max_steps={self.whole.span.control.max_steps}, inside "
                "of jax.jit or jax.vmap, where the number of steps is not known: room would be made for all of them",
                f"max_steps of at most {most_steps(residuals[3])}",
                "give control=odenet.PIDController(rtol, atol, max_steps=...) with no more steps than the solve takes",
            )
        return self._again(True, most_steps(residuals[3]))(residuals, cotangents)

    @functools.cached_property
    def _by_solves(self) -> Callable[..., Any]:
        """The transpose as a program of solves."""

        def program(residuals: Any, cotangents: Any) -> Any:
            leaves, rest, (y1, kept_ys, *_), _ = residuals
            y0, of, times, probe = jax.tree.unflatten(self.structure, leaves)
            times = offsets(rest, times)
            ends, gradients = (y1, kept_ys), self._filled(residuals, cotangents)[:2]
            assert self.whole.way.resolve is not None
            g, sums, moved = adjoint_again(
                self.whole.way.resolve, self.whole.slope, of, rest, times, y0, ends, gradients
            )
            return self.picked((g, sums, tuple(moved), jnp.zeros_like(probe)))

        return compiled(program, self.whole.key)

    @functools.cached_property
    def _again(self) -> Callable[[bool, int], Callable[..., Any]]:
        """The map, or its transpose, as a program that JAX can differentiate, of a number of steps at most."""

        def program(transposed: bool, most: int) -> Callable[..., Any]:
            def linear(residuals: Any, values: Any) -> Any:
                function, moving = self._plain(residuals, gated if transposed else lambda _, tree: tree, most)
                if transposed:
                    return jax.vjp(function, moving)[1](self._filled(residuals, values))[0]
                return jax.jvp(function, (moving,), (values,))[1]

            return compiled(linear, self.whole.key)

        return functools.lru_cache(maxsize=_KEEPS)(program)

    def _plain(self, residuals: Any, gate: Gate, most: int) -> tuple[Callable[[list[Array]], Any], list[Array]]:
        """The outputs as a function of what a derivative is asked for, and that."""
        inputs, rest, _, result = residuals
        result = lax.stop_gradient(result)

        def function(moving: list[Array]) -> Any:
            some = iter(moving)
            leaves = [next(some) if ask else leaf for leaf, ask in zip(inputs, self.differentiated, strict=True)]
            y0, of, times, _ = jax.tree.unflatten(self.structure, leaves)
            run, _ = self._run(of, rest, result)
            line, ts = run.line, rest[-1]
            t0, t1, moved_ts = offsets(rest, times)
            shared, failed = run.field.kind == "shared", result.pace.outcome > CODE[Result.EVENT]
            begun = ~failed | (result.pace.accepted > 0)

            def passed(go: Array, place: Any, otherwise: Leaves) -> Leaves:
                moving, reads = gate(go, (place, of))
                return choose(go, passing(self.whole.slope, *moving, reads, rest), otherwise)

            if shared:  # also where no derivative by times is asked for now: one of this may be
                y0 = passed(begun, (line.t0, t0, y0), y0)
            y1, ys, y, slopes = plain_steps(run, result, y0, ts, self.keep.dense, gate, most)
            if shared:
                inside = jnp.zeros((), bool) if result.position is None else result.position < 1
                y1 = passed(~(failed | inside), (t1, line.t1, y1), y1)
            if times[2] is not None:
                reached = (jnp.arange(ts.shape[0], dtype=jnp.int32) < result.outputs) & begun
                ys = lax.map(lambda row: passed(row[0], row[1:], row[3]), (reached, moved_ts, ts, ys))
            return y1, ys, y, slopes

        return function, self.picked(jax.tree.unflatten(self.structure, inputs))

    def _run(self, of: Any, rest: Any, result: AdaptiveResult) -> tuple[AcceptedRun, Tolerance]:
        run, allowed, _ = self.whole._run(of, rest)
        if result.record.nodes is not None:
            steps = result.pace.accepted
            run = dataclasses.replace(run, grid=dataclasses.replace(run.grid, nodes=result.record.nodes, steps=steps))
        return run, allowed

    def picked(self, tree: Any) -> list[Any]:
        """The leaves that a derivative is asked for; None among them is a time that needs none."""
        leaves = self.structure.flatten_up_to(tree)
        return [leaf for leaf, ask in zip(leaves, self.differentiated, strict=True) if ask]

    @staticmethod
    def _filled(residuals: Any, cotangents: Any) -> Any:
        """Cotangents with zeros for those of what nobody reads."""
        values, structure = jax.tree.flatten(residuals[2])
        pairs = zip(values, structure.flatten_up_to(cotangents), strict=True)
        return jax.tree.unflatten(structure, [jnp.zeros_like(v) if c is None else c for v, c in pairs])


def _times(times: Any, differentiated: tuple[bool, ...], structure: Any) -> list[tuple[Any, bool]]:
    """t0, t1 and ts, and whether a derivative by each is asked for."""
    flags = jax.tree.unflatten(structure, differentiated)[2]
    return [(time, bool(flag)) for time, flag in zip(times, flags, strict=True)]


def time_at(clock: Clock, s: Array) -> Array:
    """The time at an offset as the field is told it, with the derivative of the offset."""
    s, at = lax.stop_gradient(s), s
    return clock.time(s) + (at - s)


def offsets(rest: Any, times: Any) -> tuple[Array, Array, Array | None]:
    """t0, t1 and ts since t0, with the derivatives of the times themselves: t0 is counted from where it is."""
    *_, line, ts = rest

    def along(s: Array | None, t: Array | None) -> Array | None:
        if s is None or t is None:
            return s
        by = t - lax.stop_gradient(t)
        return s + jnp.where(jnp.isfinite(by), by, 0)  # a time that is none has no state, and no derivative

    t0, t1, ts = (along(*pair) for pair in zip((line.t0, line.t1, ts), times, strict=True))
    assert t0 is not None
    assert t1 is not None
    return t0, t1, ts


def _unmoved(tree: Any) -> Any:
    return jax.tree.map(SymbolicZero.from_primal_value, tree)


def condition(function: Callable[..., Any]) -> Callable[[Any, Any], Array]:
    """An event's condition, checked.

    Raises:
        InputError: it cannot be called with a time and a state, or what it returns is no array.
    """
    allowed = "a condition(t, y) that returns a real number or a boolean, or an array of them"

    def checked(t: Any, y: Any) -> Array:
        value = called(function, (t, y), "an event's condition", allowed)
        try:
            return array_of(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"an event's condition returned {value!r}, a {type(value).__name__}", allowed) from error

    return checked


def _hoisted(function: Callable[..., Any], *examples: Any, name: str = "norm") -> Callable[..., Any]:
    """A function whose closure's arrays are leaves of it as a tree."""
    return repeatable(name, lambda *arguments: function(*arguments), *examples)[0]


def _nothing(*arguments: Any) -> None:
    """Stands for a function that is not called."""
