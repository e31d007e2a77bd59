"""`solve` on JAX: from a problem to what is done for its gradient method.

A `Way` of JAX holds two functions, each of `(problem, stats)`:

- `fixed` returns `solve(run, leaves, probe)`: the leaves at the kept times, and what blocks are told after them, from a
  `steps.fixed.Run`, the leaves of y0 and the probe of the certificate (see `solve`);
- `adaptive` returns a `gradients.accepted_steps.BackwardPass`: the backward pass over the accepted steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp
from jax import Array

from odenet import (
    Event,
    Gradient,
    GradientError,
    GradientName,
    Grid,
    GridError,
    InputError,
    PIDController,
    Problem,
    Solution,
    SolverName,
    Span,
    Stats,
)
from odenet.kit import AnySolver, StagedSolver, problem, real, require, shown
from odenet_jax._entry import backend
from odenet_jax.field.field import field as field_along
from odenet_jax.field.module_writes import traced_arrays_forgotten
from odenet_jax.field.replay import BlockContext, Replay
from odenet_jax.field.state import layout
from odenet_jax.field.varying import together
from odenet_jax.gradients.adaptive import solve_adaptive
from odenet_jax.gradients.runtime_errors import without_gradient
from odenet_jax.steps.fixed import Run

_MOST = 2**31 - 2
_UNREAD = GradientError(
    "a gradient of the state that blocks leave (eqx.nn.State, variables of flax.nnx), which the loss reads",
    "a loss of what the blocks return; their state is carried on without a gradient",
    "return from the model what the loss is to read, or take the blocks one by one (convert with "
    "gradient='checkpoint')",
)

State = TypeVar("State")


def solve(
    field: Callable[[Any, Any, Any], Any] | Callable[[Any, Any], Any],
    y0: State,
    weights: Any = None,
    *,
    probe: Array | None = None,
    t0: Any = 0.0,
    t1: Any = 1.0,
    steps: int | None = None,
    ts: Any = None,
    solver: SolverName | AnySolver | None = None,
    gradient: GradientName | Gradient = "backprop",
    rtol: Any = None,
    atol: Any = None,
    control: PIDController | None = None,
    event: Event | Callable[[Any, Any], Any] | None = None,
    dense: bool = False,
) -> Solution[State]:
    """`odenet.solve` without asking which backend: see there for the arguments.

    Args:
        field, y0, weights, t0, t1, steps, ts, solver, gradient, rtol, atol, control, event, dense: as in
            `odenet.solve`.
        probe: a real zero of shape () and of the times' number type. The derivative with respect to it is the
            reconstruction residual (`Stats.certificate`), also under `jax.grad`: with gradient="discrete-adjoint" the
            defect of the predicted states, with "reversible" that of the state at t0, with "checkpoint:bits=8" the
            error of the rounded states, with "continuous-adjoint" in equal steps the error of the gradient of
            two steps, and in others what a drifting state makes of the gradient. With "checkpoint" in equal steps, of a
            field that reads what the host returns (`io_callback`), how far that is off when steps run again. Zero for
            the others.
            Derivatives add up: under `jax.vmap` give each row a probe of its own.
    """
    return solve_problem(
        problem(
            field,
            y0,
            weights,
            t0=t0,
            t1=t1,
            steps=steps,
            ts=ts,
            solver=solver,
            gradient=gradient,
            rtol=rtol,
            atol=atol,
            control=control,
            event=event,
            dense=dense,
        ),
        probe,
    )


def solve_problem(ivp: Problem, probe: Array | None = None) -> Solution:
    """The solution of a problem; for `probe` see `solve`."""
    return solve_with_context(ivp, probe)[0]


@traced_arrays_forgotten()
@together()
def solve_with_context(
    ivp: Problem, probe: Array | None = None, context: BlockContext | None = None
) -> tuple[Solution, Any]:
    """The solution of a problem, and the state of its blocks after it.

    Args:
        ivp: the problem; its field is `field(t, y, w, state, key)` to (slope, state) where blocks are told something.
        probe: see `solve`.
        context: what blocks are told beside their input.
    """
    number = jnp.issubdtype(probe.dtype, jnp.number) if isinstance(probe, Array) else real(probe) is not None
    if probe is not None and not number:
        raise InputError(f"probe={shown(probe)}, a {type(probe).__name__}", "a real number as an array of JAX, or None")
    adaptive = isinstance(ivp.grid, Span)
    require(backend, ivp.solver, ivp.gradient, adaptive=adaptive)
    method = backend.method(ivp.gradient, adaptive=adaptive)
    if adaptive:
        return solve_adaptive(ivp, lambda stats: method(ivp, stats), probe), None
    assert isinstance(ivp.grid, Grid)
    assert isinstance(ivp.solver, StagedSolver)  # of a family that this backend runs
    if ivp.grid.steps > _MOST:
        raise GridError(f"steps={ivp.grid.steps} on backend jax", f"at most {_MOST}: steps are counted in int32")
    state_layout, leaves = layout(ivp.y0)
    field, weights = field_along(ivp.field, ivp.weights)
    run = Run(field, state_layout, ivp.grid, ivp.solver, weights, replay=None if context is None else Replay(context))
    run.require_times(leaves)
    steps = ivp.grid.steps
    stats = Stats("jax", ivp.solver.label, ivp.gradient.label, steps, ivp.solver.evaluations(steps))
    state_before = context and context.state
    ys, context = method(ivp, stats)(run, leaves, jnp.asarray(0 if probe is None else probe, state_layout.time))
    if ivp.grid.spread is not None:
        picks = jnp.asarray(ivp.grid.spread)
        ys = tuple(leaf[picks] for leaf in ys)
    ys = [state_layout.returned(leaf, i) for i, leaf in enumerate(ys)]
    solution = Solution(jnp.asarray(ivp.grid.times, state_layout.time), state_layout.unflatten(ys), stats)
    if context is None:
        return solution, None
    return solution, without_gradient(context.state, (leaves, weights.inexact, state_before), _UNREAD)
