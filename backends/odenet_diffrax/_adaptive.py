"""From a problem to a call of `diffeqsolve`, with tolerances."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import optimistix
from jax import Array
from jax.core import Tracer

from odenet import ContinuousAdjoint, Event, PIDController, Problem, Result, Solution, Span, Stats, UnsupportedError
from odenet.kit import number, tree_leaves
from odenet_diffrax import backend
from odenet_diffrax._field import over_span
from odenet_diffrax._solvers import coded, diffrax_solver, evaluations, gave_up, thrown
from odenet_jax.field.field import Field, Weights
from odenet_jax.field.state import Layout, Leaves, array_of


def solve_span(
    ivp: Problem, span: Span, field: Field, weights: Weights, state_layout: Layout, leaves: Leaves
) -> Solution:
    """The solution of an adaptive problem.

    Raises:
        UnsupportedError: what diffrax has not.
        SolveError: diffrax gave up.
    """
    _require(ivp, span)
    control = span.control
    t0, t1 = (jnp.asarray(time, state_layout.time) for time in (span.t0, span.t1))
    ends_known = number("t0", span.t0), number("t1", span.t1)
    sign = -1 if (ends_known[1] or 0.0) < (ends_known[0] or 0.0) else 1
    ends = _layer_ends(field, *ends_known)
    solver = diffrax_solver(ivp.solver, state_layout.time, adaptive=True)
    norm = _norm(control.norm, state_layout)
    result = diffrax.diffeqsolve(
        diffrax.ODETerm(over_span(field, state_layout, ends, sign)),
        solver,
        t0,
        t1,
        None if control.first_step is None else sign * control.first_step,
        leaves,
        (t0, t1, weights),
        saveat=_saved(span, state_layout),
        stepsize_controller=_controller(control, norm, ends, state_layout),
        adjoint=backend.method(ivp.gradient, adaptive=True)(
            ivp, norm, lambda norm, **own: _controller(control, norm, ends, state_layout, **own)
        ),
        event=None if span.event is None else _event(span.event, state_layout, leaves, t0),
        max_steps=control.max_steps,
        throw=False,
    )
    code, ys, ts = coded(result.result), result.ys, result.ts
    assert ts is not None
    count = result.stats["num_accepted_steps"]
    traced = isinstance(count, Tracer)
    if span.every and not traced:  # else padded, since nobody knows how many there will be
        ts, ys = ts[: int(count) + 1], tuple(leaf[: int(count) + 1] for leaf in ys)  # pyright: ignore
    # what was not reached is marked by infinity, but the last state is there in any case
    reached = jnp.isfinite(ts) if span.ts is not None else jnp.full(ts.shape, ~gave_up(code))
    ys = tuple(jnp.where(reached.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.nan) for leaf in ys)  # pyright: ignore
    if control.throw:
        ys = thrown(code, ys)
    happened = span.event is not None and (traced or int(code) == list(Result).index(Result.EVENT))
    event_t = ts[-1] if happened else None
    if span.ts is not None and not span.every:
        ts = jnp.stack([jnp.asarray(t, state_layout.time) for t in span.ts])
    tried = result.stats["num_steps"]
    stats = Stats("diffrax", ivp.solver.label, ivp.gradient.label, count, None, None, tried - count)
    evaluated = evaluations(solver, tried, 1, len(ends) + len(control.jump_t))
    stats.f_evaluations = evaluated if evaluated is None else evaluated + 2 * (control.first_step is None)
    tree = state_layout.unflatten([state_layout.returned(leaf, i) for i, leaf in enumerate(ys)])
    return Solution(ts, tree, stats, code, event_t, _dense(result, state_layout) if span.dense else None)


def _require(ivp: Problem, span: Span) -> None:
    """Raises UnsupportedError for what diffrax has not."""
    control, back = span.control, isinstance(ivp.gradient, ContinuousAdjoint)
    backend.refuse(
        {
            "per_sample=True (jax.vmap of the solve)": control.per_sample,
            "tolerances that differ between entries": any(
                len(tree_leaves(value)) > 1 or getattr(tree_leaves(value)[0], "shape", ()) != ()
                for value in (control.rtol, control.atol)
            ),
            "an event together with ts": span.event is not None and span.ts is not None,
            "dense=True, an event or ts='all' with the continuous adjoint": back
            and (span.dense or span.every or span.event is not None),
        }
    )


def _layer_ends(field: Field, t0: float | None, t1: float | None) -> tuple[float, ...]:
    """Times at which piecewise weights jump."""
    if field.kind != "piecewise":
        return ()
    if t0 is None or t1 is None:
        raise UnsupportedError("piecewise weights between traced times on backend diffrax", "times that are numbers")
    return tuple(t0 + (t1 - t0) * (n / field.intervals) for n in range(1, field.intervals))


def _saved(span: Span, state_layout: Layout) -> diffrax.SaveAt:
    if span.every:
        return diffrax.SaveAt(t0=True, steps=True, dense=span.dense)
    if span.ts is None:
        return diffrax.SaveAt(t1=True, dense=span.dense)
    return diffrax.SaveAt(ts=jnp.stack([jnp.asarray(t, state_layout.time) for t in span.ts]), dense=span.dense)


def _controller(
    control: PIDController, norm: Callable[[Any], Any], ends: tuple[float, ...], state_layout: Layout, **other: Any
) -> diffrax.AbstractStepSizeController:
    controller = diffrax.PIDController(
        rtol=other.get("rtol") or _scalar(control.rtol),
        atol=other.get("atol") or _scalar(control.atol),
        norm=norm,
        pcoeff=control.pcoeff,
        icoeff=control.icoeff,
        dcoeff=control.dcoeff,
        dtmin=control.min_step,
        dtmax=control.max_step,
        factormin=control.factor_min,
        factormax=control.factor_max,
        safety=control.safety or 0.9,  # its own
    )
    jumps = sorted({*ends, *control.jump_t})
    stops = sorted(set(control.step_t) - set(jumps))
    if not (jumps or stops):
        return controller
    return diffrax.ClipStepSizeController(
        controller,
        step_ts=jnp.asarray(stops, state_layout.time) if stops else None,
        jump_ts=jnp.asarray(jumps, state_layout.time) if jumps else None,
    )


def _event(event: Event, state_layout: Layout, leaves: Leaves, t0: Array) -> diffrax.Event:
    """Theirs, a function for each entry of the condition, whose root Newton's method finds on the dense output."""

    def entries(t: Any, y: Any) -> Array:
        return jnp.ravel(event.entries(t, state_layout.call(y), array_of, numbers_on="diffrax"))

    def entry(i: int) -> Callable[..., Array]:
        return lambda t, y, args, **_: entries(t, y)[i].astype(state_layout.time)

    shape = jax.eval_shape(entries, t0, leaves).shape
    exact = event.tolerance or 64 * float(jnp.finfo(state_layout.time).eps)
    one_way: dict[str, Any] = {"direction": event.direction > 0} if event.direction else {}
    if one_way and all(of.name != "direction" for of in dataclasses.fields(diffrax.Event)):
        raise UnsupportedError(
            f"direction={event.direction} of an event, which diffrax {diffrax.__version__} does not tell",
            "direction=0",
            "take a later diffrax, backend='jax' or direction=0",
        )
    return diffrax.Event([entry(i) for i in range(shape[0])], optimistix.Newton(exact, exact), **one_way)


def _dense(result: diffrax.Solution, state_layout: Layout) -> Callable[[Any], Any]:
    def at(t: Any) -> Any:
        times = jnp.asarray(t, state_layout.time)
        leaves = jax.vmap(result.evaluate)(times.reshape(-1))
        shaped = [leaf.reshape(*times.shape, *leaf.shape[1:]) for leaf in leaves]  # pyright: ignore
        return state_layout.unflatten([state_layout.returned(leaf, i) for i, leaf in enumerate(shaped)])

    return at


def _scalar(value: Any) -> Any:
    return tree_leaves(value)[0]


def _norm(norm: Any, state_layout: Layout) -> Callable[[Any], Any]:
    if callable(norm):
        return lambda y: norm(state_layout.call(y))
    kinds: dict[str, Callable[[Any], Any]] = {"rms": optimistix.rms_norm, "max": optimistix.max_norm}
    return kinds.get(norm, lambda y: jnp.stack([optimistix.rms_norm(leaf) for leaf in jax.tree.leaves(y)]).max())
