"""What is to be solved, checked and complete: this is what a backend is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from odenet import _tree
from odenet._depth import Depth
from odenet._errors import GridError, InputError, StateError, UnsupportedError
from odenet._gradients import GRADIENTS, ContinuousAdjoint, Gradient, gradient
from odenet._grid import Grid, grid
from odenet._solver import AnySolver, solver


@dataclass(frozen=True)
class Problem:
    """An initial value problem with the choices of how to solve and differentiate it.

    Args:
        field: `field(t, y, w)`, or `field(t, y)` where `weights` is None.
        y0: the initial state, an array or a tree of them.
        weights: along depth, dividing the grid; None for a field without explicit weights.
        grid: times and steps.
        solver: the method.
        gradient: the gradient method.
    """

    field: Callable[..., Any]
    y0: Any
    weights: Depth | None
    grid: Grid
    solver: AnySolver
    gradient: Gradient


def problem(
    field: Callable[..., Any],
    y0: Any,
    weights: Any = None,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    steps: int | None = None,
    ts: Any = None,
    solver: str | AnySolver = "euler",
    gradient: str | Gradient = "backprop",
) -> Problem:
    """A checked `Problem`; the arguments are those of `odenet.solve`.

    Raises:
        InputError: or a class of it, saying which argument cannot be used.
    """
    if not callable(field):
        raise InputError(
            f"field is a {type(field).__name__}", "a callable field(t, y, w), or field(t, y) without weights"
        )
    for path, leaf in _checked_leaves(y0):
        if 0 in getattr(leaf, "shape", ()):
            raise StateError(f"y0 {path} has shape {tuple(leaf.shape)}, which holds no number", "at least one entry")
    _check_arguments(field, weights is None)
    depth = weights if isinstance(weights, Depth) or weights is None else Depth(weights)
    if steps is None:
        steps = depth.intervals if depth is not None else None
        if steps is None:
            raise InputError(
                "steps was left out and the weights do not say how many layers there are",
                "steps=N, or weights as Depth(tree, 'piecewise' | 'linear')",
            )
    checked = grid(t0, t1, steps, ts)
    made = Problem(field, y0, depth, checked, _solver(solver), _gradient(gradient))
    require_pair(made.solver, made.gradient)
    if depth is not None:
        depth.factor(checked.steps)
    if isinstance(made.gradient, ContinuousAdjoint):
        _check_backward(made, made.gradient)
    return made


def require_pair(solver: AnySolver, gradient: Gradient) -> None:
    """Raises UnsupportedError unless the method can differentiate a solve by that solver."""
    if gradient.offered(solver):
        return
    offered = [kind for kind in GRADIENTS.values() if kind().offered(solver)]
    remedy = "reversible:euler or another of the reversible solvers (reversible-heun, alf)"
    raise UnsupportedError(
        f"gradient {gradient.label!r} with solver {solver.label!r}",
        f"{', '.join(kind.name for kind in offered)} with this solver",
        f"take solver={remedy}" if not solver.reversible else "take gradient='reversible', which is exact",
    )


def _check_backward(made: Problem, method: ContinuousAdjoint) -> None:
    """The backward grid must meet every layer boundary and every kept time."""
    _, steps = method.backward(made.solver, made.grid.steps)
    if method.interpolate and steps != made.grid.steps:
        raise GridError(
            f"an interpolated continuous adjoint of {steps} steps for a solve of {made.grid.steps}",
            "the same steps",
            "leave out steps= of the continuous adjoint, or interpolate",
        )
    if made.weights is not None:
        made.weights.factor(steps)
    if any(n * steps % made.grid.steps for n in made.grid.saved):
        raise GridError(
            f"a continuous adjoint of {steps} steps jumps over a time in ts, on a grid of {made.grid.steps} steps",
            "backward steps whose grid holds every time in ts",
            f"take a multiple of {made.grid.steps} steps for the continuous adjoint",
        )


_solver, _gradient = solver, gradient  # the arguments of `problem` have these names


def _check_arguments(field: Callable[..., Any], alone: bool) -> None:
    try:
        signature = inspect.signature(field)
    except (TypeError, ValueError):  # callables of an extension module may have none
        return
    try:
        signature.bind(*("t", "y", "w")[: 2 if alone else 3])
    except TypeError as error:
        what = "field(t, y), since there are no weights" if alone else "field(t, y, w), since there are weights"
        raise InputError(f"field takes {signature} ({error})", f"a field that can be called as {what}") from None


def _checked_leaves(y0: Any) -> list[tuple[str, Any]]:
    found = list(_tree.paths(y0))
    if not found:
        raise StateError("y0 is an empty tree", "an array, or a tree of at least one")
    for path, leaf in found:
        if isinstance(leaf, str) or not (hasattr(leaf, "shape") or isinstance(leaf, (int, float, complex))):
            raise StateError(f"y0 {path} is a {type(leaf).__name__}", "arrays or numbers in tuples, lists and dicts")
    return found
