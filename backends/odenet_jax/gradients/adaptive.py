"""An adaptive solve, from a problem to its solution."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer

from odenet import InputError, Problem, Result, Solution, SolveError, Solver, Span, Stats, UnsupportedError
from odenet.kit import shown
from odenet_jax.field.module_writes import traced_arrays_forgotten
from odenet_jax.field.state import Leaves, layout
from odenet_jax.field.trees import Counted
from odenet_jax.field.varying import together
from odenet_jax.gradients.accepted_steps import BackwardPass
from odenet_jax.gradients.adaptive_vjp import DifferentiableSolve
from odenet_jax.gradients.unreached import reached
from odenet_jax.steps.clock import Parts, spelled
from odenet_jax.steps.dense import Dense
from odenet_jax.steps.record import AdaptiveResult, Keep
from odenet_jax.steps.size_control import CODE
from odenet_jax.steps.weighted_sum import choose

_MOST = 2**31 - 1


@traced_arrays_forgotten()
@together()
def solve_adaptive(problem: Problem, methods: Callable[[Stats], BackwardPass], probe: Array | None = None) -> Solution:
    """The solution of an adaptive problem.

    Args:
        problem: the problem.
        methods: its gradient method.
        probe: see `odenet_jax.solve`.

    Raises:
        SolveError: it could not go on, and the controller's `throw` is on. Not inside of `jax.jit`.
    """
    span, stats = problem.grid, Stats("jax", problem.solver.label, problem.gradient.label, 0, 0)
    assert isinstance(span, Span)
    if span.control.per_sample:
        raise UnsupportedError("per_sample=True on backend jax", "one state a solve", "jax.vmap the solve over rows")
    if span.control.max_steps > _MOST:
        subject = f"PIDController(max_steps={shown(span.control.max_steps)}) on backend jax"
        raise InputError(subject, f"at most {_MOST}: steps are counted in int32")
    state_layout, leaves = layout(problem.y0)
    solver = DifferentiableSolve(problem, span, state_layout, leaves, methods(stats))
    ts, nodes = None if span.every else span.ts, None
    dense = span.control.max_steps if span.dense else 0
    if span.every or span.dense:
        first, _ = solver.solve(leaves, None, Keep(nodes=True), None, differentiable=False)
        steps = known(first.pace.accepted)
        if steps is not None:
            assert first.record.nodes is not None
            if span.every and steps > (most := first.record.nodes.shape[0] - 1):
                raise InputError(f"ts='all' of a solve of {steps} steps", f"at most {most}", "give times")
            dense = max(steps, 1) if span.dense else 0
        elif span.every:
            raise InputError(
                "ts='all' inside of jax.jit or jax.vmap, where the number of steps is not known",
                "times",
                "give the times, or dense=True and evaluate Solution.at",
            )
        else:
            _require_room(dense, problem, leaves)
        if span.every:
            kept = first.record.nodes
            nodes = kept[:steps] if steps and kept is not None else None
    result, event = solver.solve(leaves, ts, Keep(dense=dense), probe, differentiable=True, offsets=nodes)
    if nodes is not None:
        ts = jax.vmap(solver.line.clock.time)(nodes)
    with jax.debug_nans(False):  # NaN stands for what there is not; one of a computation has been met by now
        return _solution(problem, solver, result, event, None if ts is None else jnp.asarray(ts, state_layout.time))


def _require_room(steps: int, problem: Problem, y0: Leaves) -> None:
    """Raises InputError where dense output of as many steps would not fit in any memory there is."""
    assert isinstance(problem.solver, Solver)
    a_step = sum(leaf.nbytes for leaf in y0) * (problem.solver.tableau.stages + 2)
    room = _memory()
    if steps * a_step > room:
        raise InputError(
            f"dense=True with max_steps={steps} inside of jax.jit or jax.vmap, where the number of steps is not known: "
            f"{steps * a_step / 2**30:.3g} GiB are to be kept",
            f"what fits in memory: max_steps={room // a_step} makes the {room / 2**30:.3g} GiB that there are",
            "give control=odenet.PIDController(rtol, atol, max_steps=...) with no more steps than the solve takes; or "
            "give ts",
        )


def _memory() -> int:
    """The bytes of the device that programs run on where nothing else is said; of a CPU those of the machine, where it
    tells (Windows does not)."""
    of_device = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    if of_device or not hasattr(os, "sysconf"):
        return of_device or 2**62
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def known(number: Array) -> Any:
    """Its value; None where it is traced."""
    number = lax.stop_gradient(number)
    return None if isinstance(number, Tracer) else number.item()


def _solution(
    problem: Problem,
    solver: DifferentiableSolve,
    result: AdaptiveResult,
    event: tuple[Array, Leaves] | None,
    ts: Array | None,
) -> Solution:
    assert isinstance(problem.solver, Solver)  # it estimates its error
    span, state_layout, pace, tableau = solver.span, solver.layout, result.pace, problem.solver.tableau
    tried = pace.accepted + pace.rejected
    evaluations = 1 + (span.control.first_step is None) + tried * (tableau.stages - 1) + result.renewals
    counts = [
        number if (count := known(number)) is None else count for number in (pace.accepted, evaluations, pace.rejected)
    ]
    stats = Counted("jax", problem.solver.label, problem.gradient.label, *counts[:2], rejected=counts[2])
    outcome = known(pace.outcome)
    if outcome is not None and span.control.throw and outcome > CODE[Result.EVENT]:
        raise_ended(list(Result)[outcome], pace, solver.line.clock.origin)
    failed = pace.outcome > CODE[Result.EVENT]
    end = jnp.where(failed, solver.line.clock.time(result.end), jnp.asarray(span.t1, state_layout.time))
    if event is not None:
        met = known(pace.outcome == CODE[Result.EVENT])
        end = jnp.where(pace.outcome == CODE[Result.EVENT], event[0], end) if met is None else event[0] if met else end
    times, ys = ts, result.ys
    last = choose(failed, result.last, result.y1)
    if span.every:
        times = end[None] if ts is None else jnp.concatenate([ts, end[None]])
        ys = tuple(map(_row, last))
        if ts is not None:
            ys = tuple(jnp.concatenate(pair) for pair in zip(result.ys, ys, strict=True))
    elif ts is None:
        times, ys = end[None], tuple(map(_row, result.y1))
    interpolant = None
    if span.dense:
        record = result.record
        assert record.nodes is not None
        interpolant = Dense(
            solver.line.clock.origin,
            record.nodes,
            pace.accepted,
            result.end,
            record.y,
            record.slopes,
            last,
            tableau,
            state_layout.structure,
            state_layout.dtypes,
            reached,
        )
    ys = state_layout.unflatten([state_layout.returned(leaf, i) for i, leaf in enumerate(ys)])
    return Solution(times, ys, stats, pace.outcome, None if event is None else event[0], interpolant)


def _row(leaf: Array) -> Array:
    """As the only row of an array. The derivative of `leaf[None]` is a sum, which JAX 0.5 cannot compile for 64 bits
    after a context that allowed them (`enable_x64`) is over."""
    return leaf.reshape(1, *leaf.shape)


def raise_ended(result: Result, pace: Any, origin: Parts) -> None:
    """Raises SolveError with what to do about it; `origin` is t0 in parts."""
    steps = f"{int(pace.accepted)} steps ({int(pace.rejected)} rejected)"
    raise SolveError(
        f"the solve stopped at t={spelled(origin, pace.t):.8g} after {steps}: {result.happened}",
        "",
        f"{result.remedy}; PIDController(throw=False) returns what there is" if result.remedy else "",
    )
