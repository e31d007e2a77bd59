"""An adaptive solve as a function of arrays, with a gradient of our own."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from odenet import Event, GridError, Problem, Result, Span, UnsupportedError
from odenet_jax.field.collectives import collective_axes
from odenet_jax.field.field import Weights
from odenet_jax.field.field import field as field_along
from odenet_jax.field.state import Layout, Leaves
from odenet_jax.gradients.accepted_steps import Cotangents, WayBack
from odenet_jax.gradients.adjoint import once
from odenet_jax.steps.accepted import Accepted, Along, Line, line
from odenet_jax.steps.adaptive_loop import March
from odenet_jax.steps.clock import beyond, coarse, require_fine, require_span, roundings, since, spelled, still
from odenet_jax.steps.dense import Watch
from odenet_jax.steps.record import Keep, Walked
from odenet_jax.steps.size_control import CODE
from odenet_jax.steps.times import moving, of_times
from odenet_jax.steps.tolerance import Tolerance, tolerance
from odenet_jax.steps.weighted_sum import only

REMEDY = "take equal steps (steps=N) and gradient='backprop', which can be differentiated again"


class Out(NamedTuple):
    """What a solve returns that has a gradient, and the rest of it."""

    y1: Leaves
    ys: Leaves
    y: Leaves
    slopes: tuple[Leaves, ...]
    walked: Walked


class Whole:
    """A solve as a function of arrays, with a gradient of our own.

    Args:
        made: the problem.
        span: its times.
        layout: of the state.
        y0: leaves of the state at t0, for their shapes.
        way: the gradient method.
    """

    def __init__(self, made: Problem, span: Span, layout: Layout, y0: Leaves, way: WayBack) -> None:
        self.made, self.span, self.layout, self.way = made, span, layout, way
        field, weights = field_along(made.field, made.weights)
        self.ends = still((span.t0, span.t1))
        require_span(*self.ends, layout.time)
        self.times = tuple(jnp.asarray(t, layout.time) for t in (span.t0, span.t1))
        self.field, self.weights = field.hoist(weights, self.times[0], layout.call(y0))
        self.line = self._line(y0)
        allowed = tolerance(span.control, layout, y0)
        self._require_alone(allowed, y0)
        norm = _hoisted(lambda leaves: jnp.asarray(allowed.norm(leaves)), tuple(jnp.abs(leaf) for leaf in y0))
        event = None
        if span.event is not None:
            event = _hoisted(span.event.condition, self.times[0], layout.call(y0))
        self.hoisted, self.rest = eqx.partition((allowed.rtol, allowed.atol, norm, event), eqx.is_array)

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
        if axes and event is None:  # rows of one error, and so of the same steps
            axes -= collective_axes(lambda *leaves: allowed.norm(leaves), *(jnp.abs(leaf) for leaf in y0))
        if axes | of_event:
            raise UnsupportedError(
                f"an adaptive solve of rows that read each other along the axis {', '.join(sorted(axes | of_event))} "
                "(pmean, psum, BatchNorm): each row would be at a time of its own",
                "equal steps; or a field that reads its own row alone",
                "give steps=N; or solve for all rows as one state, without jax.vmap around it",
            )

    def _line(self, y0: Leaves) -> Line:
        """The times, checked: those that are traced by numbers that are known when the solve runs."""
        span, kind, t0 = self.span, self.layout.time, self.times[0]
        found, y = line(*self.ends, span, self.field, kind), self.layout.call(y0)

        def field(t: Array) -> Any:
            slot = self.field.slot(self.weights, jnp.int32(0), self.field.intervals)
            return self.field(t, y, jnp.zeros((), kind), slot, self.weights)

        readers = [("field", field, (t0,))]
        if span.event is not None:
            condition = span.event.condition
            readers.append(("event", lambda t: condition(t, y), (t0,)))
        fine = require_fine(*self.ends, kind, *readers)
        if not any(isinstance(t, Tracer) for t in self.ends):
            return found
        first, last = (jnp.asarray(t) for t in self.ends)
        sound = jnp.isfinite(found.t1) & ((found.t1 != 0) | (first == last))
        return dataclasses.replace(found, sound=sound if fine else sound & ~coarse(*self.ends, kind))

    def offsets(self, ts: Any) -> tuple[Array, Array]:
        """Times to be kept since t0, in the order of the solve; and which of them can be kept.

        What is out of order, or outside of the solve, stands for the time before it. Known times are refused.

        Raises:
            GridError: a known time outside of the solve.
        """
        found, kind = self.line, self.layout.time
        ts = still(ts)
        of = jnp.asarray(since(ts, found.clock.origin, kind))
        beside = beyond(of, found.t1, roundings(ts, of, found.clock.origin))
        if not isinstance(beside, Tracer) and beside.any():
            ends = [spelled(found.clock.origin, s) for s in (found.t0, found.t1)]
            raise GridError(f"ts={np.asarray(ts).tolist()} leaves [{ends[0]}, {ends[1]}]", "times between t0 and t1")
        sign = found.sign
        of = jnp.where(beside, -float(jnp.finfo(kind).max), jnp.clip(sign * of, 0, sign * found.t1))
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
    ) -> tuple[Walked, tuple[Array, Leaves] | None]:
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
        if not differentiable:
            return self._solve(*lax.stop_gradient(arguments[:4]), keep), None
        out = self._network(keep)(*arguments)
        plain = lax.stop_gradient(out.walked)
        walked = plain._replace(y1=out.y1, ys=out.ys, record=plain.record._replace(y=out.y, slopes=out.slopes))
        if good is not None and (isinstance(good, Tracer) or not good.all()):
            walked = walked._replace(ys=tuple(only(good, leaf) for leaf in walked.ys))
        if self.span.event is None:
            return walked, None
        assert walked.entry is not None
        watch = Watch(self.span.event, self.layout, self.line.clock)
        t, y1 = watch.moved(self.line.clock.time(walked.end), walked.y1, walked.slope, walked.entry)
        met = walked.pace.outcome == CODE[Result.EVENT]
        y1 = tuple(jnp.where(met, moved, leaf) for moved, leaf in zip(y1, walked.y1, strict=True))
        return walked._replace(y1=y1), (only(met, t), y1)

    def _run(self, of: Any, rest: Any) -> tuple[Along, Tolerance, Event | None]:
        (inexact, closed), (other, constants, hoisted, line, _) = of, rest
        rtol, atol, norm, condition = eqx.combine(hoisted, self.rest)
        grid = Accepted(line, jnp.zeros(2, self.layout.time), jnp.int32(0))
        weights = Weights(inexact, other, closed, constants)
        run = Along(self.field, self.layout, grid, self.made.solver, weights)  # pyright: ignore[reportArgumentType]
        event = self.span.event and dataclasses.replace(self.span.event, condition=condition)
        return run, Tolerance(rtol, atol, norm, self.layout.time), event

    def _solve(self, y0: Leaves, of: Any, times: Any, rest: Any, keep: Keep) -> Walked:
        run, allowed, event = self._run(of, rest)
        return March(run, self.span.control, allowed, event, keep).solve(y0, rest[-1])

    def _bare(self) -> Whole:
        """The same without the arrays of this call, which may be traced: JAX keeps it for as long as a way back."""
        bare = copy.copy(self)
        control = dataclasses.replace(self.span.control, rtol=1.0, atol=1.0, norm="rms")  # these are among `hoisted`
        event = self.span.event and dataclasses.replace(self.span.event, condition=_nothing)
        bare.span = dataclasses.replace(self.span, t0=None, t1=None, ts=None, control=control, event=event)
        bare.made = dataclasses.replace(self.made, field=_nothing, y0=None, weights=None, grid=bare.span)
        del bare.weights, bare.times, bare.ends, bare.line, bare.hoisted
        return bare

    def _network(self, keep: Keep) -> Callable[..., Out]:
        self = self._bare()

        def out(walked: Walked) -> Out:
            return Out(walked.y1, walked.ys, walked.record.y, walked.record.slopes, walked)

        def primal(y0: Leaves, of: Any, times: Any, rest: Any, probe: Array) -> Out:
            also = dataclasses.replace(keep, nodes=keep.dense > 0)
            return out(self._solve(y0, of, times, rest, also))

        def forward(*given: Any) -> tuple[Out, Any]:
            y0, of, _, rest, _ = jax.tree.map(lambda leaf: leaf.value, given, is_leaf=_is_primal)
            asked = moving(self.field, given[2])
            run, _, _ = self._run(of, rest)
            wanted = self.way.keep(run, y0, self.span.control.max_steps)
            wanted = dataclasses.replace(wanted, dense=keep.dense, nodes=wanted.nodes or keep.dense > 0)
            walked = self._solve(y0, of, None, rest, wanted)
            found = out(walked)
            kept = walked._replace(record=walked.record._replace(y=(), slopes=()))
            plain = walked._replace(
                record=walked.record._replace(states=None, nodes=walked.record.nodes if keep.dense else None)
            )
            return found._replace(walked=plain), (y0, of, rest, asked, kept)

        def backward(residuals: Any, gradients: Out) -> tuple[Any, ...]:
            y0, of, rest, asked, walked = residuals
            run, allowed, _ = self._run(of, rest)
            if walked.record.nodes is not None:
                steps = walked.pace.accepted
                run = dataclasses.replace(
                    run, grid=dataclasses.replace(run.grid, nodes=walked.record.nodes, steps=steps)
                )
            ts = rest[-1]
            dense = gradients.y + sum(gradients.slopes, ())
            read = not all(isinstance(leaf, SymbolicZero) for leaf in dense)
            y1, ys, y, slopes = jax.tree.map(_filled, tuple(gradients[:4]), is_leaf=_is_symbolic)
            meeting = Cotangents(y1, ts, ys, *((y, slopes) if read else ((), ())))
            sums = jax.tree.map(jnp.zeros_like, of)
            g, sums, residual = self.way.back(run, walked, meeting, sums, y0, allowed)
            moved = of_times(run, asked, ts, walked, y0, g, y1, ys)
            return *once(self.made.gradient.label, (g, sums, tuple(moved)), REMEDY), None, residual

        network = jax.custom_vjp(primal)
        network.defvjp(forward, backward, symbolic_zeros=True)
        return network


def _hoisted(function: Callable[..., Any], *examples: Any) -> Callable[..., Any]:
    """A function whose closure's arrays are leaves of it as a tree."""
    return eqx.filter_closure_convert(lambda *arguments: function(*arguments), *examples)


def _nothing(*arguments: Any) -> None:
    """Stands for a function that is not called."""


def _is_primal(leaf: Any) -> bool:
    return isinstance(leaf, CustomVJPPrimal)


def _is_symbolic(leaf: Any) -> bool:
    return isinstance(leaf, SymbolicZero)


def _filled(leaf: Any) -> Array:
    return jnp.zeros(leaf.shape, leaf.dtype) if _is_symbolic(leaf) else leaf
