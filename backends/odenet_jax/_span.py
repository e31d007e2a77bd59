"""An adaptive solve, from a problem to its solution."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from odenet import (
    Backprop,
    Checkpoint,
    ContinuousAdjoint,
    DiscreteAdjoint,
    Event,
    InputError,
    Problem,
    Result,
    Solution,
    SolveError,
    Span,
    Stats,
    UnsupportedError,
)
from odenet_jax._accepted import Accepted, Along, line
from odenet_jax._adaptive import Adaptive, Keep, Walked
from odenet_jax._dense import Dense, Watch
from odenet_jax._field import Weights
from odenet_jax._field import field as field_along
from odenet_jax._state import Layout, Leaves, layout
from odenet_jax._times import moving, of_times
from odenet_jax._tolerance import Tolerance, tolerance
from odenet_jax._walk import CODE
from odenet_jax.gradients._accepted import Again, Cotangents, WayBack
from odenet_jax.gradients._adjoint import once
from odenet_jax.gradients.checkpoint import resolved
from odenet_jax.gradients.continuous_adjoint import AdaptiveCostate
from odenet_jax.gradients.discrete_adjoint import AdaptiveReversal


def solve_span(made: Problem, probe: Array | None = None) -> Solution:
    """The solution of an adaptive problem; for `probe` see `odenet_jax.solve`.

    Raises:
        SolveError: it could not go on, and the controller's `throw` is on. Not inside of `jax.jit`.
    """
    span, stats = made.grid, Stats("jax", made.solver.label, made.gradient.label, 0, 0)
    assert isinstance(span, Span)
    if span.control.per_sample:
        raise UnsupportedError("per_sample=True on backend jax", "one state a solve", "jax.vmap the solve over rows")
    given, leaves = layout(made.y0)
    whole = Whole(made, span, given, leaves, way_back(made, stats))
    ts = None if span.ts is None or span.every else jnp.asarray(span.ts, given.time)
    dense = span.control.max_steps if span.dense else 0
    if span.every or span.dense:
        first, _ = whole.solve(leaves, None, Keep(nodes=True), None, differentiable=False)
        steps = known(first.pace.accepted)
        if steps is not None:
            dense = max(steps, 1) if span.dense else 0
        elif span.every:
            raise InputError(
                "ts='all' inside of jax.jit or jax.vmap, where the number of steps is not known",
                "times",
                "give the times, or dense=True and evaluate Solution.at",
            )
        if span.every:
            assert first.record.nodes is not None
            ts = first.record.nodes[:steps]
    walked, event = whole.solve(leaves, ts, Keep(dense=dense), probe, differentiable=True)
    return _solution(made, whole, walked, event, ts)


def way_back(made: Problem, stats: Stats) -> WayBack:
    """The gradient method of a problem."""
    match made.gradient:
        case Backprop():
            return Again()
        case Checkpoint() as method:
            if method.memory is not None:
                return Again(lambda run, y0: resolved(method, run, y0).states)
            return Again(method.states or method.segments or Again().rows)
        case DiscreteAdjoint() as method:
            return AdaptiveReversal(method, stats)
        case ContinuousAdjoint() as method:
            return AdaptiveCostate(method, made.solver, made.grid.control)  # pyright: ignore[reportAttributeAccessIssue]
        case other:
            raise UnsupportedError(f"gradient {other.label} of an adaptive solve on backend jax", "the others")


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
        self.times = tuple(jnp.asarray(t, layout.time) for t in (span.t0, span.t1))
        self.field, self.weights = field.hoist(weights, self.times[0], layout.call(y0))
        allowed = tolerance(span.control, layout, y0)
        norm = _hoisted(lambda leaves: jnp.asarray(allowed.norm(leaves)), tuple(jnp.abs(leaf) for leaf in y0))
        event = None
        if span.event is not None:
            event = _hoisted(span.event.condition, self.times[0], layout.call(y0))
        self.hoisted, self.rest = eqx.partition((allowed.rtol, allowed.atol, norm, event), eqx.is_array)

    def solve(
        self, y0: Leaves, ts: Array | None, keep: Keep, probe: Array | None, *, differentiable: bool
    ) -> tuple[Walked, tuple[Array, Leaves] | None]:
        """From y0 to t1.

        Returns:
            The solve, and time and state of an event with their derivatives.
        """
        if self.field.kind == "shared" and self.made.weights is None and not self.weights.closed:
            pass
        probe = jnp.asarray(0 if probe is None else probe, self.layout.time)
        arguments = (
            y0,
            (self.weights.inexact, self.weights.closed),
            (*self.times, ts),
            (self.weights.other, self.weights.constants, self.hoisted),
            probe,
        )
        if not differentiable:
            return self._solve(*lax.stop_gradient(arguments[:4]), keep), None
        out = self._network(keep)(*arguments)
        still = lax.stop_gradient(out.walked)
        walked = still._replace(y1=out.y1, ys=out.ys, record=still.record._replace(y=out.y, slopes=out.slopes))
        if self.span.event is None:
            return walked, None
        assert walked.entry is not None
        watch = Watch(self.span.event, self.layout)
        t, y1 = watch.moved(walked.end, walked.y1, walked.slope, walked.entry)
        met = walked.pace.outcome == CODE[Result.EVENT]
        y1 = tuple(jnp.where(met, moved, leaf) for moved, leaf in zip(y1, walked.y1, strict=True))
        return walked._replace(y1=y1), (jnp.where(met, t, jnp.nan), y1)

    def _run(self, of: Any, times: Any, rest: Any) -> tuple[Along, Tolerance, Event | None]:
        (inexact, closed), (other, constants, hoisted) = of, rest
        rtol, atol, norm, condition = eqx.combine(hoisted, self.rest)
        grid = Accepted(line(self.span, self.field, *times[:2]), jnp.zeros(2, self.layout.time), jnp.int32(0))
        weights = Weights(inexact, other, closed, constants)
        run = Along(self.field, self.layout, grid, self.made.solver, weights)  # pyright: ignore[reportArgumentType]
        event = self.span.event and dataclasses.replace(self.span.event, condition=condition)
        return run, Tolerance(rtol, atol, norm, self.layout.time), event

    def _solve(self, y0: Leaves, of: Any, times: Any, rest: Any, keep: Keep) -> Walked:
        run, allowed, event = self._run(of, times, rest)
        return Adaptive(run, self.span.control, allowed, event, keep).solve(y0, _between(run, times[2]))

    def _network(self, keep: Keep) -> Callable[..., Out]:
        def out(walked: Walked) -> Out:
            return Out(walked.y1, walked.ys, walked.record.y, walked.record.slopes, walked)

        def primal(y0: Leaves, of: Any, times: Any, rest: Any, probe: Array) -> Out:
            also = dataclasses.replace(keep, nodes=keep.dense > 0)
            return out(self._solve(y0, of, times, rest, also))

        def forward(*given: Any) -> tuple[Out, Any]:
            y0, of, times, rest, _ = jax.tree.map(lambda leaf: leaf.value, given, is_leaf=_is_primal)
            asked = moving(self.field, given[2])
            run, _, _ = self._run(of, times, rest)
            wanted = self.way.keep(run, y0, self.span.control.max_steps)
            wanted = dataclasses.replace(wanted, dense=keep.dense, nodes=wanted.nodes or keep.dense > 0)
            walked = self._solve(y0, of, times, rest, wanted)
            found = out(walked)
            kept = walked._replace(record=walked.record._replace(y=(), slopes=()))
            plain = walked._replace(
                record=walked.record._replace(states=None, nodes=walked.record.nodes if keep.dense else None)
            )
            return found._replace(walked=plain), (y0, of, times, rest, asked, kept)

        def backward(residuals: Any, gradients: Out) -> tuple[Any, ...]:
            y0, of, times, rest, asked, walked = residuals
            run, allowed, _ = self._run(of, times, rest)
            if walked.record.nodes is not None:
                steps = walked.pace.accepted
                run = dataclasses.replace(
                    run, grid=dataclasses.replace(run.grid, nodes=walked.record.nodes, steps=steps)
                )
            ts = _between(run, times[2])
            dense = gradients.y + sum(gradients.slopes, ())
            read = not all(isinstance(leaf, SymbolicZero) for leaf in dense)
            y1, ys, y, slopes = jax.tree.map(_filled, tuple(gradients[:4]), is_leaf=_is_symbolic)
            meeting = Cotangents(y1, ts, ys, *((y, slopes) if read else ((), ())))
            sums = jax.tree.map(jnp.zeros_like, of)
            g, sums, residual = self.way.back(run, walked, meeting, sums, y0, allowed)
            moved = of_times(run, asked, walked, y0, g, y1, ys)
            return *once(self.made.gradient.label, (g, sums, tuple(moved))), None, residual

        network = jax.custom_vjp(primal)
        network.defvjp(forward, backward, symbolic_zeros=True)
        return network


def known(number: Array) -> Any:
    """Its value; None where it is traced."""
    number = lax.stop_gradient(number)
    return None if isinstance(number, Tracer) else number.item()


def _between(run: Along, ts: Array | None) -> Array | None:
    """Times between the ends of the solve: others are off by a rounding."""
    line = run.line
    return None if ts is None else jnp.clip(ts, jnp.minimum(line.t0, line.t1), jnp.maximum(line.t0, line.t1))


def _hoisted(function: Callable[..., Any], *examples: Any) -> Callable[..., Any]:
    """A function whose closure's arrays are leaves of it as a tree."""
    return eqx.filter_closure_convert(lambda *arguments: function(*arguments), *examples)


def _is_primal(leaf: Any) -> bool:
    return isinstance(leaf, CustomVJPPrimal)


def _is_symbolic(leaf: Any) -> bool:
    return isinstance(leaf, SymbolicZero)


def _filled(leaf: Any) -> Array:
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, SymbolicZero) else leaf


def _solution(
    made: Problem, whole: Whole, walked: Walked, event: tuple[Array, Leaves] | None, ts: Array | None
) -> Solution:
    span, given, pace, tableau = whole.span, whole.layout, walked.pace, made.solver.tableau
    tried = pace.accepted + pace.rejected
    evaluations = 1 + (span.control.first_step is None) + tried * (tableau.stages - 1) + walked.renewals
    counts = [
        number if (found := known(number)) is None else found for number in (pace.accepted, evaluations, pace.rejected)
    ]
    stats = Stats("jax", made.solver.label, made.gradient.label, *counts[:2], rejected=counts[2])
    outcome = known(pace.outcome)
    if outcome is not None and span.control.throw and outcome > CODE[Result.EVENT]:
        raise_ended(list(Result)[outcome], pace)
    end = jnp.asarray(span.t1, given.time) if event is None else jnp.where(jnp.isnan(event[0]), walked.end, event[0])
    times, ys = ts, walked.ys
    if ts is None or span.every:
        times = end[None] if ts is None else jnp.concatenate([ts, end[None]])
        ys = tuple(leaf[None] for leaf in walked.y1)
        if ts is not None:
            ys = tuple(jnp.concatenate(pair) for pair in zip(walked.ys, ys, strict=True))
    interpolant = None
    if span.dense:
        record = walked.record
        assert record.nodes is not None
        interpolant = Dense(
            record.nodes,
            pace.accepted,
            walked.end,
            record.y,
            record.slopes,
            walked.last,
            tableau,
            given.structure,
            given.given,
        )
    ys = given.unflatten([given.returned(leaf, i) for i, leaf in enumerate(ys)])
    return Solution(times, ys, stats, pace.outcome, None if event is None else event[0], interpolant)


def raise_ended(result: Result, pace: Any) -> None:
    """Raises SolveError with what to do about it."""
    text, _, remedy = result.value.partition(": ")
    raise SolveError(
        f"the solve stopped at t={pace.t.item():.8g} after {int(pace.accepted)} steps ({int(pace.rejected)} rejected): {text}",
        "",
        f"{remedy}; PIDController(throw=False) returns what there is" if remedy else "",
    )
