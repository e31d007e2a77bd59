"""`solve` on JAX: from a problem to the file that holds its gradient method."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from odenet import (
    GRADIENTS,
    Backprop,
    Checkpoint,
    ContinuousAdjoint,
    DiscreteAdjoint,
    GridError,
    Problem,
    Reversible,
    Solution,
    Span,
    Stats,
    UnsupportedError,
)
from odenet._problem.problem import problem
from odenet_jax.field.field import field as field_along
from odenet_jax.field.replay import Replay, Told
from odenet_jax.field.state import layout
from odenet_jax.gradients import backprop
from odenet_jax.gradients.accepted_steps import ROWS, Again, WayBack
from odenet_jax.gradients.adaptive import solve_adaptive
from odenet_jax.gradients.adaptive_costate import AdaptiveCostate
from odenet_jax.gradients.checkpoint import Recomputation, resolved
from odenet_jax.gradients.continuous_adjoint import Costate
from odenet_jax.gradients.discrete_adjoint import AdaptiveReversal, Reversal
from odenet_jax.gradients.reversible import Retrace
from odenet_jax.steps.fixed import Run, Solve

_MOST = 2**31 - 2


def solve(field: Any, y0: Any, weights: Any = None, *, probe: Array | None = None, **choices: Any) -> Solution:
    """`odenet.solve` without asking which backend: see there for the arguments.

    Args:
        field, y0, weights, choices: as in `odenet.solve`.
        probe: a real zero of shape () and of the times' number type. The derivative with respect to it is the
            reconstruction residual (`Stats.certificate`), also under `jax.grad`: with gradient="discrete-adjoint" the
            defect of the predicted states, with "reversible" that of the state at t0. Zero for the others.
            Derivatives add up: under `jax.vmap` give each row a probe of its own.
    """
    return solve_problem(problem(field, y0, weights, **choices), probe)


def solve_problem(made: Problem, probe: Array | None = None) -> Solution:
    """The solution of a problem; for `probe` see `solve`."""
    return solve_telling(made, probe)[0]


def solve_telling(made: Problem, probe: Array | None = None, told: Told | None = None) -> tuple[Solution, Any]:
    """The solution of a problem, and the state of its blocks after it.

    Args:
        made: the problem; its field is `field(t, y, w, state, key)` to (slope, state) where blocks are told something.
        probe: see `solve`.
        told: what blocks are told beside their input.
    """
    if isinstance(made.grid, Span):
        return solve_adaptive(made, lambda stats: _back(made, stats), probe), None
    if made.grid.steps > _MOST:
        raise GridError(f"steps={made.grid.steps} on backend jax", f"at most {_MOST}: steps are counted in int32")
    given, leaves = layout(made.y0)
    field, weights = field_along(made.field, made.weights)
    run = Run(field, given, made.grid, made.solver, weights, replay=None if told is None else Replay(told))
    steps = made.grid.steps
    stats = Stats("jax", made.solver.label, made.gradient.label, steps, made.solver.evaluations(steps))
    ys, told = _method(made, stats)(run, leaves, jnp.asarray(0 if probe is None else probe, given.time))
    if made.grid.spread is not None:
        picks = jnp.asarray(made.grid.spread)
        ys = tuple(leaf[picks] for leaf in ys)
    ys = [given.returned(leaf, i) for i, leaf in enumerate(ys)]
    solution = Solution(jnp.asarray(made.grid.times, given.time), given.unflatten(ys), stats)
    return solution, None if told is None else told.state


def _method(made: Problem, stats: Stats) -> Solve:
    match made.gradient:
        case Backprop():
            return backprop.solve
        case Checkpoint() as method:
            return Recomputation(method, stats).solve
        case DiscreteAdjoint() as method:
            return Reversal(method, stats).solve
        case ContinuousAdjoint() as method:
            return Costate(method, made.solver, stats).solve
        case Reversible():
            return Retrace(stats).solve
        case other:
            raise UnsupportedError(f"gradient {other.label} on backend jax", ", ".join(GRADIENTS))


def _back(made: Problem, stats: Stats) -> WayBack:
    """The same for the steps that an adaptive solve accepts."""
    assert isinstance(made.grid, Span)
    match made.gradient:
        case Backprop():
            return Again(again=True)
        case Checkpoint() as method:
            if method.memory is not None:
                return Again(lambda run, y0: resolved(method, run, y0).states or 1)
            return Again(method.states or method.segments or ROWS)
        case DiscreteAdjoint() as method:
            return AdaptiveReversal(method, stats)
        case ContinuousAdjoint() as method:
            return AdaptiveCostate(method, made.solver, made.grid.control)
        case other:
            raise UnsupportedError(f"gradient {other.label} of an adaptive solve on backend jax", ", ".join(GRADIENTS))
