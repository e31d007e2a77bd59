"""What is to be solved, checked and complete: this is what a backend is given.

Over 250 lines: one function makes a problem, and the rest are the checks that it runs in their order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from odenet import _tree
from odenet._check import takes, yes_or_no
from odenet._errors import GridError, InputError, StateError, UnsupportedError, shown
from odenet._gradients.auto import decided
from odenet._gradients.names import GRADIENTS, ContinuousAdjoint, DiscreteAdjoint, Gradient, gradient
from odenet._problem.depth import Depth
from odenet._problem.grid import Grid, grid
from odenet._problem.span import Event, Span, span
from odenet._solvers.controller import PIDController
from odenet._solvers.names import ALL_SOLVERS, AnySolver, solver

Compile = bool | Literal["step"] | Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """An initial value problem with the choices of how to solve and differentiate it.

    Args:
        field: `field(t, y, w)`, or `field(t, y)` where `weights` is None.
        y0: the initial state, an array or a tree of them.
        weights: along depth, dividing the grid; None for a field without explicit weights.
        grid: times and steps; a `Span` where the steps are the solver's choice.
        solver: the method.
        gradient: the gradient method.
        compile: choices of the framework's compiler, by which steps are compiled; None: they are not.
    """

    field: Callable[..., Any]
    y0: Any
    weights: Depth | None
    grid: Grid | Span
    solver: AnySolver
    gradient: Gradient
    compile: Mapping[str, Any] | None = None


def problem(
    field: Callable[..., Any],
    y0: Any,
    weights: Any = None,
    *,
    t0: Any = 0.0,
    t1: Any = 1.0,
    steps: int | None = None,
    ts: Any = None,
    solver: str | AnySolver | None = None,
    gradient: str | Gradient = "backprop",
    rtol: Any = None,
    atol: Any = None,
    control: PIDController | None = None,
    event: Event | Callable[[Any, Any], Any] | None = None,
    dense: bool = False,
    compile: Compile = False,
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
    yes_or_no("dense", dense)
    adaptive = not (rtol is None and atol is None and control is None)
    method = _solver(("dopri5" if adaptive else "euler") if solver is None else solver)
    differentiated = decided(_gradient(gradient))
    require_pair(method, differentiated)
    if adaptive:
        if steps is not None:
            raise InputError(
                f"steps={shown(steps)} together with rtol, atol or control",
                "one of them",
                "leave steps out to solve adaptively",
            )
        whole = span(t0, t1, ts, _control(control, rtol, atol), _event(event), dense)
        ivp = Problem(field, y0, depth, whole, method, differentiated, compiling(compile))
        _check_adaptive(ivp)
        return ivp
    for name, value in (("event", event), ("dense", dense or None)):
        if value is not None:
            raise InputError(
                f"{name} with equal steps", "an adaptive solve", "give rtol and atol in the place of steps"
            )
    if steps is None:
        steps = depth.intervals if depth is not None else None
        if steps is None:
            raise InputError(
                "steps was left out and the weights do not say how many layers there are",
                "steps=N; weights as Depth(tree, 'piecewise' | 'linear'); or rtol and atol for an adaptive solve",
            )
    checked = grid(t0, t1, steps, ts)
    ivp = Problem(field, y0, depth, checked, method, differentiated, compiling(compile))
    if depth is not None:
        depth.factor(checked.steps)
    if isinstance(ivp.gradient, ContinuousAdjoint):
        _check_backward(ivp, checked, ivp.gradient)
    return ivp


def compiling(choice: Compile) -> Mapping[str, Any] | None:
    """The choices of a compiler in the argument `compile`; None for False.

    Raises:
        InputError: something else than True, False, "step" or a mapping by name.
    """
    if isinstance(choice, bool) or (isinstance(choice, str) and choice == "step"):
        return {} if choice else None
    if isinstance(choice, Mapping) and all(isinstance(name, str) for name in choice):
        return dict(choice)
    raise InputError(
        f"compile={shown(choice)}", "True (or 'step'), False, or a mapping of the compiler's options by name"
    )


def require_one_grid(steps: int | None, tolerances: Mapping[str, Any]) -> None:
    """Raises InputError unless either `steps` or one of the tolerances is given."""
    names = [name for name, value in tolerances.items() if value is not None]
    if (steps is None) == (not names):
        argument = (
            f"steps={shown(steps)} and {', '.join(names)}" if names else "neither steps nor rtol, atol or control"
        )
        raise InputError(argument, "steps=N for equal steps, or tolerances for an adaptive solve")


def _control(control: PIDController | None, rtol: Any, atol: Any) -> PIDController:
    """The controller with these tolerances."""
    if control is not None and not isinstance(control, PIDController):
        raise InputError(f"control={shown(control)}", "an odenet.PIDController")
    changes = {name: value for name, value in (("rtol", rtol), ("atol", atol)) if value is not None}
    if control is None and all(type(value) is float for value in changes.values()):
        return _with_defaults(**changes)
    return PIDController(**changes) if control is None else dataclasses.replace(control, **changes)


@functools.lru_cache(maxsize=16)
def _with_defaults(**changes: Any) -> PIDController:
    """The controller of the tolerances that a loop solves with again and again: its checks take as long as a step."""
    return PIDController(**changes)


def _event(event: Event | Callable[[Any, Any], Any] | None) -> Event | None:
    return event if event is None or isinstance(event, Event) else Event(event)


def adaptive_solvers() -> tuple[str, ...]:
    """The solvers that estimate their error."""
    return tuple(name for name, record in ALL_SOLVERS.items() if record.estimates_error)


def _check_adaptive(ivp: Problem) -> None:
    """Raises UnsupportedError for what needs equal steps, or an error estimate that is not there."""
    records = [("solver", ivp.solver)]
    method = ivp.gradient
    if isinstance(method, ContinuousAdjoint):
        if method.solver is not None:
            records.append(("backward solver", solver(method.solver)))
        if method.steps is not None or method.interpolate:
            raise UnsupportedError(
                f"gradient {method.label!r} of an adaptive solve",
                "continuous-adjoint with rtol and atol of its own",
                "leave out steps and interpolate; gradient='checkpoint' keeps the forward states",
            )
    if isinstance(method, DiscreteAdjoint) and method.extrapolates:
        raise UnsupportedError(
            f"gradient {method.label!r} of an adaptive solve, whose increments belong to steps of different sizes",
            "predictor=reverse",
        )
    for role, record in records:
        if not record.estimates_error:
            raise UnsupportedError(
                f"{role} {record.label!r} with tolerances: it estimates no error",
                ", ".join(adaptive_solvers()),
                "take one of these, or steps=N",
            )


def require_pair(solver: AnySolver, gradient: Gradient) -> None:
    """Raises UnsupportedError unless the method can differentiate a solve by that solver."""
    if gradient.offered(solver):
        return
    offered = [kind for kind in GRADIENTS.values() if kind().offered(solver)]
    remedy = "reversible:euler or another of the reversible solvers (reversible-heun, alf)"
    raise UnsupportedError(
        f"gradient {gradient.label!r} with solver {solver.label!r}",
        f"{', '.join(kind.name for kind in offered)} with this solver",
        f"take solver={remedy}"
        if not solver.reversible
        else "take gradient='reversible', which is exact, or checkpoint with segments=K or no option",
    )


def _check_backward(ivp: Problem, grid: Grid, method: ContinuousAdjoint) -> None:
    """The backward grid must meet every layer boundary and every kept time."""
    for name in ("rtol", "atol"):
        if getattr(method, name) is not None:
            raise InputError(f"{name} of the continuous adjoint of a solve in equal steps", "steps=N, or neither")
    steps = method.steps or grid.steps
    if method.interpolate and steps != grid.steps:
        raise GridError(
            f"an interpolated continuous adjoint of {steps} steps for a solve of {grid.steps}",
            "the same steps",
            "leave out steps= of the continuous adjoint, or interpolate",
        )
    if ivp.weights is not None:
        ivp.weights.factor(steps)
    if any(n * steps % grid.steps for n in grid.saved):
        raise GridError(
            f"a continuous adjoint of {steps} steps jumps over a time in ts, on a grid of {grid.steps} steps",
            "backward steps whose grid holds every time in ts",
            f"take a multiple of {grid.steps} steps for the continuous adjoint",
        )


_solver, _gradient = solver, gradient  # the arguments of `problem` have these names


_CHECKED: dict[bool, weakref.WeakSet[Any]] = {alone: weakref.WeakSet() for alone in (False, True)}
"""Fields whose arguments were looked at: that takes as long as a few steps."""


def _check_arguments(field: Callable[..., Any], alone: bool) -> None:
    try:
        if field in _CHECKED[alone]:
            return
    except TypeError:  # no weak reference to it
        pass
    form = "field(t, y), since there are no weights" if alone else "field(t, y, w), since there are weights"
    takes(field, 2 if alone else 3, "field", f"a field that can be called as {form}")
    with contextlib.suppress(TypeError):
        _CHECKED[alone].add(field)


def _checked_leaves(y0: Any) -> list[tuple[str, Any]]:
    _tree.require_finite_tree("y0", y0)
    leaves = list(_tree.paths(y0))
    if not leaves:
        raise StateError("y0 is an empty tree", "an array, or a tree of at least one")
    for path, leaf in leaves:
        if isinstance(leaf, str) or not (_has_shape(leaf) or isinstance(leaf, (int, float, complex))):
            raise StateError(f"y0 {path} is a {type(leaf).__name__}", "arrays or numbers in tuples, lists and dicts")
        if isinstance(leaf, int) and not _fits_float(leaf):
            raise StateError(f"y0 {path} is {shown(leaf)}, which no floating-point number holds", "numbers below 1e308")
    return leaves


def _has_shape(leaf: Any) -> bool:
    try:
        return hasattr(leaf, "shape")
    except RuntimeError:  # torch's nested tensors, whose rows differ in length
        return False


def _fits_float(value: int) -> bool:
    try:
        float(value)
    except OverflowError:
        return False
    return True
