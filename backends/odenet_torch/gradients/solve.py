"""`solve` on torch: from a problem to the file that holds its gradient method."""

from __future__ import annotations

import functools
from typing import Any

import torch

from odenet import (
    GRADIENTS,
    Backprop,
    Checkpoint,
    ContinuousAdjoint,
    DiscreteAdjoint,
    Problem,
    Reversible,
    Solution,
    Solver,
    Span,
    Stats,
    UnsupportedError,
)
from odenet._problem.problem import problem
from odenet_torch.field.field import Field, FunctionField
from odenet_torch.field.state import layout
from odenet_torch.gradients import accepted_steps as accepted
from odenet_torch.gradients import backprop
from odenet_torch.gradients.checkpoint import Recomputation
from odenet_torch.gradients.continuous_adjoint import AdaptiveCostate, Costate
from odenet_torch.gradients.discrete_adjoint import Reversal
from odenet_torch.gradients.reversible import Retrace
from odenet_torch.steps.adaptive import Back, solve_adaptive
from odenet_torch.steps.fixed import Run, Solve
from odenet_torch.steps.moving_grid import at_times, on_numbers


def solve(field: Any, y0: Any, weights: Any = None, **choices: Any) -> Solution:
    """`odenet.solve` without asking which backend: see there for the arguments."""
    return solve_problem(problem(field, y0, weights, **choices))


def solve_problem(made: Problem, field: Field | None = None) -> Solution:
    """The solution of a problem.

    Args:
        made: the problem.
        field: stands for the problem's own field and weights, where a module knows better how to read its layers.
    """
    if isinstance(made.grid, Span):
        return solve_adaptive(made, lambda stats: _back(made, stats), field)
    given, leaves = layout(made.y0)
    grid, field = on_numbers(made.grid, field or FunctionField(made.field, made.weights))
    run = Run(field, given, grid, made.solver)
    steps = grid.steps
    stats = Stats("torch", made.solver.label, made.gradient.label, steps, made.solver.evaluations(steps))
    ys = _method(made, stats)(run, leaves)
    if made.grid.spread is not None:
        picks = torch.tensor(made.grid.spread, device=given.device)
        ys = tuple(leaf[picks] for leaf in ys)
    ys = at_times(made.grid, run, ys)
    ts = torch.tensor(made.grid.times, dtype=given.time, device=given.device)
    return Solution(ts, given.unflatten(ys), stats)


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
            raise UnsupportedError(f"gradient {other.label} on backend torch", ", ".join(GRADIENTS))


def _back(made: Problem, stats: Stats) -> Back:
    """The same for the steps that an adaptive solve accepts."""
    assert isinstance(made.solver, Solver)
    match made.gradient:
        case Backprop():
            return accepted.plain
        case Checkpoint() as method:
            return functools.partial(accepted.solve, Recomputation(method, stats))
        case DiscreteAdjoint() as method:
            return functools.partial(accepted.solve, Reversal(method, stats))
        case ContinuousAdjoint() as method:
            return functools.partial(accepted.solve, AdaptiveCostate(method, made.solver, stats))
        case other:
            raise UnsupportedError(
                f"gradient {other.label} of an adaptive solve on backend torch", ", ".join(GRADIENTS)
            )
